"""The trainer class with engines of transformers: bit-equal resumption, refills, one step off policy, plug-ins."""

import json
import shutil

import pytest

from longshort import LongShortTrainer
from longshort.miniature.world import make_problems
from longshort.runs import checkpoint
from longshort.types import LONG, ROLES, Reward
from tests.support.plugins import tiny_recipe
from tests.support.training_runs import episodes, metrics, trainer

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, speaking):
    """A deterministic run of three steps with a checkpoint after the second."""
    run = trainer(tmp_path_factory.mktemp("whole"), speaking, max_steps=3, save_steps=2, deterministic=True)
    run.train()
    return run


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, speaking, whole):
    """The third step of the same run, begun from a copy of the checkpoint."""
    folder = tmp_path_factory.mktemp("resumed")
    settings = {"max_steps": 3, "save_steps": 2, "deterministic": True, "dataset": whole.config.dataset}
    run = trainer(folder, speaking, **settings)
    run.output_dir.mkdir(parents=True)
    shutil.copytree(whole.output_dir / "checkpoint-2", run.output_dir / "checkpoint-2")
    run.train(resume=True)
    return run


@pytest.mark.parametrize("name", ["loss", "grad_norm", "learning_rate", "tokens"])
@pytest.mark.parametrize("role", ROLES)
def test_a_resumed_run_takes_an_equal_step(whole, resumed, role, name):
    assert metrics(resumed)[0]["step"] == 3
    assert metrics(resumed)[0][f"{role}/{name}"] == metrics(whole)[2][f"{role}/{name}"]


@pytest.mark.parametrize("role", ROLES)
def test_a_resumed_run_ends_with_the_same_bits(whole, resumed, role):
    assert metrics(whole)[2][f"{role}/grad_norm"] > 0
    files = [(run.output_dir / "checkpoint-3" / role / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]


def spoken(row, role):
    """How many tokens the role sampled in the episode of this line."""
    return sum(len(turn["token_ids"]) for turn in row["turns"] if turn["role"] == role)


def test_an_episodes_line_has_a_gap_for_every_token_that_trained(whole):
    rows = [json.loads(line) for line in (whole.output_dir / "episodes" / "step-000003.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert any(row.get("gaps", {}).keys() == set(ROLES) for row in rows)
    for row in rows:
        trained = {role: spoken(row, role) for role, advantage in row["advantages"].items() if advantage}
        gaps = {role: len(values) for role, values in row.get("gaps", {}).items()}
        assert gaps == {role: count for role, count in trained.items() if count}


def test_the_engines_sampled_from_the_learners_weights(whole):
    rows = [json.loads(line) for line in (whole.output_dir / "episodes" / "step-000003.jsonl").read_text().splitlines()]
    gaps = [gap for row in rows for values in row.get("gaps", {}).values() for gap in values]
    assert max(map(abs, gaps)) < 1e-3


def test_groups_without_variance_train_nothing_and_say_so(tmp_path, speaking, capsys):
    def constant(problem, episodes, progress):
        return [Reward(totals=dict.fromkeys(ROLES, 1.0), terms={"correct": 1.0}) for _ in episodes]

    run = trainer(tmp_path, speaking, reward=constant, max_steps=1, refill=6)
    last = run.train()
    assert last["team/refilled_groups"] == 6
    assert len(episodes(run)[0]) == (4 + 6) * 4
    assert [last[f"{role}/skipped_empty"] for role in ROLES] == [1, 1]
    assert last["long/zero_variance_groups"] == 4
    assert "every group scored the same: nothing to learn" in capsys.readouterr().out


def test_the_trainer_class_takes_its_own_data_and_reward_and_a_plug_ins_loss(seven_plugin, models):
    def by_number(problem, episodes, progress):
        return [Reward(totals=dict.fromkeys(ROLES, float(i)), terms={}) for i, _ in enumerate(episodes)]

    rows = [{"problem": problem.question, "answer": problem.answer} for problem in make_problems("train", 4, 0)]
    args = tiny_recipe(seven_plugin, models)
    last = LongShortTrainer(
        long=models[LONG], short=models["short"], train_dataset=rows, reward=by_number, args=args
    ).train()
    assert last["long/skipped"] == 0
    assert last["long/grad_norm"] == 0, "the plug-in's loss is 7, whatever the policy"
    assert last["long/loss"] == pytest.approx(7.0)


@pytest.fixture(scope="module")
def one_step_off(tmp_path_factory, speaking):
    run = trainer(tmp_path_factory.mktemp("stale"), speaking, max_steps=4, staleness=1, refill=2)
    run.train()
    return run


@pytest.mark.parametrize("role", ROLES)
def test_one_step_off_learns_from_tokens_of_this_version_and_the_one_before(one_step_off, role):
    for step, lines in enumerate(episodes(one_step_off)):
        written = [turn for line in lines for turn in line["turns"] if turn["role"] == role]
        versions = {turn["version"] + late for turn in written for late in range(len(turn.get("updates", ())) + 1)}
        assert versions <= {max(0, step - 1), step}


@pytest.mark.parametrize("role", ROLES)
def test_one_step_off_counts_the_age_of_its_samples_and_drops_none(one_step_off, role):
    rows = metrics(one_step_off)
    oldest = [row[f"{role}/staleness/max"] for row in rows]
    assert oldest[0] == 0
    assert max(oldest) == 1
    assert [row[f"{role}/stale_dropped"] for row in rows] == [0] * 4


@pytest.mark.parametrize("role", ROLES)
def test_one_step_off_publishes_each_version(one_step_off, role):
    assert max(row[f"{role}/weight_sync/canary_gap"] for row in metrics(one_step_off)) < 1e-3
    assert checkpoint.verify(checkpoint.latest(one_step_off.output_dir))["versions"][role] == 4
