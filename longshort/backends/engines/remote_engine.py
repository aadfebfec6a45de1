"""The driver's side of an engine in another process: batches requests, delivers turns, and replaces a process that fails.

Ray-free: what spawns and kills a process is handed in (longshort/backends/ray_cluster.py).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longshort import console
from longshort.backends.engines.engine_loop import Watch
from longshort.backends.remote import reason_of, result_of
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import Completion, LongShortError, Sampling

Delivery = Callable[[Any], Awaitable[Any]]
"""Brings a policy's weights to the process of an engine that is given; also to one that replaces it."""
START_TIMEOUT_S = 300.0
"""For loading a model on a busy machine."""


@dataclass(slots=True, kw_only=True)
class _Wanted:
    """A turn that has been asked for and not delivered yet; `asked` counts how often the engine has been given it."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future
    watch: Watch | None
    written: list[int] = field(default_factory=list)
    asked: int = 0


class RemoteEngine:
    """One policy's engine behind the `Engine` contract of longshort/dialogue/rollout.py.

    Requests made in one tick of the event loop travel in one call; finished turns come back in one call per engine step. A process that
    dies, stops answering for `engine_timeout_s` or answers nonsense is replaced, given the current weights and asked again for every turn
    it owed; with per-request seeds the turns come out the same. LongShortError for a turn during which that has happened more than
    `max_engine_restarts` times, and for everyone who waits when the engine has failed as often without delivering anything.
    """

    def __init__(
        self,
        role: str,
        config: LongShortConfig,
        tokenizer,
        *,
        engine: EngineConfig,
        backend: str,
        model: str,
        spawn: Callable[[], Any],
        kill: Callable[[Any, int | None], None],
        failures: tuple[type[BaseException], ...],
    ):
        self.role, self.tokenizer, self.context = role, tokenizer, engine.max_model_len
        self.backend, self.restarts = backend, 0
        self._config, self._engine, self._model = config, engine, model
        self._spawn, self._kill = spawn, kill
        self._failures = (*failures, TimeoutError, RuntimeError)
        self._generation = self._failures_in_a_row = 0
        self._deliveries: dict[str, Delivery] = {}
        self._pending: dict[str, _Wanted] = {}
        self._outbox: list[str] = []
        self._ids = itertools.count()
        self._collector: asyncio.Task | None = None
        self._recovering, self._last_failure = False, RuntimeError("none")
        self._lock = asyncio.Lock()
        self._pid: int | None = None
        self._actor = spawn()

    @property
    def waiting(self) -> int:
        """Turns asked for and not delivered yet."""
        return len(self._pending)

    async def start(self) -> int:
        """Wait until the engine has loaded its model; returns its process id. LongShortError with the engine's own reason."""
        try:
            self._pid = await asyncio.wait_for(
                result_of(self._actor.ready.remote()), max(START_TIMEOUT_S, self._config.engine_timeout_s)
            )
            return self._pid
        except self._failures as error:
            engine = self._engine
            raise LongShortError(
                f"the {self.role} engine ({self.backend}, {self._model}) did not start: {reason_of(error)}; if memory ran out, lower "
                f"{self.role}.engine.kv_cache_gib ({engine.kv_cache_gib}), max_model_len or max_num_seqs"
            ) from error

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, watch: Watch | None = None) -> Completion:
        """Sample one turn; `watch(ids_so_far)` is called while it is written (from the start again after a replacement)."""
        loop = asyncio.get_running_loop()
        request_id, future = f"{self.role}-{next(self._ids)}", loop.create_future()
        self._pending[request_id] = _Wanted(prompt_ids=tuple(prompt_ids), sampling=sampling, future=future, watch=watch)
        if not self._outbox:
            loop.call_soon(self._flush)
        self._outbox.append(request_id)
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(request_id, None):
                self._actor.abort.remote([request_id])
            raise

    async def load_weights(self, weights: Any, version: int, adapter: str = "") -> None:
        """Give the engine the weights behind a reference; refusals and crashes as `receive`."""
        await self.receive(lambda actor: actor.load_weights.remote(weights, version), adapter)

    async def receive(self, delivery: Delivery, adapter: str = "") -> None:
        """Have weights delivered to the engine's process. A refusal (LongShortError) leaves it as it was; a crash restarts it with them.

        `adapter`: whose adapter they are, in an engine that roles share; a new process is given the newest of each.
        """
        generation, before = self._generation, dict(self._deliveries)
        self._deliveries[adapter] = (
            delivery  # now, since whoever waits for a turn may notice a crash first and restart the engine
        )
        try:
            await self._in_time(delivery(self._actor))
        except LongShortError:
            self._deliveries = before
            raise
        except self._failures as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, LongShortError):
                self._deliveries = before
                raise cause from None
            await self.restart(error, generation)

    async def sleep(self, level: int) -> None:
        """Give back the GPU's memory until `wake`; see longshort/backends/time_share.py for the levels."""
        await self._between_steps("sleep", level)

    async def wake(self, tags: Sequence[str]) -> None:
        """Take back the memory of `weights` or `kv_cache`; a process that was replaced meanwhile has never slept."""
        await self._between_steps("wake", list(tags))

    async def _between_steps(self, method: str, *arguments: Any) -> None:
        generation = self._generation
        try:
            await self._in_time(self._actor.between_steps.remote(method, *arguments))
        except self._failures as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, LongShortError):
                raise cause from None
            await self.restart(error, generation)

    async def stats(self) -> dict[str, float]:
        """The engine's counters since its process started; zeros if it had to be replaced for them."""
        generation = self._generation
        try:
            return await self._in_time(self._actor.stats.remote())
        except self._failures as error:
            await self.restart(error, generation)
            return dict.fromkeys(("busy_s", "sampled_tokens", "prompt_tokens", "cached_tokens"), 0.0)

    async def restart(self, reason: BaseException, generation: int | None = None) -> None:
        """Replace the process, unless another caller has done so since `generation`; LongShortError beyond the cap."""
        generation = self._generation if generation is None else generation
        async with self._lock:
            if generation != self._generation:
                return
            self._recovering = True
            cap = self._config.max_engine_restarts
            for request_id in [request_id for request_id, wanted in self._pending.items() if wanted.asked > cap]:
                wanted = self._pending.pop(request_id)
                _fail(wanted, self._too_often(wanted.asked, reason))
            try:
                while not await self._replaced(reason):
                    reason = self._last_failure
            finally:
                self._recovering = False
            self._outbox.clear()
            self._submit(list(self._pending))

    async def _replaced(self, reason: BaseException) -> bool:
        self._failures_in_a_row += 1
        if self._failures_in_a_row > self._config.max_engine_restarts:
            times, self._failures_in_a_row = self._failures_in_a_row, 0  # whoever asks next gets as many tries
            raise self._too_often(times, reason) from reason
        self.restarts += 1
        console.say(
            f"! {self.role} engine failed ({reason_of(reason)}); restart {self._failures_in_a_row} of {self._config.max_engine_restarts}"
        )
        self._kill(self._actor, self._pid)
        self._actor, self._generation = self._spawn(), self._generation + 1
        try:
            await self.start()
            for delivery in list(self._deliveries.values()):
                await self._in_time(delivery(self._actor))
        except (*self._failures, LongShortError) as error:
            self._last_failure = error
            return False
        return True

    def close(self) -> None:
        """Kill the process; whoever still waits for a turn is cancelled."""
        if self._collector:
            self._collector.cancel()
        waiting, self._pending, self._outbox = list(self._pending.values()), {}, []
        for wanted in waiting:
            wanted.future.cancel()
        self._kill(self._actor, self._pid)

    def _flush(self) -> None:
        if self._recovering:  # `restart` asks for everything pending once the new process is ready
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
            wanted = self._pending[request_id]
            wanted.asked += 1
            requests.append((request_id, wanted.prompt_ids, wanted.sampling, wanted.watch is not None))
        self._actor.submit.remote(requests)

    def _collector_ended(self, task: asyncio.Task) -> None:
        if not task.cancelled() and task.exception():  # a bug of ours must not leave episodes waiting for ever
            self._give_up(LongShortError(f"collecting from the {self.role} engine failed: {task.exception()!r}"))

    async def _collect(self) -> None:
        while self._pending:
            generation = self._generation
            try:
                for request_id, news in await self._in_time(self._actor.collect.remote()):
                    if request_id not in self._pending:
                        continue
                    if isinstance(news, Completion):
                        self._deliver(request_id, news)
                    else:
                        self._show(self._pending[request_id], *news)
            except self._failures as error:
                try:
                    await self.restart(error, generation)
                except LongShortError as final:
                    self._give_up(final)

    def _deliver(self, request_id: str, completion: Completion) -> None:
        sampling = self._pending[request_id].sampling
        sound = 0 < len(completion.token_ids) <= sampling.max_tokens and all(map(math.isfinite, completion.logprobs))
        if not sound or completion.stop == "abort":
            raise RuntimeError(
                f"a broken completion: stop {completion.stop!r}, {len(completion.token_ids)} tokens (allowed 1 to {sampling.max_tokens}), "
                f"log-probs {completion.logprobs[:3]}"
            )
        self._failures_in_a_row = 0
        future = self._pending.pop(request_id).future
        if not future.done():
            future.set_result(completion)

    def _show(self, wanted: _Wanted, start: int, ids: Sequence[int]) -> None:
        wanted.written[start:] = ids  # a process that has replaced another one begins at 0 again
        wanted.watch(wanted.written)

    def _too_often(self, times: int, reason: BaseException) -> LongShortError:
        cap = self._config.max_engine_restarts
        return LongShortError(
            f"the {self.role} engine failed {times} times (max_engine_restarts is {cap}); last: {reason_of(reason)}"
        )

    def _give_up(self, error: LongShortError) -> None:
        waiting, self._pending = list(self._pending.values()), {}
        for wanted in waiting:
            _fail(wanted, error)

    async def _in_time(self, reference: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(result_of(reference), self._config.engine_timeout_s)


def _fail(wanted: _Wanted, error: LongShortError) -> None:
    if not wanted.future.done():
        wanted.future.set_exception(error)
