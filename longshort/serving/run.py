"""The episodes of one request, side by side: what they tell, their common end, and what a caller who leaves takes with him."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from longshort.serving.admission import Gate
from longshort.serving.http_errors import ApiError, impossible
from longshort.serving.metrics import Metrics
from longshort.team.conversation import Ask, Event, Finished, ImpossibleAsk
from longshort.types import LongShortError

Batch = list[tuple[int, Event]]


class Run:
    """`async with Run(...) as run: async for batch in run.batches()`, or `await run.outcome()` for the ends alone.

    Each ask has a task that waits for its place and then puts its events into one queue, as (number of the ask, event). Leaving the block,
    at whatever point, cancels the tasks; a cancelled episode takes its message out of the engine that is writing it.
    Raises ApiError: 429 or 503 by the gate, 400 for a question that fills the context, 503 where an engine fails, 504 beyond `timeout_s`.
    """

    def __init__(
        self,
        asks: Sequence[Ask],
        play: Callable[[Ask], AsyncIterator[Event]],
        *,
        gate: Gate,
        metrics: Metrics,
        timeout_s: float,
    ):
        self._asks, self._play, self._gate, self._metrics, self._timeout_s = asks, play, gate, metrics, timeout_s
        self._queue: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue()
        self._undo = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Run:
        self._undo.enter_context(self._gate.admitted(self, len(self._asks)))
        tasks = [asyncio.create_task(self._follow(index, ask)) for index, ask in enumerate(self._asks)]
        for task in tasks:
            task.add_done_callback(self._ended)
        self._undo.push_async_callback(_cancel, tasks)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    def fail(self, error: BaseException) -> None:
        """End the run with this error, for whoever listens to it."""
        self._queue.put_nowait(error)

    async def batches(self) -> AsyncIterator[Batch]:
        """All events, those that came since the last batch together; ends with the last episode."""
        left = len(self._asks)
        while left:
            arrived = [await self._queue.get()]
            while not self._queue.empty():
                arrived.append(self._queue.get_nowait())
            for one in arrived:
                if isinstance(one, BaseException):
                    raise one
            left -= sum(isinstance(event, Finished) for _, event in arrived)
            yield arrived

    async def outcome(self) -> list[Finished]:
        """How each ask ended, in their order."""
        ends = {index: event async for batch in self.batches() for index, event in batch if isinstance(event, Finished)}
        return [ends[index] for index in range(len(self._asks))]

    async def _follow(self, index: int, ask: Ask) -> None:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._gate.running_one(),
                contextlib.aclosing(self._play(ask)) as events,
            ):
                async for event in events:
                    if isinstance(event, Finished):
                        self._metrics.ended(event.episode)
                    self._queue.put_nowait((index, event))
        except TimeoutError:
            late = f"no answer within {self._timeout_s:g} s (serve.timeout_s); try again later, or ask for fewer tokens"
            raise ApiError(504, late, code="timeout") from None
        except ImpossibleAsk as error:
            if error.field == "question":  # longer than the context: an empty one never comes here
                raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
            raise impossible(error) from None
        except LongShortError as error:
            raise ApiError(503, str(error), code="engine_failed", retry_after=1) from error

    def _ended(self, task: asyncio.Task) -> None:
        if task.cancelled():  # not by us, or nobody listens any more: the team was closed
            self.fail(ApiError(503, "the server is shutting down", code="draining"))
        elif task.exception():
            self.fail(task.exception())


async def _cancel(tasks: Sequence[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
