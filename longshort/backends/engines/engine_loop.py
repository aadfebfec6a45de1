"""A thread that keeps one steppable engine (`VllmCore`, `TransformersCore`) decoding: requests come and go between any two steps.

This is continuous batching across episodes: whoever needs a turn submits it at once and waits for nobody. `EngineLoop` is what a Ray
actor hosts; `LocalEngine` is the same thing inside this process, for tests and small tools.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from longshort.recipe.roles import LoraSection
from longshort.types import Completion, LongShortError, Sampling

Request = tuple[str, tuple[int, ...], Sampling, bool]
"""Its id, the prompt's ids, the settings, and whether its ids are wanted while it is being written."""
Watch = Callable[[Sequence[int]], None]
"""Told a turn's ids so far, every now and then while it is being written."""
News = tuple[str, Completion | tuple[int, tuple[int, ...]]]
"""A request's id, and its completion, or (position, ids) that have been written since the last news of it."""
GATHER_S, GATHER_EACH_S = 0.05, 0.002
"""Seconds that a finished turn waits for others to travel with: so many for each turn that is still wanted, and at most so many in all.
A message per engine step would cost as much as sampling a tiny model; where little is being written, there is nobody to wait for."""
TELL_S = 0.1
"""Seconds between two tellings of what watched turns hold so far: often enough for a reader, and each one costs the driver time."""


def make_core(backend: str, model: str, config, seed: int, adapters: Mapping[str, LoraSection] | None = None):
    """The engine core of that name; with `adapters`, by role, the one that several roles share."""
    if backend == "vllm":
        from longshort.backends.engines.vllm_engine import VllmCore, VllmLoraCore

        return VllmLoraCore(model, config, seed, adapters) if adapters else VllmCore(model, config, seed)
    from longshort.backends.engines.transformers_engine import TransformersCore, TransformersLoraCore

    return TransformersLoraCore(model, config, seed) if adapters else TransformersCore(model, config, seed)


