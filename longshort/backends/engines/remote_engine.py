"""The driver's side of an engine in another process: batches requests, delivers turns, and replaces a failed process.

Ray-free: the functions that spawn and kill a process are handed in (longshort/backends/ray_cluster.py).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longshort import console
from longshort.backends.engines.engine_loop import OnTokens
from longshort.backends.remote import reason_of, result_of
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import Completion, LongShortError, Sampling

Delivery = Callable[[Any], Awaitable[Any]]
"""Brings a policy's weights to the engine process it is called with, which may be a replacement."""
START_TIMEOUT_S = 300.0
"""For loading a model on a busy machine."""


@dataclass(slots=True)
class _Pending:
    """A turn that was requested and not delivered yet."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[Completion]
    on_tokens: OnTokens | None
    ids: list[int] = field(default_factory=list)
    attempts: int = 0
    """How often an engine process was given the request."""

    def fail(self, error: LongShortError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class RemoteEngine:
    """One policy's engine behind the `Engine` contract of longshort/dialogue/rollout.py.

    Requests made in one tick of the event loop travel in one call; finished turns come back several at once. A process
    that dies, does not answer for `engine_timeout_s` or answers nonsense is replaced, given the current weights and
    asked again for every turn it owes; with per-request seeds the turns come out the same. A turn fails with
    LongShortError when this happened more than `max_engine_restarts` times while it waited; all waiting turns fail
    when the engine failed that often without delivering any.
    """

    def __init__(
        self,
        role: str,
        config: LongShortConfig,
        tokenizer: Any,
        engine: EngineConfig,
        backend: str,
        model: str,
        *,
        spawn: Callable[[], Any],
        kill: Callable[[Any, int | None], None],
        failure: type[BaseException],
    ):
        self.role, self.tokenizer, self.context = role, tokenizer, engine.max_model_len
        self.backend, self.restarts = backend, 0
        self._config, self._engine, self._model = config, engine, model
        self._spawn, self._kill = spawn, kill
        self._failures = (failure, TimeoutError, RuntimeError)
        self._generation = self._failures_in_a_row = 0
        self._deliveries: dict[str, Delivery] = {}
        self._pending: dict[str, _Pending] = {}
        self._outbox: list[str] = []
        self._ids = itertools.count()
        self._collector: asyncio.Task[None] | None = None
        self._recovering = False
        self._lock = asyncio.Lock()
        self._pid: int | None = None
        self._actor = spawn()

    @property
    def waiting(self) -> int:
        """Turns that were requested and not delivered yet."""
        return len(self._pending)

    async def start(self) -> int | None:
        """Wait until the engine has loaded its model; return its process id, if it runs on this node.

        Raises LongShortError with its reason.
        """
        limit = max(START_TIMEOUT_S, self._config.engine_timeout_s)
        try:
            self._pid = pid = await asyncio.wait_for(result_of(self._actor.ready.remote()), limit)
            return pid
        except self._failures as error:
            raise LongShortError(
                f"the {self.role} engine ({self.backend}, {self._model}) did not start: {reason_of(error)}; if memory "
                f"ran out, lower {self.role}.engine.kv_cache_gib ({self._engine.kv_cache_gib}), max_model_len or "
                "max_num_seqs"
            ) from error

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, on_tokens: OnTokens | None = None
    ) -> Completion:
        """Sample one turn. `on_tokens(ids_so_far)` is called while it is written; a replaced process starts over."""
        loop = asyncio.get_running_loop()
        request_id, future = f"{self.role}-{next(self._ids)}", loop.create_future()
        self._pending[request_id] = _Pending(tuple(prompt_ids), sampling, future, on_tokens)
        if not self._outbox:
            loop.call_soon(self._flush)
        self._outbox.append(request_id)
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(request_id, None):
                self._actor.abort.remote([request_id])
            raise

    async def receive(self, delivery: Delivery, adapter: str = "") -> None:
        """Have weights delivered. A refusal (LongShortError) changes nothing; a crash restarts the engine with them.

        `adapter`: the role whose adapter they are, in an engine that roles share; a new process gets each newest one.
        """
        generation, before = self._generation, dict(self._deliveries)
        self._deliveries[adapter] = delivery  # already now: a waiting turn may notice a crash first, and restart
        try:
            await self._in_time(delivery(self._actor))
        except LongShortError:
            self._deliveries = before
            raise
        except self._failures as error:
            await self.restart(error, generation)

    async def sleep(self, level: int) -> None:
        """Free the GPU's memory until `wake`; longshort/backends/time_share.py explains the levels."""
        await self._or_restart(lambda: self._actor.between_steps.remote("sleep", level))

    async def wake(self, tags: Sequence[str]) -> None:
        """Take back the memory of `weights` or `kv_cache`; a process that was replaced meanwhile never slept."""
        await self._or_restart(lambda: self._actor.between_steps.remote("wake", list(tags)))

    async def stats(self) -> dict[str, float]:
        """Return the counters since the process started; zeros if it had to be replaced to answer."""
        counters = await self._or_restart(lambda: self._actor.stats.remote())
        return counters or {"busy_s": 0.0, "sampled_tokens": 0.0, "prompt_tokens": 0.0, "cached_tokens": 0.0}

    async def _or_restart(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer of the process; if it fails instead, replace it and return None."""
        generation = self._generation
        try:
            return await self._in_time(call())
        except self._failures as error:
            await self.restart(error, generation)

    async def restart(self, reason: BaseException, generation: int | None = None) -> None:
        """Replace the process, unless it was replaced since `generation`; LongShortError after too many restarts."""
        generation = self._generation if generation is None else generation
        async with self._lock:
            if generation != self._generation:
                return
            self._recovering = True
            worn_out = [key for key, turn in self._pending.items() if turn.attempts > self._config.max_engine_restarts]
            for turn in map(self._pending.pop, worn_out):
                turn.fail(self._too_often(turn.attempts, reason))
            try:
                failure: BaseException | None = reason
                while failure:
                    failure = await self._replace(failure)
            finally:
                self._recovering = False
            self._outbox.clear()
            self._submit(list(self._pending))

    async def _replace(self, reason: BaseException) -> BaseException | None:
        """Start a new process with the current weights; return why it failed, or None."""
        self._failures_in_a_row += 1
        cap = self._config.max_engine_restarts
        if self._failures_in_a_row > cap:
            times, self._failures_in_a_row = self._failures_in_a_row, 0  # the next request gets as many attempts
            raise self._too_often(times, reason) from reason
        self.restarts += 1
        console.say(f"! {self.role} engine failed ({reason_of(reason)}); restart {self._failures_in_a_row} of {cap}")
        self._kill(self._actor, self._pid)
        self._actor, self._generation = self._spawn(), self._generation + 1
        try:
            await self.start()
            for delivery in list(self._deliveries.values()):
                await self._in_time(delivery(self._actor))
        except (*self._failures, LongShortError) as error:
            return error
        return None

    def close(self) -> None:
        """Kill the process and cancel the turns that still wait."""
        if self._collector:
            self._collector.cancel()
        waiting, self._pending, self._outbox = list(self._pending.values()), {}, []
        for turn in waiting:
            turn.future.cancel()
        self._kill(self._actor, self._pid)

    def _flush(self) -> None:
        if self._recovering:  # `restart` submits everything pending once the new process is ready
            self._outbox.clear()
            return
        requests = [request_id for request_id in self._outbox if request_id in self._pending]
        self._outbox.clear()
        if requests:
            self._submit(requests)
        if self._pending and (self._collector is None or self._collector.done()):
            self._collector = asyncio.create_task(self._collect())
            self._collector.add_done_callback(self._collector_ended)

    def _submit(self, request_ids: Sequence[str]) -> None:
        requests = []
        for request_id in request_ids:
            turn = self._pending[request_id]
            turn.attempts += 1
            requests.append((request_id, turn.prompt_ids, turn.sampling, turn.on_tokens is not None))
        self._actor.submit.remote(requests)

    def _collector_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():  # a bug of ours must not leave episodes waiting forever
            self._give_up(LongShortError(f"collecting from the {self.role} engine failed: {task.exception()!r}"))

    async def _collect(self) -> None:
        while self._pending:
            generation = self._generation
            try:
                for request_id, output in await self._in_time(self._actor.collect.remote()):
                    if request_id in self._pending:
                        self._deliver(request_id, output)
            except self._failures as error:
                try:
                    await self.restart(error, generation)
                except LongShortError as final:
                    self._give_up(final)

    def _deliver(self, request_id: str, output: Completion | tuple[int, Sequence[int]]) -> None:
        turn = self._pending[request_id]
        if not isinstance(output, Completion):
            position, ids = output
            turn.ids[position:] = ids  # a replaced process begins at position 0 again
            if turn.on_tokens:
                turn.on_tokens(turn.ids)
            return
        allowed = turn.sampling.max_tokens
        sound = 0 < len(output.token_ids) <= allowed and all(map(math.isfinite, output.logprobs))
        if not sound or output.stop == "abort":
            raise RuntimeError(
                f"a broken completion: stop {output.stop!r}, {len(output.token_ids)} tokens (allowed 1 to {allowed}), "
                f"log-probs {output.logprobs[:3]}"
            )
        self._failures_in_a_row = 0
        del self._pending[request_id]
        if not turn.future.done():
            turn.future.set_result(output)

    def _too_often(self, times: int, reason: BaseException) -> LongShortError:
        cap = self._config.max_engine_restarts
        return LongShortError(
            f"the {self.role} engine failed {times} times (max_engine_restarts is {cap}); last: {reason_of(reason)}"
        )

    def _give_up(self, error: LongShortError) -> None:
        waiting, self._pending = list(self._pending.values()), {}
        for turn in waiting:
            turn.fail(error)

    async def _in_time(self, reference: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(result_of(reference), self._config.engine_timeout_s)
