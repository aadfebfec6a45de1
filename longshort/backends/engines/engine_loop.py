"""A thread that keeps one steppable engine core decoding. Requests come and go between any two steps.

This is continuous batching across episodes: a turn is submitted at once and waits for no other. A Ray actor hosts the
loop (longshort/backends/ray_cluster.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from longshort.recipe.roles import LoraSection
from longshort.recipe.sections import EngineConfig
from longshort.types import Completion, LongShortError, Sampling

Request = tuple[str, tuple[int, ...], Sampling, bool]
"""A request's id, its prompt's ids, its settings, and whether to stream its ids while they are written."""
OnTokens = Callable[[Sequence[int]], None]
"""Called with a turn's ids so far, now and then while it is written."""
Part = tuple[int, tuple[int, ...]]
"""A position in a turn, and the ids that were written from there on since the last part."""
Output = tuple[str, Completion | Part]
"""A request's id, with its completion or the next part of it."""
MAX_BATCHING_S, BATCHING_S_PER_REQUEST = 0.05, 0.002
"""How long a finished turn waits so that others are returned with it: BATCHING_S_PER_REQUEST for each open request, at
most MAX_BATCHING_S. A message per engine step would cost as much as sampling a tiny model.
"""
STREAM_INTERVAL_S = 0.1
"""Time between two parts of a streamed turn: short enough for a reader, long enough to spare the driver."""


class EngineCore(Protocol):
    """An engine that is stepped: one token per step for every running request. Weights change between two steps."""

    prompt_tokens: int
    cached_tokens: int
    decoded: int
    """Steps so far."""

    @property
    def busy(self) -> bool: ...
    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    def step(self) -> list[tuple[str, Completion]]: ...
    def written(self) -> Iterable[tuple[str, Sequence[int]]]: ...


def make_core(
    backend: str, model: str, config: EngineConfig, seed: int, adapters: Mapping[str, LoraSection] | None = None
) -> EngineCore:
    """Make the engine core of that name; with `adapters`, by role, one that these roles share."""
    if backend == "vllm":
        from longshort.backends.engines.vllm_engine import VllmCore, VllmLoraCore

        return VllmLoraCore(model, config, seed, adapters) if adapters else VllmCore(model, config, seed)
    from longshort.backends.engines.transformers_engine import TransformersCore, TransformersLoraCore

    return TransformersLoraCore(model, config, seed) if adapters else TransformersCore(model, config, seed)


