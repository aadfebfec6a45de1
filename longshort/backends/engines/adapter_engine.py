"""One engine process for several roles, as each of them sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longshort.backends.engines.remote_engine import Delivery, RemoteEngine
from longshort.types import Completion, Sampling


class AdapterEngine:
    """One role's view of a shared engine: its turns are written with its adapter, its updates replace that alone.

    Both views have the same process, restarts and counters; a restarted process gets both adapters again.
    """

    def __init__(self, role: str, engine: RemoteEngine):
        self.role, self.waiting, self._engine = role, 0, engine
        self.tokenizer, self.context, self.backend = engine.tokenizer, engine.context, engine.backend
        self.start, self.restart, self.stats = engine.start, engine.restart, engine.stats
        self.close = engine.close

    @property
    def restarts(self) -> int:
        return self._engine.restarts

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self.waiting += 1
        try:
            return await self._engine.generate(prompt_ids, replace(sampling, adapter=self.role))
        finally:
            self.waiting -= 1

    async def receive(self, delivery: Delivery) -> None:
        await self._engine.receive(delivery, self.role)
