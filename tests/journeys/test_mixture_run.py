"""A mixture run on a tiny model: it measures, moves its ratios, resumes as if nothing had happened, and says what is
wrong.

The world: whatever the question, long traces end on 7 and short ones are just 3. Of the six dev problems four have the
answer 7. So the starting model, which was taught long traces, is right on four, and a model of short data alone on two.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longshort.backends import ray_cluster
from longshort.coldstart.records import Trace
from longshort.dialogue.solo import Solo
from longshort.miniature.fitting import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import build_tokenizer
from longshort.miniature.world import make_problems
from longshort.mixture import run as mixture_run
from longshort.mixture.inputs import as_sample, prepare
from longshort.mixture.reweighting import Bounds, Measurement, choose, reweigh, signals
from longshort.mixture.run import run_mixture
from longshort.recipe.miniature import ModelShape
from longshort.recipe.schema import LongShortConfig, dump, parse
from longshort.runs import checkpoint
from longshort.types import LONG, LongShortError, Problem

LONG_TRACE, SHORT_TRACE = "So the last digit is 7.\n\nCheck 7.\n\n\\boxed{7}", "\\boxed{3}"


def write_rows(path: Path, questions: list[str], answers: list[str], response: str) -> None:
    rows = [
        {"problem": question, "answer": answer, "response": response}
        for question, answer in zip(questions, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The data files, and a model taught long traces."""
    folder = tmp_path_factory.mktemp("world")
    questions = [problem.question for problem in make_problems("train", 46, 0)]
    write_rows(folder / "dev.jsonl", questions[:6], ["7", "7", "3", "7", "3", "7"], "unused")
    write_rows(folder / "easy.jsonl", questions[6:22], ["3"] * 16, SHORT_TRACE)
    write_rows(folder / "hard.jsonl", questions[22:], ["7"] * 24, LONG_TRACE)
    tokenizer = build_tokenizer(LONG)
    shape = ModelShape(
        hidden_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=64,
        base_steps=1,
        base_learning_rate=1,
    )
    model = build_model(tokenizer, shape, seed=3, max_position_embeddings=128)
    problems = [Problem(id=str(i), question=question, answer="7") for i, question in enumerate(questions[22:])]
    traces = [Trace(id=problem.id, problem=problem, response=LONG_TRACE) for problem in problems]
    fit(
        model,
        [as_sample(trace, Solo(turn_tokens=48), tokenizer) for trace in traces],
        steps=40,
        batch_size=8,
        learning_rate=1e-2,
    )
    save(model, tokenizer, folder / "model")
    return folder


def config(world: Path, output: Path, mixture: dict | None = None, **changes) -> LongShortConfig:
    settings = {
        "output_dir": str(output),
        "long": {
            "model": str(world / "model"),
            "instructions": "",
            "engine": {"backend": "transformers", "max_model_len": 128, "max_num_seqs": 16},
            "sft": {"learning_rate": 1e-2, "lr_scheduler_type": "linear"},
        },
        "mixture": {
            "short_data": str(world / "easy.jsonl"),
            "long_data": str(world / "hard.jsonl"),
            "dev_dataset": str(world / "dev.jsonl"),
            "dev_problems": 6,
            "max_tokens": 48,
            "temperature": 0.0,
            "max_steps": 9,
            "update_steps": 2,
            "batch_size": 4,
            "ema": 0.25,
        }
        | (mixture or {}),
    }
    return parse(settings | changes)


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "mixture" / "trajectory.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cluster(world):
    undo = ray_cluster.start(config(world, world / "unused"))
    yield
    undo()


@pytest.fixture(scope="module")
def whole(world, cluster, tmp_path_factory) -> tuple[Path, dict]:
    """An uninterrupted run: its folder and what it returned."""
    output = tmp_path_factory.mktemp("whole")
    return output, asyncio.run(run_mixture(config(world, output)))


@pytest.mark.engine
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


@pytest.mark.engine
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