class EngineLoop:
    """`submit` requests without waiting, `collect` their outputs, run the core's other methods `between_steps`."""

    def __init__(self, make: Callable[[], EngineCore], stuck_s: float = math.inf):
        self._stuck_s, self._progress = stuck_s, (0, time.monotonic())
        self._changed = threading.Condition()
        self._inbox: list[Request] = []
        self._aborts: list[str] = []
        self._calls: list[tuple[str, tuple[Any, ...], Future[Any]]] = []
        self._finished: list[tuple[str, Completion]] = []
        self._open: set[str] = set()
        self._streams: dict[str, tuple[int, list[int]]] = {}
        self._streamed_at = -math.inf
        self._failure: BaseException | None = None
        self.busy_s, self.sampled_tokens = 0.0, 0
        ready: Future[EngineCore] = Future()
        threading.Thread(target=self._run, args=(make, ready), name="engine", daemon=True).start()
        self.core = ready.result()

    def submit(self, requests: Sequence[Request]) -> None:
        with self._changed:
            self._progress = (self.core.decoded, time.monotonic())  # an engine that was idle until now is not stuck
            self._inbox.extend(requests)
            self._changed.notify_all()

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests; nothing is delivered for them."""
        with self._changed:
            self._aborts.extend(request_ids)
            self._changed.notify_all()

    def collect(self, timeout: float = 1.0) -> list[Output]:
        """Return all finished turns and new parts of streamed ones; wait up to `timeout` seconds for the first.

        Raises RuntimeError if the engine died, or if it has requests but decoded nothing for `stuck_s` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure or self._parts(), timeout)
        if self.core.busy and not self._failure:
            time.sleep(min(MAX_BATCHING_S, BATCHING_S_PER_REQUEST * len(self._open)))
        with self._changed:
            self._check_alive()
            finished, self._finished = self._finished, []
            if parts := self._parts():
                self._streamed_at = time.monotonic()
                self._streams.update((request_id, (start + len(new), [])) for request_id, (start, new) in parts)
        if finished or not self.core.busy or self.core.decoded != self._progress[0]:
            self._progress = (self.core.decoded, time.monotonic())
        elif time.monotonic() - self._progress[1] > self._stuck_s:
            raise RuntimeError(f"the engine has decoded nothing for {self._stuck_s:g} s")
        return [*finished, *parts]

    def _parts(self) -> list[tuple[str, Part]]:
        """Return what streamed turns gained since their last part, if it is time to send it."""
        if time.monotonic() - self._streamed_at < STREAM_INTERVAL_S:
            return []
        return [(request_id, (start, tuple(new))) for request_id, (start, new) in self._streams.items() if new]

    def _check_alive(self) -> None:
        if self._failure:
            raise RuntimeError(f"the engine died: {self._failure!r}") from self._failure

    def between_steps(self, method: str, *arguments: Any) -> Any:
        """Run a method of the core before its next step, in the thread that steps it; return or raise what it does.

        A LongShortError is a refusal and leaves the engine as it was. Any other error kills the engine.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._check_alive()
            self._calls.append((method, arguments, future))
            self._changed.notify_all()
        return future.result()

    def stats(self) -> dict[str, float]:
        return {
            "busy_s": self.busy_s,
            "sampled_tokens": self.sampled_tokens,
            "prompt_tokens": self.core.prompt_tokens,
            "cached_tokens": self.core.cached_tokens,
        }

    def _run(self, make: Callable[[], EngineCore], ready: Future[EngineCore]) -> None:
        try:
            core = make()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the engine
            ready.set_exception(error)
            return
        ready.set_result(core)
        try:
            while True:
                self._turn(core)
        except BaseException as error:  # noqa: BLE001 - handed to the threads that collect or call
            with self._changed:
                self._failure = error
                for *_, future in self._calls:
                    future.set_exception(error)
                self._changed.notify_all()

    def _turn(self, core: EngineCore) -> None:
        """Wait for work, take in what came, and take one step."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._calls or self._aborts or core.busy)
            inbox, self._inbox = self._inbox, []
            aborts, self._aborts = self._aborts, []
            calls, self._calls = self._calls, []
        for call in calls:
            _call(core, *call)
        for request_id, prompt_ids, sampling, streamed in inbox:
            core.add(request_id, prompt_ids, sampling)
            self._open.add(request_id)
            if streamed:
                with self._changed:
                    self._streams[request_id] = (0, [])
        if aborts:
            core.abort(aborts)
            self._forget(aborts)
        if core.busy:
            self._step(core)

    def _step(self, core: EngineCore) -> None:
        began = time.perf_counter()
        finished = core.step()
        self.busy_s += time.perf_counter() - began
        self.sampled_tokens += sum(len(completion.token_ids) for _, completion in finished)
        if not finished and not self._streams:
            return
        with self._changed:
            self._finished.extend(finished)
            self._forget([request_id for request_id, _ in finished])
            self._note_parts(core)
            self._changed.notify_all()

    def _forget(self, request_ids: Sequence[str]) -> None:
        self._open.difference_update(request_ids)
        with self._changed:  # reentrant
            for request_id in request_ids:
                self._streams.pop(request_id, None)

    def _note_parts(self, core: EngineCore) -> None:
        """Note what streamed turns gained. Only between two steps: within one, a turn may hold its closing tag."""
        if self._streams:
            for request_id, ids in core.written():
                if request_id in self._streams:
                    start, new = self._streams[request_id]
                    new.extend(ids[start + len(new) :])


def _call(core: EngineCore, method: str, arguments: tuple[Any, ...], future: Future[Any]) -> None:
    try:
        future.set_result(getattr(core, method)(*arguments))
    except LongShortError as error:  # a refusal, before the engine was touched: it lives on
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(error)
        raise
