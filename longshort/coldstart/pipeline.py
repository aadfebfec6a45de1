"""What a step of the cold start is, what it works on, and how it is run: a file of one line per trace (runs/ledger.py).

    chunk -> rollouts -> importance -> partition -> rewrite -> rows -> (sft: longshort/coldstart/sft.py)

The steps are in longshort/coldstart/steps.py. A trace that one step refuses is left out of all later ones, and the
reason is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from longshort import console
from longshort.coldstart.records import DROPPED_BEFORE, Refused, StepManifest, Trace, TraceLine
from longshort.coldstart.step_names import STEP_TITLES
from longshort.coldstart.traces import load_traces
from longshort.dialogue.rollout import stable_seed
from longshort.grading.pool import GradingPool
from longshort.recipe.coldstart import ColdStartConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import file_digest
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import Ledger, read
from longshort.types import LongShortError
from longshort.waiting import gather_or_cancel

AnyLine = TypeVar("AnyLine", bound=TraceLine)


def section_of(config: LongShortConfig) -> ColdStartConfig:
    """Return the recipe's section `coldstart`; LongShortError where it has none."""
    if config.coldstart is None:
        raise LongShortError(
            "the recipe has no section `coldstart:`; name at least coldstart.traces (a file of long traces)"
        )
    return config.coldstart


@dataclass(frozen=True, slots=True)
class ColdStartStep:
    """A step: the lines it writes and those it reads (the last of them decides which traces are left), the settings
    that its result depends on, the coroutine that writes the lines still missing, and what its manifest counts besides
    outcomes."""

    writes: type[TraceLine]
    reads: tuple[type[TraceLine], ...]
    settings: Callable[[LongShortConfig], dict[str, Any]]
    run: Callable[[StepWork], Awaitable[None]]
    counts: Callable[[StepWork], dict[str, Any]]

    @property
    def name(self) -> str:
        return self.writes.step

    @property
    def title(self) -> str:
        return STEP_TITLES[self.name]


@dataclass(slots=True, kw_only=True)
class StepWork:
    """What one run of a step works on: the earlier steps' lines, the traces that are left, those of them without a line
    yet (`todo`), and the ledger that finished lines go to. `traces` is empty for every step but the first."""

    config: LongShortConfig
    step: ColdStartStep
    pool: GradingPool
    traces: Mapping[str, Trace]
    earlier: Mapping[type[TraceLine], Mapping[str, TraceLine]]
    alive: Sequence[str]
    todo: Sequence[str]
    ledger: Ledger
    began: float = field(default_factory=time.monotonic)
    finished: int = 0

    @property
    def section(self) -> ColdStartConfig:
        return section_of(self.config)

    def lines(self, kind: type[AnyLine]) -> Mapping[str, AnyLine]:
        """Return an earlier step's lines by trace."""
        return cast(Mapping[str, AnyLine], self.earlier[kind])

    def written(self, kind: type[AnyLine]) -> list[AnyLine]:
        """Return this step's own lines, also those of an earlier run that was interrupted."""
        return [kind.model_validate(row) for row in self.ledger.rows.values()]

    def good(self, kind: type[AnyLine]) -> list[AnyLine]:
        """Return this step's lines of the traces that go on."""
        return [line for line in self.written(kind) if line.continues]

    def seed(self, trace: str) -> int:
        """Return the seed of this step and trace; it does not depend on the order in which traces are done."""
        return stable_seed(self.config.seed, self.step.name, trace)

    def restart_clock(self) -> None:
        """Estimate the time left from now on: an engine has started."""
        self.began = time.monotonic()

    async def each(self, make: Callable[[str], Awaitable[TraceLine]], at_once: int) -> None:
        """Write `await make(trace)` for every trace to do, `at_once` side by side; stop all at the first error."""
        free = asyncio.Semaphore(at_once)

        async def one(trace: str) -> None:
            async with free:
                try:
                    line = await make(trace)
                except Refused as error:
                    line = self.step.writes(id=trace, outcome=error.outcome, detail=str(error))
                self.ledger.append(line.row())
                self.finished += 1
                await asyncio.sleep(0)  # lets signals and the progress line through where nothing else is awaited

        async with console.heartbeat(self.status):
            await gather_or_cancel(*map(one, self.todo))

    def status(self) -> str:
        """Return the progress line: `chunk 40/120 traces, eta 2m10s`."""
        left, eta = len(self.todo) - self.finished, "…"
        if self.finished:
            eta = console.duration((time.monotonic() - self.began) / self.finished * left)
        return f"{self.step.name} {self.finished}/{len(self.todo)} traces, eta {eta}"


