"""`longshort run`: every stage does its part, is recorded, and is not done twice."""

import json

import pytest
from transformers import AutoModelForCausalLM

from longshort import cli
from longshort.team.folder import find_team
from longshort.types import LONG, ROLES


@pytest.fixture(scope="module")
def summary(journey):
    return json.loads((journey.folder / "summary.json").read_text())


def test_the_closing_table_names_the_trained_pair(journey):
    assert "pair, after RL" in journey.printed


@pytest.mark.parametrize("system", ["long_baseline", "cold_start", "trained"])
def test_the_summary_measures_each_system(summary, system):
    measures = {"accuracy", "accuracy_greedy", "tokens", "cost", "n", "interval", "hand_back_rate_hard"}
    assert measures <= summary[system].keys()
    assert summary[system]["n"] == 16


def test_the_summary_has_the_seconds_of_every_stage(summary):
    assert set(summary["seconds"]) == {"base", "baseline", "coldstart", "train"}


def test_each_training_step_leaves_its_metrics(journey):
    rows = [json.loads(line) for line in (journey.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["team/tokens"] > 0
    assert {"eval/accuracy", "long/grad_norm", "short/grad_norm", "rollout/idle_frac/long"} <= rows[-1].keys()


def test_each_training_step_leaves_its_episodes(journey):
    assert len((journey.folder / "episodes" / "step-000002.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize("role", ROLES)
def test_each_trained_model_loads_as_an_ordinary_model(journey, role):
    assert AutoModelForCausalLM.from_pretrained(journey.folder / "checkpoint-2" / role).num_parameters() > 0


def test_the_run_leaves_a_team_folder(journey):
    team = journey.folder / "team"
    assert find_team(team).system.models[LONG].folder == str(team / "long")


def test_the_run_leaves_a_report(journey):
    assert "<html" in (journey.folder / "report.html").read_text()[:200]


def test_a_second_run_does_nothing_again(journey, summary, capfd):
    assert cli.main(journey.arguments) == 0
    assert capfd.readouterr().out.count(", skipped") == 3 + 6 + 2
    assert json.loads((journey.folder / "summary.json").read_text()) == summary


def test_a_run_with_another_seed_is_refused(journey, capfd):
    assert cli.main([*journey.arguments, "seed=1"]) == 1
    assert "was made with other settings" in capfd.readouterr().err
