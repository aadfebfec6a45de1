"""Signals: a run is asked to save first, a second signal ends it at once, a terminal that closes is a signal too."""

import asyncio
import os
import signal

import pytest

from longshort import interruption
from longshort.interruption import Interrupted, graceful

pytestmark = pytest.mark.usefixtures("as_in_a_terminal")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


async def saving(number, *more):
    """Receive signals while a block runs that can save."""
    stop = asyncio.Event()
    with graceful(stop) as received:
        for each in (number, *more):
            os.kill(os.getpid(), each)
            await asyncio.wait_for(stop.wait(), 5)
        await asyncio.sleep(0)
        raise Interrupted(received[0], "saved")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_the_run_to_save(number, capsys):
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; saved") as caught:
        interruption.run(saving(number))
    assert caught.value.code == 128 + number
    assert f"{number.name}: saving before leaving" in capsys.readouterr().out


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_cannot_save(number):
    async def waiting():
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    with pytest.raises(Interrupted, match=f"stopped by {number.name}; start the same command again to continue"):
        interruption.run(waiting())


def test_a_hang_up_that_comes_twice_is_one():
    """A shell that loses its terminal passes the signal on to its jobs, which the kernel has signalled too."""

    async def main():
        stop = asyncio.Event()
        with graceful(stop) as received:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(stop.wait(), 5)
            os.kill(os.getpid(), signal.SIGHUP)
            loop, handled = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, handled.set)  # handled after the one before
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(handled.wait(), 5)
            loop.remove_signal_handler(signal.SIGUSR1)
            return list(received)

    assert interruption.run(main()) == [signal.SIGHUP]


def test_a_run_under_nohup_hears_no_hang_up():
    async def main():
        os.kill(os.getpid(), signal.SIGHUP)
        return "done"

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert interruption.run(main()) == "done"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_that_a_run_starts_do_not_die_of_the_hang_up():
    async def main():
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())  # what they inherit

    assert signal.SIGHUP in interruption.run(main())
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]

    async def main():
        return None

    interruption.run(main())
    assert [signal.getsignal(number) for number in SIGNALS] == before
