"""The unit of an evaluation: one system on one benchmark, kept line by line, stopped anywhere and continued, never
mixed with another."""

import asyncio
import errno
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from longshort.dialogue.rollout import Decoding, stable_seed
from longshort.dialogue.solo import Solo
from longshort.evaluation.benchmarks import LoadedBenchmark, load_benchmarks
from longshort.evaluation.records import DescribedBenchmark, GradedFile, GradedLine, graded_files
from longshort.evaluation.systems import Model, System
from longshort.evaluation.tasks import Prepared, Task, open_ledger, prepare_benchmarks, read_back, run_task, tasks_of
from longshort.grading.pool import GradingPool, Verdict
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.schema import parse
from longshort.types import LONG, Completion, LongShortError, Problem

PROBLEMS = tuple(
    Problem(id=name, question=f"{name}?", answer=answer) for name, answer in (("a", "0"), ("b", "1"), ("c", "0"))
)
TOKENIZER = build_tokenizer(LONG)


class Engine:
    """Answers with the seed's last bit, whenever it is asked, `enough` times; then it fails once, if it is to, and is
    silent."""

    context, tokenizer = 500, TOKENIZER

    def __init__(self, enough=99, failure=None):
        self.enough, self.failure, self.asked = enough, failure, []

    async def generate(self, prompt_ids, sampling):
        self.asked.append(sampling.seed)
        if len(self.asked) > self.enough:
            if self.failure and len(self.asked) == self.enough + 1:
                raise self.failure
            await asyncio.Event().wait()
        text = f"So\u2028 \\boxed{{{sampling.seed % 2}}}"
        ids = (*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id)
        await asyncio.sleep(0)
        return Completion(token_ids=ids, logprobs=(-0.12345678,) * len(ids), text=text, stop="eos", version=0)


class Pool:
    async def grade(self, gold, text):
        right = f"{{{gold}}}" in text
        return Verdict(correct=right, reason="match" if right else "mismatch")


def weights(folder: Path, text: str = "w") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    return str(folder)


@pytest.fixture
def task(tmp_path) -> Task:
    """A single model on three problems, twice each."""
    models = {LONG: Model(folder=weights(tmp_path / "model"), origin=LONG)}
    loaded = LoadedBenchmark(
        name="data/three.jsonl", title="three", source="data/three.jsonl", problems=PROBLEMS, num_samples=2
    )
    return Task(
        folder=tmp_path / "eval",
        system=System(name="alone", title="alone", models=models, protocol=Solo(turn_tokens=40)),
        benchmark=Prepared(loaded=loaded, described=DescribedBenchmark(title="three")),
        decoding="sampled",
        sampling=Decoding(temperature=1.0),
        num_samples=2,
    )


CONFIG = parse({"eval": {"seed": 7}})
KEYS = ["a#0", "a#1", "b#0", "b#1", "c#0", "c#1"]


def path_of(task) -> Path:
    return task.folder / "alone.data-three-jsonl.sampled.jsonl"


def lines_of(task) -> list[dict]:
    return [json.loads(line) for line in path_of(task).read_bytes().splitlines()]


def manifest_of(task) -> dict:
    return json.loads(path_of(task).with_suffix(".manifest.json").read_text())


async def go(task, engine, ledger=None):
    await run_task(task, {LONG: engine}, Pool(), ledger or open_ledger(CONFIG, task), CONFIG.eval.seed, "label")


def test_a_task_is_a_file_of_graded_episodes_and_its_manifest(task):
    asyncio.run(go(task, Engine()))
    lines = lines_of(task)
    bits = [stable_seed(stable_seed(7, *key.split("#")), 0) % 2 for key in KEYS]
    right = [bit == answer for bit, answer in zip(bits, (0, 0, 1, 1, 0, 0), strict=True)]
    assert [line["id"] for line in lines] == KEYS and [line["sample"] for line in lines] == [0, 1] * 3
    reasons = ["match" if each else "mismatch" for each in right]
    assert [(line["correct"], line["reason"]) for line in lines] == list(zip(right, reasons, strict=True)) and 0 < sum(
        right
    ) < 6
    assert lines[0]["problem"] == {"id": "a", "question": "a?", "answer": "0"} and lines[0]["stop"] == "answered"
    assert lines[0]["turns"][0]["logprobs"][0] == -0.1235
    manifest = manifest_of(task)
    assert (
        manifest["complete"]
        and manifest["settings"]["seed"] == 7
        and manifest["settings"]["protocol"]["name"] == "Solo"
    )
    outcomes = {"match": sum(right), "mismatch": 6 - sum(right)}
    assert manifest["counts"] == {"episodes": 6, "outcomes": outcomes, "notes": {}, "correct": sum(right)}
    evaluation, reasons = read_back(task)
    assert (evaluation.correct, evaluation.num_samples, reasons) == (tuple(right), 2, outcomes)
    assert [episode.problem for episode in evaluation.episodes] == [problem for problem in PROBLEMS for _ in range(2)]


