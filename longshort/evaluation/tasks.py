"""One system on one benchmark in one decoding: the unit of an evaluation's table, and of a file of graded episodes.

Every graded episode becomes a line of `eval/<evaluation>/<system>.<benchmark>.<decoding>.jsonl` at once. An
interrupted task continues with the attempts that have no line yet, and every number is computed from those lines
alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from longshort import console
from longshort.dialogue.rollout import Decoding, Engine
from longshort.evaluation.benchmarks import LoadedBenchmark, check_golds, file_part, load_benchmarks
from longshort.evaluation.records import GREEDY, SAMPLED, DescribedBenchmark
from longshort.evaluation.runner import Evaluation, attempt_key, evaluate, evaluation_of
from longshort.evaluation.systems import System
from longshort.grading.pool import GradingPool
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import text_digest
from longshort.runs.ledger import Ledger, read
from longshort.runs.model_files import identity
from longshort.types import LongShortError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A benchmark whose reference answers were checked, and its description for results files."""

    loaded: LoadedBenchmark
    described: DescribedBenchmark


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to run, and the folder of its lines."""

    folder: Path
    system: System
    benchmark: Prepared
    decoding: str
    sampling: Decoding
    num_samples: int

    @property
    def name(self) -> str:
        """The name of its files: `pair.miniature-test.sampled`. Only the manifest says what they hold."""
        return ".".join((self.system.name, file_part(self.benchmark.loaded.name), self.decoding))

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of its row: system, benchmark and decoding."""
        return self.system.name, self.benchmark.loaded.name, self.decoding

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.benchmark.loaded.problems

    @property
    def order(self) -> list[str]:
        """The ids of all its attempts."""
        return [attempt_key(problem, sample) for problem in self.problems for sample in range(self.num_samples)]


def prepare_benchmarks(config: LongShortConfig, pool: GradingPool) -> tuple[list[Prepared], list[str]]:
    """Return the usable benchmarks, and a sentence for each that is not; LongShortError if none is usable."""
    usable: list[Prepared] = []
    faults: list[str] = []
    for loaded in load_benchmarks(config, faults):
        golds = check_golds(loaded.problems, pool)
        if golds.faults:
            few = "; ".join(f"{problem} ({reason})" for problem, reason in list(golds.faults.items())[:3])
            share = f"{len(golds.faults)} of {golds.problems} reference answers"
            kept = tuple(problem for problem in loaded.problems if problem.id not in golds.faults)
            if not kept:
                faults.append(f"{loaded.name}: {share} cannot be graded: {few}; correct them")
                continue
            console.say(f"! {loaded.name}: {share} cannot be graded and are left out: {few}")
            loaded = replace(loaded, problems=kept)
            golds = check_golds(kept, pool)
        remark = f"; {loaded.remark}" if loaded.remark else ""
        console.say(
            f"  {loaded.name}: {golds.problems} problems from {loaded.source}, "
            f"{golds.verified} reference answers verified against themselves{remark}"
        )
        counts = {"problems": golds.problems, "golds_parsed": golds.parsed, "golds_verified": golds.verified}
        described = DescribedBenchmark(title=loaded.title, source=loaded.source, **counts)
        usable.append(Prepared(loaded=loaded, described=described))
    for fault in faults:
        console.say(f"! {fault}")
    if not usable:
        raise LongShortError(
            f"there is nothing to evaluate on: {faults[0]}" if faults else "eval.benchmarks is empty; name at least one"
        )
    return usable, faults


def tasks_of(
    config: LongShortConfig, folder: Path, system: System, benchmarks: Sequence[Prepared], *, greedy: bool
) -> list[Task]:
    """Return a system's tasks: sampled, and greedy if requested; only greedy if the recipe's temperature is 0."""
    sampled = Decoding(temperature=config.eval.temperature, top_p=config.top_p, top_k=config.top_k)
    tasks = []
    for benchmark in benchmarks:
        task = partial(Task, folder=folder, system=system, benchmark=benchmark)
        if sampled.temperature:
            tasks.append(task(decoding=SAMPLED, sampling=sampled, num_samples=benchmark.loaded.num_samples))
        if greedy or not sampled.temperature:
            tasks.append(task(decoding=GREEDY, sampling=Decoding(temperature=0.0), num_samples=1))
    return tasks


def open_ledger(config: LongShortConfig, task: Task, *, models: Mapping[str, str] | None = None) -> Ledger:
    """Open the task's lines; LongShortError if they were made by other models, on other problems or with other
    settings.

    `models` names the models of a pair in training, which are no files.
    """
    settings = {
        "models": models or {role: identity(model.folder, role) for role, model in task.system.models.items()},
        "engines": {role: model.arithmetic(config) for role, model in task.system.models.items()},
        "protocol": {"name": type(task.system.protocol).__name__, **vars(task.system.protocol)},
        "temperature": task.sampling.temperature,
        "top_p": task.sampling.top_p,
        "top_k": task.sampling.top_k,
        "num_samples": task.num_samples,
        "seed": config.eval.seed,
    }
    texts = (text for problem in task.problems for text in (problem.id, problem.question, problem.answer))
    return Ledger(
        task.folder,
        task.name,
        settings,
        {"list of problems": text_digest(texts)},
        items="episodes",
        outcome="reason",
        redo="--redo",
        about=dict(zip(("system", "benchmark", "decoding"), task.key, strict=True)),
    )


async def run_task(
    task: Task, policies: Mapping[str, Engine], pool: GradingPool, ledger: Ledger, seed: int, label: str
) -> None:
    """Make a task's missing attempts and complete its ledger; an interrupted task keeps what it has."""
    before, total, began = len(ledger.rows), len(task.order), time.monotonic()

    def status() -> str:
        done = len(ledger.rows) - before
        eta = console.duration((time.monotonic() - began) / done * (total - len(ledger.rows))) if done else "…"
        return f"{label}: {len(ledger.rows)}/{total} episodes, eta {eta}"

    try:
        async with console.heartbeat(status):
            await evaluate(
                policies,
                task.system.protocol,
                task.problems,
                pool,
                task.sampling,
                num_samples=task.num_samples,
                seed=seed,
                ledger=ledger,
            )
    finally:
        ledger.pause(time.monotonic() - began)
    await asyncio.to_thread(ledger.finish, task.order, {"correct": sum(row["correct"] for row in ledger.rows.values())})


def read_back(task: Task) -> tuple[Evaluation, dict[str, int]]:
    """Return a finished task's episodes, and how often each reason of a verdict occurred."""
    rows = {row["id"]: row for row in read(task.folder / f"{task.name}.jsonl")}
    reasons = Counter(row["reason"] for row in rows.values())
    return evaluation_of(rows, task.problems, task.num_samples), dict(reasons)
