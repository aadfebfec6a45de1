"""A run one step off policy."""

from longshort.runs import checkpoint
from longshort.types import LONG, SHORT
from tests.support import tiny_models
from tests.support.training_runs import episodes, metrics, trainer


def test_one_step_off_learns_from_rollouts_that_went_on_beside_the_last_update(tmp_path, tmp_path_factory):
    models = tiny_models.make_speaking(tmp_path_factory.mktemp("models"))
    run = trainer(tmp_path, models, max_steps=4, staleness=1, refill=2)
    run.train()
    rows = metrics(run)
    for role in (LONG, SHORT):
        oldest = [row[f"{role}/staleness/max"] for row in rows]
        assert oldest[0] == 0 and max(oldest) == 1 and min(oldest) >= 0
        assert [row[f"{role}/stale_dropped"] for row in rows] == [0] * 4
        assert all(row[f"{role}/weight_sync/canary_gap"] < 1e-3 for row in rows)
        assert [0 <= row[f"rollout/idle_frac/{role}"] < 1 for row in rows] == [True] * 4
        for step, row in enumerate(episodes(run)):
            written = [turn for line in row for turn in line["turns"] if turn["role"] == role]
            versions = {turn["version"] + late for turn in written for late in range(len(turn.get("updates", ())) + 1)}
            assert versions <= {max(0, step - 1), step}
    assert checkpoint.verify(checkpoint.latest(run.output_dir))["versions"] == {LONG: 4, SHORT: 4}
