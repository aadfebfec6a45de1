"""A step that was interrupted ends as if it had not been: same lines, same counts, whatever was left to do."""

import asyncio
import json
from dataclasses import asdict

import pytest

from longshort.coldstart.pipeline import StepWork, run_steps
from longshort.coldstart.records import LINES
from longshort.coldstart.rows import spans
from longshort.coldstart.step_names import SFT, STEP_TITLES
from longshort.coldstart.steps import STEPS
from longshort.recipe.schema import parse
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import encode
from longshort.types import Problem

BARE = {"id": "p", "question": "q", "answer": "7"}
ROWS = [
    ("t1", "a: 2*3?", ["We 2.\n\n", "a: 2*3=6.\n\n", "Check 6.\n\n", "\\boxed{6}"], [0, 1, 2, 2, 2]),
    ("t2", "a: 4*2?", ["We 4.\n\n", "a: 4*2=8.\n\n", "Check 8.\n\n", "\\boxed{8}"], [1, 0, 2, 1, 2]),
    ("t3", "a: 9*2?", ["We 9.\n\n", "a: 9*2=8.\n\n", "\\boxed{8}"], [0, 0, 2, 2]),
    ("t4", "a: 7*2?", ["We 7.\n\n", "a: 7*2=4.\n\n", "\\boxed{4}"], [0, 0, 1, 2]),
]


@pytest.fixture
def config(tmp_path):
    """A run whose chunks and rollouts are there, one trace dropped."""
    importance = {"num_rollouts": 2, "average": "skeleton"}
    made = parse(
        {
            "output_dir": str(tmp_path),
            "coldstart": {"traces": "x", "importance": importance, "rewrite": {"rewriter": "verbatim"}},
        }
    )
    folder = RunFolder.of(made).thoughts
    folder.mkdir(parents=True)
    chunks, rolled = [], []
    for trace, question, thoughts, correct in ROWS:
        problem = asdict(Problem(id=trace, question=question, answer=thoughts[-1][-2]))
        kinds = [{"text": text, "kind": "check" if "Check" in text else "step"} for text in thoughts]
        chunks.append({"id": trace, "outcome": "ok", "problem": problem, "thoughts": kinds})
        rolled.append({"id": trace, "outcome": "ok", "n": 2, "tokens": [3] * len(thoughts), "correct": correct})
    chunks.append({"id": "t5", "outcome": "one_paragraph"})
    rolled.append({"id": "t5", "outcome": "dropped_before"})
    for name, lines in (("chunk", chunks), ("rollouts", rolled)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(map(encode, lines)))
        (folder / f"{name}.manifest.json").write_text(json.dumps({"complete": True, "counts": {"traces": 5}}))
    return made


def run(config, *steps):
    asyncio.run(run_steps(config, [STEPS[name] for name in steps]))


def made(config, step):
    folder = RunFolder.of(config).thoughts
    manifest = json.loads((folder / f"{step}.manifest.json").read_text())
    return (folder / f"{step}.jsonl").read_bytes(), {key: value for key, value in manifest.items() if key != "seconds"}


@pytest.mark.parametrize("step", ["importance", "partition", "rewrite"])
@pytest.mark.parametrize("kept", [0, 2, 4, 5])
def test_an_interrupted_step_ends_as_an_uninterrupted_one(config, step, kept):
    order = ["importance", "partition", "rewrite"]
    run(config, *order[: order.index(step) + 1])
    lines, manifest = made(config, step)
    assert manifest["counts"]["traces"] == 5 and manifest["counts"]["outcomes"]["dropped_before"] == 1
    folder = RunFolder.of(config).thoughts
    (folder / f"{step}.jsonl").write_bytes(b"".join(lines.splitlines(keepends=True)[:kept]))
    (folder / f"{step}.manifest.json").write_text(json.dumps(manifest | {"complete": False, "seconds": 1.0}))
    run(config, step)
    assert made(config, step) == (lines, manifest)


def test_nothing_is_worked_on_when_every_line_is_there(config, monkeypatch):
    run(config, "importance")
    manifest = RunFolder.of(config).thoughts / "importance.manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    monkeypatch.setattr(StepWork, "each", None)
    run(config, "importance")
    assert json.loads(manifest.read_text())["complete"]


def test_spans_of_a_mask():
    assert spans((0, 1, 1, 0, 1)) == [(1, 3), (4, 5)] and spans((0, 0)) == [] and spans((1,)) == [(0, 1)]


def test_every_step_has_a_line_class_and_a_title_in_the_order_of_the_pipeline():
    assert [*STEPS] == [*LINES] and [*STEPS, SFT] == [*STEP_TITLES]
    assert all(step.writes is LINES[name] for name, step in STEPS.items())


@pytest.mark.parametrize(
    ("step", "row"),
    [
        ("chunk", {"id": "a", "outcome": "bad_row", "detail": "x", "notes": [], "problem": asdict(Problem(**BARE))}),
        ("rollouts", {"id": "a", "outcome": "context", "detail": "x"}),
        (
            "rewrite",
            {"id": "a", "outcome": "kept", "detail": "", "tries": 1, "dialogue": [["short", "8", "</answer>"]]},
        ),
        ("rows", {"id": "a", "outcome": "dropped_before"}),
    ],
)
def test_a_line_is_written_as_it_was_read(step, row):
    assert encode(LINES[step].model_validate(row).row()) == encode(row)
