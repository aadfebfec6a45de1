"""Who holds the GPUs: engines and learners at the same time, or in turns.

In turns, all engines sleep from the first learner's start on an update until the last learner has finished, so two
learners may share a GPU with both engines. vLLM has two levels of sleep. An engine whose own role learns sleeps at
level 2: its weights are dropped, since new ones come. The others sleep at level 1: their weights wait in host memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.learners.remote_learner import RemoteLearner

KEEP_WEIGHTS, DROP_WEIGHTS = 1, 2


class NoTimeShare:
    """Engines and learners keep their memory and never wait for each other."""

    @contextlib.asynccontextmanager
    async def learning(self, role: str) -> AsyncIterator[None]:
        """Enter while the role's learner works."""
        yield

    def dropped_weights(self, role: str) -> bool:
        """Whether the role's engine needs its weights again, changed or not."""
        return False

    @contextlib.asynccontextmanager
    async def receiving(self, role: str) -> AsyncIterator[None]:
        """Enter while the role's engine receives weights; afterwards it answers again."""
        yield


class TimeShare(NoTimeShare):
    """All engines sleep while any learner works; learners free what only an update needs before the engines wake."""

    def __init__(self, engines: Mapping[str, RemoteEngine], learners: Mapping[str, RemoteLearner]):
        self._engines, self._learners = engines, learners
        self._sleep_levels: dict[str, int] = {}
        self._learning: set[str] = set()
        self._putting_to_sleep = asyncio.Lock()
        self._nobody_learns = asyncio.Event()

    @contextlib.asynccontextmanager
    async def learning(self, role: str) -> AsyncIterator[None]:
        self._learning.add(role)
        self._nobody_learns.clear()
        try:
            await asyncio.sleep(0)  # lets the partner's update of the same step register first
            async with self._putting_to_sleep:
                await self._sleep()
            yield
            await self._learners[role].free_cache()
        finally:
            self._learning.discard(role)
            if not self._learning:
                self._nobody_learns.set()
        await self._nobody_learns.wait()
        for partner in [name for name, level in self._sleep_levels.items() if level == KEEP_WEIGHTS]:
            del self._sleep_levels[partner]
            await self._engines[partner].wake(("weights", "kv_cache"))

    async def _sleep(self) -> None:
        for role, engine in self._engines.items():
            if role not in self._sleep_levels:
                self._sleep_levels[role] = DROP_WEIGHTS if role in self._learning else KEEP_WEIGHTS
                await engine.sleep(self._sleep_levels[role])

    def dropped_weights(self, role: str) -> bool:
        return role in self._sleep_levels

    @contextlib.asynccontextmanager
    async def receiving(self, role: str) -> AsyncIterator[None]:
        await self._engines[role].wake(("weights",))
        yield
        await self._engines[role].wake(("kv_cache",))
        self._sleep_levels.pop(role, None)
