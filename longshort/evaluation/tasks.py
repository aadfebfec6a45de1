"""One system on one benchmark in one decoding: the unit of an evaluation's table, and of a file of graded episodes.

Every graded episode is a line in `eval/<evaluation>/<system>.<benchmark>.<decoding>.jsonl` at once; what was interrupted goes on with the
attempts that have no line yet, and every number is worked out from those lines alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort import console
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import Decoding
from longshort.evaluation.benchmarks import GoldCheck, LoadedBenchmark, check_golds, file_part, load_benchmarks
from longshort.evaluation.records import GREEDY, SAMPLED
from longshort.evaluation.runner import Evaluation, attempt_key, evaluate, evaluation_of, write_to
from longshort.evaluation.systems import System
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import text_digest
from longshort.runs.ledger import Ledger, read
from longshort.runs.model_files import identity
from longshort.types import LongShortError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A benchmark whose reference answers have been checked, and how many samples the recipe takes of each problem."""

    loaded: LoadedBenchmark
    golds: GoldCheck
    num_samples: int

    @property
    def facts(self) -> dict[str, Any]:
        """What the results file says about it."""
        golds = {
            "problems": self.golds.problems,
            "golds_parsed": self.golds.parsed,
            "golds_verified": self.golds.verified,
        }
        return {"title": self.loaded.title, "source": self.loaded.source, **golds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to run, and where its lines are kept."""

    folder: Path
    system: System
    benchmark: Prepared
    decoding: str
    sampling: Decoding
    num_samples: int

    @property
    def name(self) -> str:
        """Of its files: `pair.miniature-test.sampled`"""
        return ".".join((self.system.name, file_part(self.benchmark.loaded.name), self.decoding))

    @property
    def order(self) -> list[str]:
        """The ids of all its attempts."""
        return [
            attempt_key(problem, sample)
            for problem in self.benchmark.loaded.problems
            for sample in range(self.num_samples)
        ]


def prepare_benchmarks(config: LongShortConfig, pool: GradingPool) -> tuple[list[Prepared], list[str]]:
    """Every benchmark of the recipe that is whole, and a sentence for every one that is not. LongShortError where none is."""
    whole: list[Prepared] = []
    faults: list[str] = []
    for loaded, num_samples in load_benchmarks(config, faults):
        golds = check_golds(loaded.problems, pool)
        if golds.faults:
            few = "; ".join(f"{problem} ({reason})" for problem, reason in list(golds.faults.items())[:3])
            faults.append(
                f"{loaded.name}: {len(golds.faults)} of {golds.problems} reference answers cannot be graded: {few}; correct them"
            )
            continue
        remark = f"; {loaded.remark}" if loaded.remark else ""
        counted = f"{golds.problems} problems from {loaded.source}, {golds.verified} reference answers verified against themselves"
        console.say(f"  {loaded.name}: {counted}{remark}")
        whole.append(Prepared(loaded=loaded, golds=golds, num_samples=num_samples))
    for fault in faults:
        console.say(f"! {fault}")
    if not whole:
        raise LongShortError(
            f"there is nothing to evaluate on: {faults[0]}" if faults else "eval.benchmarks is empty; name at least one"
        )
    return whole, faults


def tasks_of(
    config: LongShortConfig, folder: Path, system: System, benchmarks: Sequence[Prepared], *, greedy: bool
) -> list[Task]:
    """Sampled as the recipe says, and greedy beside it where that is wanted or the recipe's temperature is 0."""
    tasks = []
    sampled = Decoding(temperature=config.eval.temperature, top_p=config.top_p, top_k=config.top_k)
    for benchmark in benchmarks:
        ways = [(SAMPLED, sampled, benchmark.num_samples)] if sampled.temperature else []
        ways += [(GREEDY, Decoding(temperature=0.0), 1)] if greedy or not ways else []
        tasks += [
            Task(
                folder=folder,
                system=system,
                benchmark=benchmark,
                decoding=decoding,
                sampling=sampling,
                num_samples=samples,
            )
            for decoding, sampling, samples in ways
        ]
    return tasks


def open_ledger(config: LongShortConfig, task: Task, *, models: Mapping[str, str] | None = None) -> Ledger:
    """The task's lines; LongShortError where they were made by other models, on other problems or with other settings.

    `models` says what the models are where they are no files: those of a pair in training.
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
    problems = text_digest(
        text for problem in task.benchmark.loaded.problems for text in (problem.id, problem.question, problem.answer)
    )
    return Ledger(
        task.folder,
        task.name,
        settings,
        {"list of problems": problems},
        items="episodes",
        outcome="reason",
        redo="--redo",
    )


async def run_task(
    task: Task, policies: Mapping[str, Any], pool: GradingPool, ledger: Ledger, seed: int, label: str
) -> None:
    """Do what is missing of a task and complete its ledger; a run that is stopped keeps what it has."""
    before, order, began = len(ledger.rows), task.order, time.monotonic()

    def status() -> str:
        done = len(ledger.rows) - before
        left = (time.monotonic() - began) / done * (len(order) - len(ledger.rows)) if done else None
        return f"{label}: {len(ledger.rows)}/{len(order)} episodes, eta {console.duration(left) if left is not None else '…'}"

    try:
        async with console.heartbeat(status):
            await evaluate(
                policies,
                task.system.protocol,
                task.benchmark.loaded.problems,
                pool,
                task.sampling,
                num_samples=task.num_samples,
                seed=seed,
                keep=write_to(ledger),
                done=set(ledger.rows),
            )
    finally:
        ledger.pause(time.monotonic() - began)
    await asyncio.to_thread(ledger.finish, order, {"correct": sum(row["correct"] for row in ledger.rows.values())})


def read_back(task: Task) -> tuple[Evaluation, dict[str, int]]:
    """A finished task's episodes, and how often each reason of a verdict occurred."""
    rows = {row["id"]: row for row in read(task.folder / f"{task.name}.jsonl")}
    reasons = Counter(row["reason"] for row in rows.values())
    return evaluation_of(rows, task.benchmark.loaded.problems, task.num_samples), dict(reasons)