def test_a_line_is_a_graded_line_and_its_file_says_what_it_holds(task):
    """A system's name may have dots, so a file's name does not say where it ends."""
    named = replace(task, system=replace(task.system, name="qwen2.5"))
    asyncio.run(go(named, Engine()))
    (file,), unknown = graded_files(task.folder)
    assert file == GradedFile(
        path=task.folder / "qwen2.5.data-three-jsonl.sampled.jsonl",
        system="qwen2.5",
        benchmark="data/three.jsonl",
        decoding="sampled",
    )
    assert unknown == []
    line = GradedLine.model_validate_json(file.path.read_bytes().splitlines()[0])
    assert (line.id, line.sample, line.episode.problem) == ("a#0", 0, PROBLEMS[0])
    file.path.with_suffix(".manifest.json").unlink()
    assert graded_files(task.folder) == ([], [file.path])


def test_an_episode_without_an_answer_has_its_stop_as_reason(task):
    short = replace(task, system=replace(task.system, protocol=Solo(turn_tokens=0)))
    asyncio.run(go(short, Engine()))
    assert {(line["reason"], line["correct"]) for line in lines_of(short)} == {("turn_length", False)}


async def stopped(task, enough) -> None:
    """Begin, and be cancelled once the engine says no more."""
    engine = Engine(enough)
    running = asyncio.ensure_future(go(task, engine))
    while len(engine.asked) < 6 or not path_of(task).is_file() or len(path_of(task).read_bytes().splitlines()) < enough:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("torn", [False, True])
def test_what_was_interrupted_goes_on_with_what_is_missing_and_ends_as_if_it_had_not_been(task, torn):
    whole = replace(task, folder=task.folder / "whole")
    asyncio.run(go(whole, Engine()))
    asyncio.run(stopped(task, 4))
    before, manifest = path_of(task).read_bytes(), manifest_of(task)
    assert [line["id"] for line in lines_of(task)] == KEYS[:4] and (
        manifest["complete"],
        manifest["counts"]["episodes"],
    ) == (False, 4)
    kept = 3 if torn else 4
    path_of(task).write_bytes(
        before[:-9] if torn else before
    )  # a kill in the middle of a line: that attempt is made again
    engine = Engine()
    asyncio.run(go(task, engine))
    assert engine.asked == [stable_seed(stable_seed(7, *key.split("#")), 0) for key in KEYS[kept:]]
    assert path_of(task).read_bytes().splitlines()[:kept] == before.splitlines()[:kept]
    assert path_of(task).read_bytes() == path_of(whole).read_bytes() and read_back(task) == read_back(whole)
    assert manifest_of(task)["complete"] and open_ledger(CONFIG, task).complete


def test_lines_that_are_all_there_are_finished_without_asking(task):
    asyncio.run(go(task, Engine()))
    path, engine, unfinished = path_of(task), Engine(), json.dumps(manifest_of(task) | {"complete": False})
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    path.with_suffix(".manifest.json").write_text(unfinished)
    asyncio.run(go(task, engine))
    assert engine.asked == [] and [line["id"] for line in lines_of(task)] == KEYS and manifest_of(task)["complete"]


def test_after_an_engines_failure_nobody_goes_on_asking_and_what_is_done_is_kept(task):
    engine = Engine(2, LongShortError("the long engine failed 4 times"))

    async def fail() -> int:
        with pytest.raises(LongShortError, match="failed 4 times"):
            await go(task, engine)
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    assert asyncio.run(fail()) == 1  # this test's own
    assert len(engine.asked) <= 6 and not manifest_of(task)["complete"]
    assert open_ledger(CONFIG, task).rows.keys() == {line["id"] for line in lines_of(task)} <= set(KEYS[:2])


