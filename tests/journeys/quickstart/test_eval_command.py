"""`longshort eval` on a finished run: every system has its row, faults are named, and nothing is done twice."""

import json

from tests.journeys.quickstart.conftest import PROBLEMS, SAMPLES, SYSTEMS


def test_a_benchmark_that_cannot_be_loaded_is_a_fault_and_the_status_is_1(evaluated):
    assert evaluated.status == 1
    no_answer, unknown = evaluated.results["faults"][:2]
    assert "broken.jsonl, line 2: no answer" in no_answer
    assert "'math5000' is not known; did you mean 'math500'?" in unknown


def test_every_system_has_a_row(evaluated):
    rows = evaluated.results["results"]
    assert [row["system"] for row in rows if row["decoding"] == "sampled"] == SYSTEMS
    assert {(row["n"], row["samples"]) for row in rows} == {(PROBLEMS, SAMPLES), (PROBLEMS, 1)}


def test_the_benchmark_that_loads_has_its_reference_answers_verified(evaluated):
    assert evaluated.results["benchmarks"].keys() == {"miniature:test"}
    assert evaluated.results["benchmarks"]["miniature:test"]["golds_verified"] == PROBLEMS


def test_every_system_is_compared_with_the_base(evaluated):
    decodings, metrics = 2, 3
    assert len(evaluated.results["comparisons"]) == (len(SYSTEMS) - 1) * decodings * metrics


def test_a_stopped_single_model_has_at_most_one_more_turn(evaluated):
    keys = ("single_long@1", "sampled")
    row = next(row for row in evaluated.results["results"] if (row["system"], row["decoding"]) == keys)
    assert row["turns"] <= 2


def test_the_table_is_written_in_markdown(evaluated):
    assert "| pair, trained" in evaluated.folder.with_suffix(".md").read_text()


def test_every_attempt_is_a_line(evaluated):
    lines = {path.name: len(path.read_text().splitlines()) for path in evaluated.folder.glob("*.jsonl")}
    assert len(lines) == len(SYSTEMS) * 2
    assert lines["pair.miniature-test.sampled.jsonl"] == PROBLEMS * SAMPLES


def test_what_is_done_is_not_done_again(evaluated, evaluate, capfd):
    assert evaluate() == 1
    printed = capfd.readouterr().out
    assert printed.count("done before, skipped") == len(SYSTEMS)
    assert "starting engines" not in printed
    assert json.loads(evaluated.folder.with_suffix(".json").read_text())["results"] == evaluated.results["results"]


def test_results_of_other_settings_are_not_mixed(evaluated, evaluate, capfd):
    assert evaluate("eval.seed=1") == 1
    assert "with seed = 2024, now 1" in capfd.readouterr().err
