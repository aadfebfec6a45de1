"""`longshort run` end to end on a world too small to learn anything: every stage does its part, is recorded, and is
not done twice.
"""

import json
import subprocess
import sys

import pytest

from longshort.recipe.schema import load
from longshort.run import stage_names
from longshort.team.folder import find_team
from longshort.types import LONG, LongShortError
from tests.support import ROOT

RECIPE = ROOT / "recipes" / "quickstart.yaml"
TINY = [
    "miniature.num_train=200", "coldstart.num_traces=32", "miniature.long.terse_steps=4", "miniature.long.base_steps=4",
    "miniature.short.base_steps=8", "long.sft.max_steps=4", "short.sft.max_steps=4", "miniature.batch_size=8",
    "max_steps=2", "num_problems=4", "num_generations=4", "eval.num_problems=16", "eval_steps=1", "long.turn_tokens=24",
    "short.turn_tokens=24", "coldstart.importance.num_engines=1",
]  # fmt: skip


def test_the_quickstart_recipe_is_valid_and_runs_all_stages():
    assert stage_names(load(RECIPE)) == ["base", "baseline", "coldstart", "train"]
    assert stage_names(load(RECIPE, ["stages=[base, train]"])) == ["base", "train"]
    with pytest.raises(LongShortError, match="'bas' is not a stage; known: base, baseline"):
        stage_names(load(RECIPE, ["stages=[bas]"]))


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_run_does_every_stage_once_and_summarises(tmp_path):
    command = [sys.executable, "-m", "longshort.cli", "run", str(RECIPE), f"output_dir={tmp_path / 'run'}", *TINY]
    first = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert "pair, after RL" in first.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for system in ("long_baseline", "cold_start", "trained"):
        assert {"accuracy", "accuracy_greedy", "tokens", "cost", "n", "interval", "hand_back_rate_hard"} <= summary[
            system
        ].keys()
        assert summary[system]["n"] == 16
    assert set(summary["seconds"]) == {"base", "baseline", "coldstart", "train"} and summary["seed"] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and "eval/accuracy" in rows[0]
    assert len((tmp_path / "run" / "episodes" / "step-000002.jsonl").read_text().splitlines()) == 16
    assert find_team(tmp_path / "run" / "team").system.models[LONG].folder == str(tmp_path / "run" / "team" / "long")

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and again.stdout.count(", skipped") == 3 + 6 + 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    other = subprocess.run([*command, "seed=1"], capture_output=True, text=True, timeout=60)
    assert other.returncode == 1 and "was made with other settings" in other.stderr
