"""SIGINT, SIGTERM and SIGHUP: cancel what waits, clean up and report; a block that can save is asked to save first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from longshort import console
from longshort.types import LongShortError

T = TypeVar("T")
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(_handle_signals(main, ()))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # started by nohup
        return asyncio.run(_handle_signals(main, HANDLED[:2]))
    with _hang_up_for_this_process_alone():
        return asyncio.run(_handle_signals(main, HANDLED))


@contextlib.contextmanager
def _hang_up_for_this_process_alone() -> Iterator[None]:
    """Keep SIGHUP from the processes that the block starts: a terminal that closes sends it to them too, and they die.

    They inherit the main thread's mask. A thread that has the signal open lets it reach this process.
    """
    done = threading.Event()
    listening = threading.Thread(target=done.wait, daemon=True)
    listening.start()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        done.set()
        listening.join()


async def _handle_signals(main: Coroutine[Any, Any, T], handled: Sequence[signal.Signals]) -> T:
    task, loop = asyncio.ensure_future(main), asyncio.get_running_loop()
    _received.clear()

    def on_signal(number: int) -> None:
        if number == signal.SIGHUP and number in _received:
            return  # a shell that loses its terminal passes the signal on, so it comes twice
        _received.append(number)
        if _stops and not _stops[-1][0].is_set():
            stop, doing = _stops[-1]
            console.say(f"{signal.Signals(number).name}: {doing} (again: leave at once) …")
            stop.set()
        else:
            task.cancel()

    before = {number: signal.getsignal(number) for number in handled}
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
