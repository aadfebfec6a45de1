"""How many episodes go on at once, how many may wait, and what those beyond are told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from longshort.serving.http_errors import ApiError

FAREWELL_S = 5
"""For telling those who have waited in vain."""
FORGETTING = 0.1
"""Weight of the newest episode in the mean that Retry-After is reckoned from."""


class Gate:
    """At most `capacity` episodes run, `max_queue` wait in order of arrival; a request that finds no place is refused at once (429)."""

    def __init__(self, *, capacity: int, max_queue: int):
        self.capacity, self.max_queue = capacity, max_queue
        self.running = self.waiting = 0
        self.draining = False
        self._admitted: dict[Any, int] = {}
        self._slots = asyncio.Semaphore(capacity)
        self._mean_s = 1.0

    @contextlib.contextmanager
    def admitted(self, run: Any, episodes: int) -> Iterator[None]:
        """Places for all episodes of a request; ApiError 503 while draining, 429 where the queue is full, 400 for more than all places."""
        if self.draining:
            raise ApiError(503, "the server is shutting down and takes no new requests", code="draining", retry_after=1)
        places = self.capacity + self.max_queue
        if episodes > places:
            raise ApiError(
                400, f"the request asks for {episodes} answers but the server holds {places} at most", param="n"
            )
        if sum(self._admitted.values()) + episodes > places:
            told = f"the server is full: {self.running} answers under way, {self.waiting} waiting (serve.max_queue is {self.max_queue})"
            raise ApiError(429, told, code="queue_full", retry_after=self.retry_after)
        self._admitted[run] = episodes
        try:
            yield
        finally:
            del self._admitted[run]

    @contextlib.asynccontextmanager
    async def running_one(self) -> AsyncIterator[None]:
        """Wait for a place among the running."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = time.monotonic()
        try:
            yield
            self._mean_s += FORGETTING * (time.monotonic() - began - self._mean_s)
        finally:
            self.running -= 1
            self._slots.release()

    @property
    def retry_after(self) -> int:
        """Seconds until, at the present pace, a full house has left half of its queue."""
        return max(1, math.ceil(self._mean_s * self.max_queue / 2 / self.capacity))

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, let what was admitted finish, and fail what has not after `seconds`; whether everything finished."""
        self.draining = True
        if await self._emptied(seconds):
            return True
        for run in self._admitted:
            run.fail(
                ApiError(
                    503,
                    f"the server is shutting down and the answer was not done within {seconds:g} s",
                    code="draining",
                )
            )
        await self._emptied(FAREWELL_S)
        return False

    async def _emptied(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._admitted and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return not self._admitted
