"""What a step of the cold start is, and what it works on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from longshort import console
from longshort.coldstart.records import Refused, Trace, TraceLine
from longshort.coldstart.step_names import STEP_TITLES
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import stable_seed
from longshort.recipe.coldstart import ColdStartConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.ledger import Ledger
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


@dataclass(frozen=True, slots=True, kw_only=True)
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
        """Write `await make(trace)` for every trace to do, at most `at_once` side by side; the first error stops
        all."""
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
