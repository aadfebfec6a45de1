"""Who holds the GPUs: engines and learners at once, or in turns.

In turns, all engines sleep from the moment the first learner starts on an update until the last one has finished, so that two learners of
one step may share a GPU with both engines. An engine sleeps at level 2 (its weights are forgotten, for new ones come) when its own role
learns, else at level 1 (they wait in host memory).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

KEEP, FORGET = 1, 2
"""vLLM's levels of sleep."""


class Resident:
    """Engines and learners keep their memory; nobody waits."""

    @contextlib.asynccontextmanager
    async def learning(self, role: str) -> AsyncIterator[None]:
        """The role's learner works inside."""
        yield

    def forgot(self, role: str) -> bool:
        """Whether the role's engine needs its weights again, changed or not."""
        return False

    @contextlib.asynccontextmanager
    async def receiving(self, role: str) -> AsyncIterator[None]:
        """The role's engine is given weights inside, and can be asked afterwards."""
        yield


class InTurns(Resident):
    """`engines` (by role) sleep while any learner works; `learners` give back what they only need for an update before they wake."""

    def __init__(self, engines: Mapping[str, Any], learners: Mapping[str, Any]):
        self._engines, self._learners = engines, learners
        self._asleep: dict[str, int] = {}
        self._working: set[str] = set()
        self._falling = asyncio.Lock()
        self._free = asyncio.Event()

    @contextlib.asynccontextmanager
    async def learning(self, role: str) -> AsyncIterator[None]:
        self._working.add(role)
        self._free.clear()
        try:
            await asyncio.sleep(0)  # the partner's update, begun in the same step, says so first
            async with self._falling:
                await self._sleep()
            yield
            await self._learners[role].free_cache()
        finally:
            self._working.discard(role)
            if not self._working:
                self._free.set()
        await self._free.wait()
        for partner in [name for name, level in self._asleep.items() if level == KEEP]:
            del self._asleep[partner]
            await self._engines[partner].wake(("weights", "kv_cache"))

    async def _sleep(self) -> None:
        for role, engine in self._engines.items():
            if role not in self._asleep:
                self._asleep[role] = FORGET if role in self._working else KEEP
                await engine.sleep(self._asleep[role])

    def forgot(self, role: str) -> bool:
        return role in self._asleep

    @contextlib.asynccontextmanager
    async def receiving(self, role: str) -> AsyncIterator[None]:
        await self._engines[role].wake(("weights",))
        yield
        await self._engines[role].wake(("kv_cache",))
        self._asleep.pop(role, None)
