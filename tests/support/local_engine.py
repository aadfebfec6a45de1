"""An engine in the process of the test, behind the `Engine` contract of longshort/dialogue/rollout.py."""

import asyncio
from collections.abc import Sequence
from typing import Any

from longshort.backends.engines.engine_loop import EngineLoop, OnTokens, make_core
from longshort.recipe.sections import EngineConfig
from longshort.types import Completion, Sampling


class LocalEngine:
    """What RemoteEngine is for a process, without batching of requests and without supervision."""

    def __init__(self, backend: str, model: str, config: EngineConfig, tokenizer: Any):
        self.tokenizer, self.context = tokenizer, config.max_model_len
        self.loop = EngineLoop(lambda: make_core(backend, model, config, seed=0))
        self._count, self._pending, self._collector = 0, {}, None

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, on_tokens: OnTokens | None = None
    ) -> Completion:
        self._count += 1
        request_id, future = str(self._count), asyncio.get_running_loop().create_future()
        self._pending[request_id] = (future, on_tokens, [])
        self.loop.submit([(request_id, tuple(prompt_ids), sampling, on_tokens is not None)])
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(request_id, None):
                self.loop.abort([request_id])
            raise

    async def _collect(self) -> None:
        while self._pending:
            for request_id, output in await asyncio.to_thread(self.loop.collect):
                if request_id not in self._pending:
                    continue
                future, on_tokens, ids = self._pending[request_id]
                if isinstance(output, Completion):
                    del self._pending[request_id]
                    future.set_result(output)
                else:
                    ids.extend(output[1])
                    on_tokens(ids)
