"""SIGINT and SIGTERM: cancel what waits, clean up and report; a block that can save is asked to save first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from longshort import console
from longshort.types import LongShortError

T = TypeVar("T")
HANDLED = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
"""The signals that arrived during `run`."""
_stops: list[tuple[asyncio.Event, str]] = []
"""The `graceful` blocks under way, the innermost last."""


class Interrupted(LongShortError):
    """A signal ended the run. `code` is the exit status that shells expect: 128 + the signal's number."""

    def __init__(self, number: int, what: str):
        super().__init__(f"stopped by {signal.Signals(number).name}; {what}")
        self.code = 128 + number


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; a signal raises Interrupted after every `finally` has run."""
    return asyncio.run(_handle_signals(main))


async def _handle_signals(main: Coroutine[Any, Any, T]) -> T:
    task, loop = asyncio.ensure_future(main), asyncio.get_running_loop()
    _received.clear()

    def on_signal(number: int) -> None:
        _received.append(number)
        if _stops and not _stops[-1][0].is_set():
            stop, doing = _stops[-1]
            console.say(f"{signal.Signals(number).name}: {doing} (again: leave at once) …")
            stop.set()
        else:
            task.cancel()

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in HANDLED} if in_main_thread else {}
    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if _received:
            raise Interrupted(_received[0], "start the same command again to continue") from None
        raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextlib.contextmanager
def graceful(stop: asyncio.Event, doing: str = "saving before leaving") -> Iterator[list[int]]:
    """While the block runs, the first signal sets `stop` instead of cancelling; yields the list of signals received."""
    _stops.append((stop, doing))
    try:
        yield _received
    finally:
        _stops.remove((stop, doing))