class EngineLoop:
    """`submit` requests without waiting, `collect` what has finished since; `between_steps` takes what must not meet one."""

    def __init__(self, make: Callable[[], Any], stuck_s: float = math.inf):
        self._stuck_s, self._pulse = stuck_s, (0, time.monotonic())
        self._changed = threading.Condition()
        self._inbox: list[Request] = []
        self._aborts: list[str] = []
        self._calls: list[tuple[str, tuple, Future]] = []
        self._done: list[tuple[str, Completion]] = []
        self._open: set[str] = set()
        self._watched: dict[str, tuple[int, list[int]]] = {}
        self._told = -math.inf
        self._failure: BaseException | None = None
        self._closing = False
        self.busy_s, self.sampled_tokens = 0.0, 0
        ready: Future = Future()
        self._thread = threading.Thread(target=self._run, args=(make, ready), name="engine", daemon=True)
        self._thread.start()
        self.core = ready.result()

    def submit(self, requests: Sequence[Request]) -> None:
        with self._changed:
            self._pulse = (self.core.decoded, time.monotonic())  # idle until now is not stuck
            self._inbox.extend(requests)
            self._changed.notify_all()

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests; nothing is delivered for them."""
        with self._changed:
            self._aborts.extend(request_ids)
            self._changed.notify_all()

    def collect(self, timeout: float = 1.0) -> list[News]:
        """Everything finished so far, and what has been written of watched requests; waits up to `timeout` seconds for the first.

        RuntimeError with what killed the engine, or when it has requests but has not decoded a token for `stuck_s` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._failure or self._drafts(), timeout)
        if self.core.busy and not self._failure:
            time.sleep(min(GATHER_S, GATHER_EACH_S * len(self._open)))
        with self._changed:
            if self._failure:
                raise RuntimeError(f"the engine died: {self._failure!r}") from self._failure
            done, self._done = self._done, []
            if drafts := self._drafts():
                self._told = time.monotonic()
                self._watched.update((request_id, (start + len(new), [])) for request_id, (start, new) in drafts)
        if done or not self.core.busy or self.core.decoded != self._pulse[0]:
            self._pulse = (self.core.decoded, time.monotonic())
        elif time.monotonic() - self._pulse[1] > self._stuck_s:
            raise RuntimeError(f"the engine has decoded nothing for {self._stuck_s:g} s")
        return [*done, *drafts]

    def _drafts(self) -> list[tuple[str, tuple[int, tuple[int, ...]]]]:
        """What has been written of watched requests since they were told of, if it is time to tell."""
        if time.monotonic() - self._told < TELL_S:
            return []
        return [(request_id, (start, tuple(new))) for request_id, (start, new) in self._watched.items() if new]

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace the weights before the next step; requests under way go on with them. Raises what the core's `load_weights` raises."""
        self.between_steps("load_weights", weights, version)

    def between_steps(self, method: str, *arguments: Any) -> Any:
        """Run a method of the core before its next step, in the thread that steps it; what it returns or raises is returned or raised.

        A LongShortError is a refusal and leaves the engine as it was; after any other error it is of no use any more.
        """
        future: Future = Future()
        with self._changed:
            if self._failure:
                raise RuntimeError(f"the engine died: {self._failure!r}") from self._failure
            self._calls.append((method, arguments, future))
            self._changed.notify_all()
        return future.result()

    def stats(self) -> dict[str, float]:
        core = self.core
        return {
            "busy_s": self.busy_s,
            "sampled_tokens": self.sampled_tokens,
            "prompt_tokens": core.prompt_tokens,
            "cached_tokens": core.cached_tokens,
        }

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _run(self, make: Callable[[], Any], ready: Future) -> None:
        try:
            core = make()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the engine
            ready.set_exception(error)
            return
        ready.set_result(core)
        try:
            while self._turn(core):
                pass
        except BaseException as error:  # noqa: BLE001 - handed to whoever collects
            with self._changed:
                self._failure = error
                for *_, future in self._calls:
                    future.set_exception(error)
                self._changed.notify_all()

    def _turn(self, core) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._calls or self._aborts or core.busy or self._closing)
            if self._closing:
                return False
            inbox, self._inbox = self._inbox, []
            aborts, self._aborts = self._aborts, []
            calls, self._calls = self._calls, []
        for call in calls:
            _call(core, *call)
        for request_id, prompt_ids, sampling, watched in inbox:
            core.add(request_id, prompt_ids, sampling)
            self._open.add(request_id)
            if watched:
                with self._changed:
                    self._watched[request_id] = (0, [])
        if aborts:
            core.abort(aborts)
            self._open.difference_update(aborts)
            with self._changed:
                for request_id in aborts:
                    self._watched.pop(request_id, None)
        if core.busy:
            self._step(core)
        return True

    def _step(self, core) -> None:
        began = time.perf_counter()
        finished = core.step()
        self.busy_s += time.perf_counter() - began
        self.sampled_tokens += sum(len(completion.token_ids) for _, completion in finished)
        self._open.difference_update(request_id for request_id, _ in finished)
        if finished or self._watched:
            with self._changed:
                self._done.extend(finished)
                for request_id, _ in finished:
                    self._watched.pop(request_id, None)
                self._note_drafts(core)
                self._changed.notify_all()

    def _note_drafts(self, core) -> None:
        """Between two steps, for in the midst of one a turn may hold the tag that closes it already."""
        if self._watched:
            for request_id, ids in core.written():
                if request_id in self._watched:
                    start, new = self._watched[request_id]
                    new.extend(ids[start + len(new) :])


def _call(core, method: str, arguments: tuple, future: Future) -> None:
    try:
        future.set_result(getattr(core, method)(*arguments))
    except LongShortError as error:  # refused before the engine was touched: the engine lives on
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(error)
        raise


class LocalEngine:
    """An engine in this process behind the `Engine` contract of longshort/dialogue/rollout.py."""

    def __init__(self, backend: str, model: str, config, tokenizer, seed: int = 0):
        self.tokenizer, self.context = tokenizer, config.max_model_len
        self.loop = EngineLoop(lambda: make_core(backend, model, config, seed))
        self._count, self._wanted, self._collector = 0, {}, None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, watch: Watch | None = None) -> Completion:
        """Sample one turn; `watch(ids_so_far)` is called while it is written."""
        self._count += 1
        request_id, future = str(self._count), asyncio.get_running_loop().create_future()
        self._wanted[request_id] = (future, watch, [])
        self.loop.submit([(request_id, tuple(prompt_ids), sampling, watch is not None)])
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())
        try:
            return await future
        except asyncio.CancelledError:
            if self._wanted.pop(request_id, None):
                self.loop.abort([request_id])
            raise

    async def _collect(self) -> None:
        while self._wanted:
            try:
                found = await asyncio.to_thread(self.loop.collect)
            except RuntimeError as error:
                for future, *_ in self._wanted.values():
                    future.set_exception(error)
                self._wanted.clear()
                return
            for request_id, news in found:
                if request_id in self._wanted:
                    self._deliver(request_id, news)

    def _deliver(self, request_id: str, news: Completion | tuple[int, tuple[int, ...]]) -> None:
        future, watch, written = self._wanted[request_id]
        if isinstance(news, Completion):
            del self._wanted[request_id]
            if not future.done():
                future.set_result(news)
        else:
            written.extend(news[1])
            watch(written)

    def close(self) -> None:
        self.loop.close()