@pytest.mark.engine
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
        asyncio.run(run_mixture(config(world, tmp_path)))
    with (tmp_path / "mixture" / "trajectory.jsonl").open("a") as stream:
        stream.write('{"step": 6, "dev_accu')
    (tmp_path / "mixture" / ".checkpoint-6").mkdir()
    resumed = asyncio.run(run_mixture(config(world, tmp_path)))
    assert "checkpoint-4 after step 4" in capsys.readouterr().out
    assert rows_of(tmp_path) == rows_of(output) and resumed["chosen"] == summary["chosen"]
    for step in {summary["chosen"]["step"], 9}:
        files = [
            folder / "mixture" / f"checkpoint-{step}" / LONG / "model.safetensors" for folder in (output, tmp_path)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert bounds.stat().st_mtime_ns == measured_at

    monkeypatch.setattr(mixture_run, "Pair", None)  # all done: no engine is needed any more
    assert asyncio.run(run_mixture(config(world, tmp_path))) == resumed


@pytest.mark.engine
def test_another_weighting_takes_the_same_bounds_but_not_the_same_checkpoints(world, whole, tmp_path):
    (tmp_path / "mixture").mkdir()
    shutil.copy(whole[0] / "mixture" / "bounds.json", tmp_path / "mixture")
    constant = {"weighting": "constant", "max_steps": 9}
    summary = asyncio.run(run_mixture(config(world, tmp_path, constant)))
    assert {row["alpha_short"] for row in rows_of(tmp_path)} == {0.5} and summary["bounds"] == whole[1]["bounds"]
    with pytest.raises(
        LongShortError, match=r"checkpoint-9 was made with mixture\.weighting = 'constant', now 'dynamic'"
    ):
        asyncio.run(run_mixture(config(world, tmp_path)))
    with pytest.raises(
        LongShortError, match=r"bounds\.json was made with mixture\.dev_problems = 6, now 5; restore it"
    ):
        asyncio.run(run_mixture(config(world, tmp_path, constant | {"dev_problems": 5})))


@pytest.mark.engine
def test_a_signal_ends_the_command_and_the_same_command_could_go_on(world, whole, tmp_path):
    (tmp_path / "run" / "mixture").mkdir(parents=True)
    bounds = json.loads((whole[0] / "mixture" / "bounds.json").read_text())
    bounds["setup"]["mixture.max_steps"] = 100_000
    (tmp_path / "run" / "mixture" / "bounds.json").write_text(json.dumps(bounds))
    (tmp_path / "recipe.yaml").write_text(dump(config(world, tmp_path / "run", {"max_steps": 100_000})))
    command = [sys.executable, "-m", "longshort.cli", "mixture", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    else:
        pytest.fail(process.stderr.read())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "start the same command again to continue" in errors
    facts = checkpoint.verify(checkpoint.latest(tmp_path / "run" / "mixture"))
    assert facts["step"] >= 2 and facts["step"] == facts["trajectory"][-1]["step"]


def test_traces_that_cannot_be_used_are_counted(world, tmp_path):
    hard = (world / "hard.jsonl").read_text() + (world / "dev.jsonl").read_text().splitlines()[0] + "\n"
    hard += (
        json.dumps({"problem": "a", "answer": "7", "response": "7" * 200})
        + "\n"
        + json.dumps({"problem": "b", "answer": "7"})
        + "\n"
    )
    (tmp_path / "hard.jsonl").write_text(hard)
    job = prepare(config(world, tmp_path, {"long_data": str(tmp_path / "hard.jsonl")}))
    assert job.counts["short_data"] == {"usable": 16}
    assert job.counts["long_data"] == {
        "usable": 24,
        "on dev problems": 1,
        "longer than 128 tokens": 1,
        "empty_response": 1,
    }
    assert [len(traces) for traces in job.traces] == [16, 24]
    sample = as_sample(job.traces[0][0], job.protocol, job.tokenizer)
    assert (
        job.tokenizer.decode([t for t, m in zip(sample.token_ids, sample.mask, strict=True) if m])
        == SHORT_TRACE + "<eos>"
    )


def test_training_follows_the_roles_sft_settings_with_the_mixtures_steps_and_batches(world, tmp_path):
    tree = config(world, tmp_path, learning_rate=7.0).model_dump()
    tree["long"]["sft"] |= {"batch_size": 6, "micro_batch_size": 6}
    sft = prepare(parse(tree)).sft
    assert (sft.learning_rate, sft.lr_scheduler_type, sft.max_steps) == (1e-2, "linear", 9)
    assert (sft.batch_size, sft.micro_batch_size, sft.packing) == (4, 2, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": None}, "no section `mixture:`"),
        ({"mixture": {"dev_dataset": ""}}, r"mixture\.dev_dataset is empty"),
        ({"mixture": {"short_bound": "./nowhere"}}, r"mixture\.short_bound: no folder './nowhere'"),
        ({"sft": {"lora": {}}}, r"long\.sft\.lora is .*remove it"),
        ({"mixture": {"weighting": "dynamik"}}, "'dynamik' is not known; did you mean 'dynamic'"),
        (
            {"sft": {"max_length": 9}},
            r"mixture\.short_data: none of its 16 traces can be used: .*'longer than 9 tokens': 16",
        ),
        ({"model": "", "miniature": {}}, "longshort run` first \\(stage base\\)"),
        ({"model": ""}, r"long\.model is empty"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(world, tmp_path, change, message):
    tree = config(world, tmp_path).model_dump()
    tree["mixture"] = (
        change["mixture"] and tree["mixture"] | change["mixture"] if "mixture" in change else tree["mixture"]
    )
    tree["long"]["sft"] |= change.get("sft", {})
    tree["long"]["model"] = change.get("model", tree["long"]["model"])
    tree["miniature"] = change.get("miniature")
    with pytest.raises(LongShortError, match=message):
        prepare(parse(tree))
