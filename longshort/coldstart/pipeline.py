"""`longshort coldstart`: the steps from long traces to training rows, each a file of one line per trace (longshort/runs/ledger.py).

    chunk -> rollouts -> importance -> partition -> rewrite -> rows -> (sft: longshort/coldstart/sft.py)

A step is a coroutine plus one line in `STEPS`; a trace that one step refuses is passed by in all that follow, with the reason counted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshort import console
from longshort.coldstart import steps
from longshort.coldstart.records import OK, Trace
from longshort.coldstart.rewriting import KEPT, REPAIRED
from longshort.coldstart.traces import load_traces
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import stable_seed
from longshort.recipe.schema import LongShortConfig
from longshort.runs.ledger import Ledger, Row, digest, read
from longshort.types import LongShortError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What it does, the earlier steps whose lines it reads (the last of them decides which traces are still there), the settings that its
    result depends on, the coroutine that does it, and what its manifest counts besides outcomes."""

    title: str
    reads: tuple[str, ...]
    settings: Callable[[LongShortConfig], dict[str, Any]]
    work: Callable[[Work], Awaitable[None]]
    counts: Callable[[Work], dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Work:
    """What a step works on: the earlier steps' lines by name and trace; the traces still there, and those of them without a line yet;
    and where finished lines go."""

    config: LongShortConfig
    pool: GradingPool
    traces: Mapping[str, Trace]
    earlier: Mapping[str, Mapping[str, Row]]
    alive: Sequence[str]
    todo: Sequence[str]
    ledger: Ledger
    began: float = field(default_factory=time.monotonic)
    finished: int = 0

    @property
    def coldstart(self):
        return self.config.coldstart

    def seed(self, trace: str) -> int:
        """One seed per step and trace, whatever the order in which traces are done."""
        return stable_seed(self.config.seed, self.ledger.step, trace)

    def good(self) -> list[Row]:
        """The lines of the traces that came through this step, whenever they were written."""
        return [row for row in self.ledger.rows.values() if row["outcome"] in CONTINUE]

    def restart_clock(self) -> None:
        """The estimate of what is left counts from now on: an engine has started."""
        self.began = time.monotonic()

    def done(self, trace: str, outcome: str = OK, /, **values: Any) -> None:
        """Write a trace's line."""
        self.ledger.append({"id": trace, "outcome": outcome, **values})
        self.finished += 1

    async def each(self, function: Callable[[str], Awaitable[None]], at_once: int) -> None:
        """`await function(trace)` for every trace to do, at most `at_once` of them at the same time; stops all at the first error."""
        free = asyncio.Semaphore(at_once)

        async def one(trace: str) -> None:
            async with free:
                await function(trace)
                await asyncio.sleep(0)  # so that a signal is heard and progress shown even where nothing is waited for

        async with console.heartbeat(self.status):
            tasks = [asyncio.ensure_future(one(trace)) for trace in self.todo]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> str:
        """`chunk 40/120 traces, eta 2m10s`"""
        left = len(self.todo) - self.finished
        eta = (time.monotonic() - self.began) / self.finished * left if self.finished else None
        return f"{self.ledger.step} {self.finished}/{len(self.todo)} traces, eta {console.duration(eta) if eta is not None else '…'}"


def folder_of(config: LongShortConfig) -> Path:
    """Where the steps' files are."""
    return Path(config.output_dir) / "thoughts"


async def run_steps(config: LongShortConfig, names: Sequence[str]) -> None:
    """Do the named steps in order; what is done is skipped."""
    grading = config.grading
    with GradingPool(workers=grading.workers, timeout_s=grading.timeout_s, memory_mb=grading.memory_mb) as pool:
        for name in names:
            await _run_step(config, name, pool)


async def _run_step(config: LongShortConfig, name: str, pool: GradingPool) -> None:
    step, folder, began = STEPS[name], folder_of(config), time.monotonic()
    earlier = {read: _finished(folder, read) for read in step.reads}
    ledger = Ledger(folder, name, step.settings(config), _inputs(config, folder, step))
    if ledger.complete:
        console.say(f"  {name:<10} done before ({_told(ledger)}), skipped")
        return
    console.say(f"  {name:<10} {step.title}" + (f"; {len(ledger.rows)} traces were done before" if ledger.rows else ""))
    traces: dict[str, Trace] = {}
    if not step.reads:
        section = config.coldstart
        found = await asyncio.to_thread(load_traces, section.traces, section.num_traces, pool, config.seed)
        traces = {trace.id: trace for trace in found}
    order = list(earlier[step.reads[-1]] if step.reads else traces)
    alive = [trace for trace in order if not step.reads or earlier[step.reads[-1]][trace]["outcome"] in CONTINUE]
    todo = [trace for trace in alive if trace not in ledger.rows]
    work = Work(config=config, pool=pool, traces=traces, earlier=earlier, alive=alive, todo=todo, ledger=ledger)
    try:
        if todo:
            await step.work(work)
    finally:
        ledger.pause(time.monotonic() - began)
    for trace in order:
        if trace not in ledger.rows:
            ledger.append({"id": trace, "outcome": DROPPED_BEFORE})
    ledger.finish(order, step.counts(work))
    console.say(f"  {name:<10} {_told(ledger)} ({console.duration(time.monotonic() - began)})")
    if not any(row["outcome"] in CONTINUE for row in ledger.rows.values()):
        raise LongShortError(f"{name}: not one of {len(order)} traces came through; the reasons are in {ledger.path}")


def _finished(folder: Path, name: str) -> dict[str, Row]:
    """The lines of a step that must be complete by now."""
    manifest = folder / f"{name}.manifest.json"
    if not manifest.is_file() or not json.loads(manifest.read_text())["complete"]:
        raise LongShortError(
            f"{folder / name}.jsonl is not complete; run `longshort {name}` first, or `longshort coldstart` for all steps"
        )
    rows = {row["id"]: row for row in read(folder / f"{name}.jsonl")}
    told = json.loads(manifest.read_text())["counts"]["traces"]
    if len(rows) != told:
        raise LongShortError(
            f"{folder / name}.jsonl has {len(rows)} lines, its manifest says {told}; make it again with --redo {name}"
        )
    return rows


def _inputs(config: LongShortConfig, folder: Path, step: Step) -> dict[str, str]:
    """Hashes of what the step reads: the earlier steps' files, or the file of traces."""
    source = Path(config.coldstart.traces)
    if not step.reads:
        return {"traces": digest(source)} if source.is_file() else {}
    return {name: digest(folder / f"{name}.jsonl") for name in step.reads}


def _told(ledger: Ledger) -> str:
    """`120 traces: ok 118, one_paragraph 2`"""
    outcomes = Counter(row["outcome"] for row in ledger.rows.values())
    return f"{len(ledger.rows)} traces: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common())


CONTINUE = (OK, KEPT, REPAIRED)
"""Outcomes of a trace that the next step works on."""
DROPPED_BEFORE = "dropped_before"

STEPS = {
    "chunk": Step(
        title="cut traces into thoughts",
        reads=(),
        settings=steps.chunk_settings,
        work=steps.chunk,
        counts=steps.chunk_counts,
    ),
    "rollouts": Step(
        title="continue every prefix",
        reads=("chunk",),
        settings=steps.rollout_settings,
        work=steps.rollouts,
        counts=steps.rollout_counts,
    ),
    "importance": Step(
        title="score every thought",
        reads=("chunk", "rollouts"),
        settings=steps.importance_settings,
        work=steps.importance,
        counts=steps.importance_counts,
    ),
    "partition": Step(
        title="long or short",
        reads=("importance",),
        settings=steps.partition_settings,
        work=steps.partition,
        counts=steps.partition_counts,
    ),
    "rewrite": Step(
        title="write the short messages anew",
        reads=("chunk", "partition"),
        settings=steps.rewrite_settings,
        work=steps.rewrite_short,
        counts=steps.rewrite_counts,
    ),
    "rows": Step(
        title="render both roles' training rows",
        reads=("chunk", "rewrite"),
        settings=steps.row_settings,
        work=steps.rows,
        counts=steps.row_counts,
    ),
}
