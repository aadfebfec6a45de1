"""How many episodes run at once and how many may wait; time limits, and the end of a server in good order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

from longshort.serving.errors import ApiError

FAREWELL_S = 5
"""Grace period for sending 503s after `drain_s`."""
NEWEST_WEIGHT = 0.1
"""Weight of the newest episode in the mean duration behind Retry-After."""


class Gate:
    """At most `capacity` episodes run and `max_queue` wait in order of arrival; requests beyond that are refused (429).

    An episode that takes longer than `timeout_s`, its wait included, is given up (504).
    """

    def __init__(self, *, capacity: int, max_queue: int, timeout_s: float):
        self.capacity, self.max_queue, self.timeout_s = capacity, max_queue, timeout_s
        self.running = self.waiting = self._admitted = 0
        self.draining = False
        self._slots = asyncio.Semaphore(capacity)
        self._limits: set[asyncio.Timeout] = set()
        self._mean_s = 1.0
        self._expired: ApiError | None = None

    @contextlib.contextmanager
    def admitted(self, episodes: int) -> Iterator[None]:
        """Hold places for all episodes of a request; ApiError 503 while draining, 429 if the queue is full, 400 if the
        server has fewer places."""
        places = self.capacity + self.max_queue
        if self.draining:
            raise ApiError(503, "the server is shutting down and takes no new requests", code="draining", retry_after=1)
        if episodes > places:
            message = f"the request asks for {episodes} answers but the server holds {places} at most"
            raise ApiError(400, message, param="n")
        if self._admitted + episodes > places:
            counts = f"{self.running} answers under way, {self.waiting} waiting (serve.max_queue is {self.max_queue})"
            raise ApiError(429, f"the server is full: {counts}", code="queue_full", retry_after=self._retry_after)
        self._admitted += episodes
        try:
            yield
        finally:
            self._admitted -= episodes

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a free place and hold it; ApiError 504 when the time is up, 503 when a drain's is."""
        limit = asyncio.timeout(0 if self._expired else self.timeout_s)
        self._limits.add(limit)
        try:
            async with limit, self._slot():
                yield
        except TimeoutError:
            late = f"no answer within {self.timeout_s:g} s (serve.timeout_s); try again later, or ask for fewer tokens"
            raise self._expired or ApiError(504, late, code="timeout") from None
        finally:
            self._limits.discard(limit)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = time.monotonic()
        try:
            yield
            self._mean_s += NEWEST_WEIGHT * (time.monotonic() - began - self._mean_s)
        finally:
            self.running -= 1
            self._slots.release()

    @property
    def _retry_after(self) -> int:
        """Seconds until, at the present pace, half of a full queue has left."""
        return max(1, math.ceil(self._mean_s * self.max_queue / 2 / self.capacity))

    async def drain(self, seconds: float) -> bool:
        """Admit nothing new, let the admitted finish for `seconds`, fail the rest; return whether all finished."""
        self.draining = True
        if await self._emptied(seconds):
            return True
        message = f"the server is shutting down and the answer was not done within {seconds:g} s"
        self._expired = ApiError(503, message, code="draining")
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(0)
        await self._emptied(FAREWELL_S)
        return False

    async def _emptied(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._admitted and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return not self._admitted