def test_a_full_disk_is_told_as_such_to_the_end(task, monkeypatch):
    """The manifest that is written on the way out meets the same full disk, and must not hide the reason behind a
    traceback."""
    ledger = open_ledger(CONFIG, task)
    monkeypatch.setattr(Path, "open", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(
        LongShortError,
        match=r"cannot be written \(No space left on device\); make room and start the same command again",
    ):
        asyncio.run(go(task, Engine(), ledger))


def with_problem(task, **changes) -> Task:
    loaded = replace(task.benchmark.loaded, problems=(replace(PROBLEMS[0], **changes), *PROBLEMS[1:]))
    return replace(task, benchmark=replace(task.benchmark, loaded=loaded))


@pytest.mark.parametrize(
    "config, change, says",
    [
        (
            {},
            lambda task: replace(task, sampling=Decoding(temperature=0.5)),
            r"made with temperature = 1.0, now 0.5; .* with --redo",
        ),
        (
            {},
            lambda task: replace(task, sampling=Decoding(top_p=0.9, top_k=5)),
            r"made with top_k = 0, now 5; ",
        ),
        ({}, lambda task: replace(task, num_samples=3), r"with num_samples = 2, now 3"),
        ({"eval": {"seed": 8}}, None, r"with seed = 7, now 8"),
        (
            {"long": {"engine": {"max_model_len": 99}}},
            None,
            r"with engines = .*'max_model_len': 2048.*, now .*'max_model_len': 99",
        ),
        ({"long": {"engine": {"backend": "transformers"}}}, None, r"with engines = .*'vllm'.*, now .*'transformers'"),
        (
            {"long": {"engine": {"extra": {"quantization": "fp8"}}}},
            None,
            r"with engines = .*'extra': \{\}.*, now .*'fp8'",
        ),
        ({}, lambda task: with_problem(task, answer="1"), r"made with list of problems = '\w{64}', now '\w{64}'"),
        ({}, lambda task: with_problem(task, question="A?"), r"made with list of problems = '\w{64}', now '\w{64}'"),
        (
            {},
            lambda task: replace(task, system=replace(task.system, protocol=Solo(turn_tokens=41))),
            r"'turn_tokens': 40.*'turn_tokens': 41",
        ),
    ],
)
def test_lines_made_otherwise_are_refused_naming_what_differs(task, monkeypatch, config, change, says):
    monkeypatch.setattr(
        "longshort.backends.ray_cluster.engine_backend", lambda engine: engine.backend.replace("auto", "vllm")
    )
    asyncio.run(stopped(task, 2))
    config = parse({"eval": {"seed": 7}} | config)
    with pytest.raises(LongShortError, match=says):
        open_ledger(config, change(task) if change else task)
    assert len(lines_of(task)) == 2


def test_what_only_costs_memory_may_change(task):
    asyncio.run(stopped(task, 2))
    engine = {"max_num_seqs": 3, "kv_cache_gib": 9, "num_gpus": 1}
    moved = parse({"eval": {"seed": 7, "base": "alone"}, "long": {"engine": engine, "price": 3}, "max_steps": 5})
    assert len(open_ledger(moved, task).rows) == 2


@pytest.mark.parametrize("complete", [False, True])
def test_a_model_is_known_by_its_weights_not_by_its_folder(task, tmp_path, complete):
    asyncio.run(go(task, Engine()) if complete else stopped(task, 2))
    copy = {LONG: Model(folder=weights(tmp_path / "copy"), origin=LONG)}
    assert open_ledger(CONFIG, replace(task, system=replace(task.system, models=copy))).complete is complete
    weights(tmp_path / "model", "trained on")
    with pytest.raises(
        LongShortError,
        match=r"alone.data-three-jsonl.sampled.manifest.json was made with models = \{'long': '\w{16}'\}, now",
    ):
        open_ledger(CONFIG, task)


def rows(path: Path, *problems: dict) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return str(path)


GOOD = {"id": "g", "problem": "1+1?", "answer": "2"}


def evaluating(**settings):
    return parse({"eval": settings})


def test_a_benchmark_that_cannot_be_used_is_told_and_the_others_go_on(tmp_path, capsys):
    good = rows(tmp_path / "good.jsonl", GOOD, GOOD | {"id": "h"})
    unanswered = rows(tmp_path / "unanswered.jsonl", GOOD, {"problem": "1+2?"})
    unreadable = rows(tmp_path / "unreadable.jsonl", GOOD, {"id": "x", "problem": "1+2?", "answer": "9^{9^{9^9}}"})
    empty, missing = rows(tmp_path / "empty.jsonl"), str(tmp_path / "none.jsonl")
    config = evaluating(
        benchmarks=[unanswered, "math5000", unreadable, {"name": good, "num_samples": 3}, empty, missing], num_samples=2
    )
    with GradingPool() as pool:
        whole, faults = prepare_benchmarks(config, pool)
    assert [(each.loaded.name, each.loaded.num_samples) for each in whole] == [(unreadable, 2), (good, 3)]
    assert [problem.id for problem in whole[0].loaded.problems] == ["g"]
    assert whole[1].described.model_dump() == {
        "title": good,
        "source": good,
        "problems": 2,
        "golds_parsed": 2,
        "golds_verified": 2,
    }
    told = capsys.readouterr().out.splitlines()
    parts = [
        "unanswered.jsonl, line 2: no answer",
        "'math5000' is not known; did you mean 'math500'?",
        "holds no problem",
        "none.jsonl: there is no such file",
    ]
    assert any(
        "unreadable.jsonl: 1 of 2 reference answers cannot be graded and are left out: x (too_" in line for line in told
    )
    for fault, part in zip(faults, parts, strict=True):
        assert part in fault and f"! {fault}" in told


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(LongShortError, match=r"there is nothing to evaluate on: benchmark: 'math5000' is not known"):
        prepare_benchmarks(evaluating(benchmarks=["math5000"]), Pool())
    with pytest.raises(LongShortError, match=r"eval.benchmarks is empty; name at least one"):
        prepare_benchmarks(evaluating(), Pool())
    with pytest.raises(LongShortError, match=r"^benchmark: 'math5000' is not known"):
        load_benchmarks(evaluating(benchmarks=["math5000"]))


def test_the_first_problems_are_taken_and_an_entry_has_its_own_number(tmp_path):
    five, six = (rows(tmp_path / f"{n}.jsonl", *(GOOD | {"id": str(i)} for i in range(n))) for n in (5, 6))
    found = load_benchmarks(evaluating(benchmarks=[five, {"name": six, "num_problems": 4}], num_problems=2))
    assert [[problem.id for problem in loaded.problems] for loaded in found] == [["0", "1"], ["0", "1", "2", "3"]]


@pytest.mark.parametrize(
    "names", [["a/b.jsonl", "a-b.jsonl"], ["x.json", "./x.json"], ["gsm8k", {"name": "gsm8k", "num_samples": 2}]]
)
def test_benchmarks_that_would_share_their_files_are_refused(names):
    with pytest.raises(
        LongShortError, match=r"would be kept in the same files \([\w-]+\); name each benchmark once, and rename a file"
    ):
        load_benchmarks(evaluating(benchmarks=names))


def test_a_long_path_still_makes_a_files_name(task):
    deep = replace(task.benchmark.loaded, name="/deep" * 60 + "/mine.jsonl")
    name = replace(task, benchmark=replace(task.benchmark, loaded=deep)).name
    assert name.startswith("alone.") and name.endswith("-deep-mine-jsonl.sampled") and len(name) <= 120


def test_greedy_stands_beside_sampled_or_alone_at_temperature_0(task):
    def ways(temperature, greedy):
        config = parse({"eval": {"temperature": temperature}, "top_p": 0.9, "top_k": 4})
        found = tasks_of(config, task.folder, task.system, [task.benchmark], greedy=greedy)
        return [(each.decoding, each.num_samples, each.sampling) for each in found]

    sampled, greedy = (
        ("sampled", 2, Decoding(temperature=0.6, top_p=0.9, top_k=4)),
        ("greedy", 1, Decoding(temperature=0.0)),
    )
    assert ways(0.6, True) == [sampled, greedy] and ways(0.6, False) == [sampled]
    assert ways(0.0, True) == ways(0.0, False) == [greedy]