async def run_steps(config: LongShortConfig, steps: Sequence[ColdStartStep]) -> None:
    """Do the steps in order; skip what is done."""
    with GradingPool.of(config.grading) as pool:
        for step in steps:
            await _run_step(config, step, pool)


async def _run_step(config: LongShortConfig, step: ColdStartStep, pool: GradingPool) -> None:
    folder, began = RunFolder.of(config).thoughts, time.monotonic()
    earlier = {kind: _finished_lines(folder, kind) for kind in step.reads}
    ledger = Ledger(folder, step.name, step.settings(config), _inputs(config, folder, step))
    if ledger.complete:
        console.say(f"  {step.name:<10} done before ({_outcomes(ledger)}), skipped")
        return
    before = f"; {len(ledger.rows)} traces were done before" if ledger.rows else ""
    console.say(f"  {step.name:<10} {step.title}{before}")
    traces = {}
    if step.reads:
        last = earlier[step.reads[-1]]
        order, alive = list(last), [trace for trace, line in last.items() if line.continues]
    else:
        section = section_of(config)
        loaded = await asyncio.to_thread(load_traces, section.traces, section.num_traces, pool, config.seed)
        traces = {trace.id: trace for trace in loaded}
        order = alive = list(traces)
    todo = [trace for trace in alive if trace not in ledger.rows]
    work = StepWork(
        config=config, step=step, pool=pool, traces=traces, earlier=earlier, alive=alive, todo=todo, ledger=ledger
    )
    try:
        if todo:
            await step.run(work)
    finally:
        ledger.pause(time.monotonic() - began)
    for trace in order:
        if trace not in ledger.rows:
            ledger.append(TraceLine(id=trace, outcome=DROPPED_BEFORE).row())
    ledger.finish(order, step.counts(work))
    console.say(f"  {step.name:<10} {_outcomes(ledger)} ({console.duration(time.monotonic() - began)})")
    if not work.good(TraceLine):
        raise LongShortError(
            f"{step.name}: not one of {len(order)} traces came through; the reasons are in {ledger.path}"
        )


def check_complete(folder: Path, step: str) -> StepManifest:
    """Return the manifest of a complete step; LongShortError where it is not complete."""
    place = folder / f"{step}.manifest.json"
    manifest = StepManifest.model_validate_json(place.read_bytes()) if place.is_file() else None
    if manifest is None or not manifest.complete:
        remedy = f"run `longshort {step}` first, or `longshort coldstart` for all steps"
        raise LongShortError(f"{folder / step}.jsonl is not complete; {remedy}")
    return manifest


def _finished_lines(folder: Path, kind: type[TraceLine]) -> dict[str, TraceLine]:
    """Return a complete step's lines by trace; LongShortError where lines are missing."""
    expected, path = check_complete(folder, kind.step).counts.traces, folder / f"{kind.step}.jsonl"
    lines = {line.id: line for line in map(kind.model_validate, read(path))}
    if len(lines) != expected:
        raise LongShortError(
            f"{path} has {len(lines)} lines, its manifest says {expected}; make it again with --redo {kind.step}"
        )
    return lines


def _inputs(config: LongShortConfig, folder: Path, step: ColdStartStep) -> dict[str, str]:
    """Return the hashes of what the step reads: the earlier steps' files, or the file of traces."""
    source = Path(section_of(config).traces)
    if not step.reads:
        return {"traces": file_digest(source)} if source.is_file() else {}
    return {kind.step: file_digest(folder / f"{kind.step}.jsonl") for kind in step.reads}


def _outcomes(ledger: Ledger) -> str:
    """Return e.g. `120 traces: ok 118, one_paragraph 2`."""
    outcomes = Counter(row["outcome"] for row in ledger.rows.values())
    return f"{len(ledger.rows)} traces: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
