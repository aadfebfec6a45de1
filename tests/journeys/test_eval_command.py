"""`longshort eval` as a user runs it: real engines, several systems, killed and continued, and the same numbers
twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longshort.recipe.schema import dump
from tests.support import tiny_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
SYSTEMS = ["pair", "long_alone", "long_plays_both", "single_long", "single_long@1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    evaluation = {
        "benchmarks": ["miniature:dev", str(folder / "broken.jsonl"), "math5000"],
        "num_problems": 12,
        "num_samples": 2,
        "systems": SYSTEMS,
        "base": "single_long",
        "ending": "\\boxed{",
    }
    (folder / "broken.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?"}\n')
    config = tiny_models.config(folder, tiny_models.make_speaking(folder), eval=evaluation)
    (folder / "recipe.yaml").write_text(dump(config))
    return folder / "recipe.yaml"


def command(recipe, name, *more):
    return [sys.executable, "-m", "longshort.cli", "eval", str(recipe), "--name", name, *more]


def lines(folder: Path) -> dict[str, list[dict]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


@pytest.fixture(scope="module")
def first(recipe):
    done = subprocess.run(command(recipe, "first"), capture_output=True, text=True, timeout=600)
    return done, recipe.parent / "run" / "eval"


def test_every_system_stands_in_the_results_and_what_cannot_be_loaded_is_told(first):
    done, folder = first
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]  # because two benchmarks are missing
    content = json.loads((folder / "first.json").read_text())
    no_answer, unknown = content["faults"][:2]
    assert (
        "broken.jsonl, line 2: no answer" in no_answer and "'math5000' is not known; did you mean 'math500'?" in unknown
    )
    assert no_answer in done.stdout and unknown in done.stdout
    rows = content["results"]
    assert [row["system"] for row in rows if row["decoding"] == "sampled"] == SYSTEMS
    assert {(row["n"], row["samples"]) for row in rows} == {(12, 2), (12, 1)} and content["benchmarks"].keys() == {
        "miniature:dev"
    }
    assert content["benchmarks"]["miniature:dev"]["golds_verified"] == 12 and content["versions"]["torch"]
    assert len(content["comparisons"]) == 4 * 2 * 3  # systems but the base, decodings, metrics
    alone = next(row for row in rows if (row["system"], row["decoding"]) == ("single_long@1", "sampled"))
    assert alone["turns"] <= 2 and "| pair, trained" in (folder / "first.md").read_text()
    files = lines(folder / "first")
    assert len(files) == len(SYSTEMS) * 2 and len(files["pair.miniature-dev.sampled.jsonl"]) == 24
    assert done.stdout.count("starting engines") <= 12  # heartbeats included: two models, two starts


@pytest.mark.slow
def test_a_second_evaluation_killed_on_its_way_and_continued_ends_with_the_same_numbers(recipe, first):
    _, folder = first
    started = subprocess.Popen(
        command(recipe, "second"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    while not list((folder / "second").glob("long_plays_both*.jsonl")):
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait(60)
    before = lines(folder / "second")
    assert 0 < sum(map(len, before.values())) < len(SYSTEMS) * 36
    for path in (folder / "second").glob("*.manifest.json"):
        if not json.loads(path.read_text())["complete"]:
            with path.with_name(path.name.replace(".manifest.json", ".jsonl")).open("ab") as half:
                half.write(b'{"id": "mini-')  # what a kill leaves of a line
    again = subprocess.run(command(recipe, "second"), capture_output=True, text=True, timeout=600)
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("first", "second"))
    assert one["results"] == two["results"] and one["comparisons"] == two["comparisons"], again.stderr[-2000:]
    assert lines(folder / "first") == lines(folder / "second")


def test_what_is_done_is_not_done_again_and_not_mixed_with_other_settings(recipe, first):
    same = subprocess.run(command(recipe, "first"), capture_output=True, text=True, timeout=300)
    assert same.stdout.count("done before, skipped") == len(SYSTEMS) and "starting engines" not in same.stdout
    other = subprocess.run(command(recipe, "first", "eval.seed=1"), capture_output=True, text=True, timeout=300)
    assert other.returncode == 1 and "with seed = 2024, now 1" in other.stderr
