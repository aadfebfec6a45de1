"""A mixture run on a tiny model: it measures, moves its ratios, and resumes as if nothing had happened."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from longshort.miniature.tokenizer import build_tokenizer
from longshort.mixture import run as mixture_run
from longshort.mixture.reweighting import Bounds, Measurement, choose, reweigh, signals
from longshort.mixture.run import run_mixture
from longshort.runs import checkpoint
from longshort.types import LONG
from tests.support.mixture_world import make_world, mixture_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "mixture" / "trajectory.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(world, cluster, tmp_path_factory) -> tuple[Path, dict]:
    """An uninterrupted run: its folder and what it returned."""
    output = tmp_path_factory.mktemp("whole")
    return output, asyncio.run(run_mixture(mixture_config(world, output)))


def test_a_run_measures_the_bounds_and_moves_the_ratios_by_the_formula(whole):
    output, summary = whole
    bounds, rows = Bounds(**summary["bounds"]), rows_of(output)
    # 4 tokens: `\boxed{`, `3`, `}` and the end
    # 12: `So the last digit is `, `7`, `.`, a gap, `Check `, `7`, `.`, a gap, then 4
    assert bounds == Bounds(tokens_short=4, accuracy_short=2 / 6, tokens_long=12, accuracy_long=4 / 6)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    assert [row["drawn_short"] + row["drawn_long"] for row in rows] == [8, 16, 24, 32, 36]
    ratios, before = (0.5, 0.5), None
    for row in rows:
        now = signals(row["dev_tokens"], row["dev_accuracy"], bounds)
        before = tuple(0.25 * b + 0.75 * n for b, n in zip(before, now, strict=True)) if before else now
        ratios = reweigh(ratios, before, 4.0, 0.1)
        assert (row["u_short"], row["u_long"]) == pytest.approx(before)
        assert (row["alpha_short"], row["alpha_long"]) == pytest.approx(ratios)
    assert len({row["dev_tokens"] for row in rows}) > 1, "the engine does not sample from what was learned"
    assert (
        max(row["alpha_long"] for row in rows[1:]) > rows[0]["alpha_long"]
        and rows[-1]["train_loss"] < rows[0]["train_loss"]
    )


def test_the_chosen_model_loads_and_the_run_leaves_its_papers(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, summary = whole
    rows = [Measurement(**row) for row in rows_of(output)]
    chosen, accurate = choose(rows, Bounds(**summary["bounds"]), 0.7)
    assert (summary["chosen"]["step"], summary["accurate_enough"], summary["last"]["step"]) == (
        chosen.step,
        accurate,
        9,
    )
    assert json.loads((output / "mixture" / "summary.json").read_text()) == summary
    assert {step for step, _ in checkpoint.steps(output / "mixture")} == {chosen.step, 9}
    model = AutoModelForCausalLM.from_pretrained(summary["model"])
    saved = AutoModelForCausalLM.from_pretrained(output / "mixture" / f"checkpoint-{chosen.step}" / LONG)
    assert all((a == b).all() for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(summary["model"]).get_vocab() == build_tokenizer(LONG).get_vocab()
    assert Path(summary["model"]) == output / "models" / "mixture-long"
    assert (output / "mixture" / "trajectory.png").read_bytes()[1:4] == b"PNG"
    assert (output / "mixture" / "trajectory.svg").read_text().rstrip().endswith("</svg>")


def test_an_interrupted_run_continues_as_if_nothing_had_happened(world, whole, tmp_path, monkeypatch, capsys):
    output, summary = whole
    (tmp_path / "mixture").mkdir()
    bounds = Path(shutil.copy(output / "mixture" / "bounds.json", tmp_path / "mixture"))
    measured_at, learn = bounds.stat().st_mtime_ns, mixture_run.learn

    async def unplugged(inputs, steps, *more):
        if steps == range(4, 6):
            raise RuntimeError("unplugged")
        return await learn(inputs, steps, *more)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="unplugged"):
        patch.setattr(mixture_run, "learn", unplugged)
        asyncio.run(run_mixture(mixture_config(world, tmp_path)))
    with (tmp_path / "mixture" / "trajectory.jsonl").open("a") as stream:
        stream.write('{"step": 6, "dev_accu')
    (tmp_path / "mixture" / ".checkpoint-6").mkdir()
    resumed = asyncio.run(run_mixture(mixture_config(world, tmp_path)))
    assert "checkpoint-4 after step 4" in capsys.readouterr().out
    assert rows_of(tmp_path) == rows_of(output) and resumed["chosen"] == summary["chosen"]
    for step in {summary["chosen"]["step"], 9}:
        files = [
            folder / "mixture" / f"checkpoint-{step}" / LONG / "model.safetensors" for folder in (output, tmp_path)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert bounds.stat().st_mtime_ns == measured_at

    monkeypatch.setattr(mixture_run, "Pair", None)  # all done: no engine is needed any more
    assert asyncio.run(run_mixture(mixture_config(world, tmp_path))) == resumed
