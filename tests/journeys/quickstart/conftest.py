"""One run of the whole method on a miniature too small to learn anything; the tests of this folder go on from it."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from longshort import cli
from longshort.evaluation.runner import evaluation_of
from longshort.miniature.world import make_problems
from longshort.runs.ledger import read
from tests.support import ROOT
from tests.support.commands import LONGSHORT

RECIPE = ROOT / "recipes" / "quickstart.yaml"
TINY = [
    "miniature.num_train=200", "coldstart.num_traces=48", "miniature.long.terse_steps=4", "miniature.long.base_steps=8",
    "miniature.short.base_steps=8", "long.sft.max_steps=24", "short.sft.max_steps=24", "miniature.batch_size=8",
    "max_steps=2", "num_problems=4", "num_generations=4", "eval.num_problems=16", "eval_steps=1", "long.turn_tokens=32",
    "short.turn_tokens=32", "coldstart.importance.num_engines=1", "serve.drain_s=60",
]  # fmt: skip
SYSTEMS = ["pair", "long_alone", "long_plays_both", "single_long", "single_long@1"]
PROBLEMS, SAMPLES, SEED = 24, 2, 2024


@pytest.fixture(scope="session")
def journey(tmp_path_factory):
    """`longshort run` in a process of its own: its folder, the command, and what it printed."""
    folder = tmp_path_factory.mktemp("journey") / "run"
    command = [*LONGSHORT, "run", str(RECIPE), f"output_dir={folder}", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return SimpleNamespace(folder=folder, arguments=command[len(LONGSHORT) :], printed=done.stdout)


@pytest.fixture(scope="session")
def evaluate(journey):
    """Call `longshort eval` on the run, in this process; two of the three benchmarks cannot be loaded."""
    broken = journey.folder.parent / "broken.jsonl"
    broken.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?"}\n')
    settings = [
        f"eval.benchmarks=[miniature:test, {broken}, math5000]",
        f"eval.num_problems={PROBLEMS}",
        f"eval.num_samples={SAMPLES}",
        f"eval.systems=[{', '.join(SYSTEMS)}]",
    ]
    recipe = str(journey.folder / "recipe.yaml")
    return lambda *more: cli.main(["eval", recipe, "--name", "journey", *settings, *more])


@pytest.fixture(scope="session")
def evaluated(journey, evaluate):
    """What the first evaluation returned, and its files."""
    status = evaluate()
    folder = journey.folder / "eval"
    return SimpleNamespace(
        status=status, folder=folder / "journey", results=json.loads((folder / "journey.json").read_text())
    )


@pytest.fixture(scope="session")
def pairs_episodes(evaluated):
    """The pair's episodes by decoding: problem by problem, and within a problem sample by sample."""
    problems = make_problems("test", PROBLEMS, 0)
    return {
        decoding: evaluation_of(rows_by_attempt(evaluated.folder, decoding), problems, samples).episodes
        for decoding, samples in (("sampled", SAMPLES), ("greedy", 1))
    }


def rows_by_attempt(folder: Path, decoding: str) -> dict[str, dict]:
    return {row["id"]: row for row in read(folder / f"pair.miniature-test.{decoding}.jsonl")}
