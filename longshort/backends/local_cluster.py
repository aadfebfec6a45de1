"""Ray's start: a cluster of our own with a secret token, or the one that RAY_ADDRESS names. Import this before ray."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from longshort import console
from longshort.backends.remote import reason_of
from longshort.interruption import HANDLED, Interrupted
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

if "ray" not in sys.modules and os.getenv("RAY_ADDRESS", "") in ("", "local") and "RAY_AUTH_MODE" not in os.environ:
    # Anyone who can talk to Ray can run code, so our own cluster gets a token. Ray reads both when it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
from ray._private import services
from ray._private import utils as ray_utils
from ray.job_config import JobConfig

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's default of 15, engines and learners starve beside any ordinary process
}
JOIN_S, LISTEN_S = 50.0, 10.0
"""For joining a cluster, and for its head to accept a connection."""
LONGEST_FOLDER = 107 - len("/ray/session_2026-11-27_03-17-33_282544_1234567/sockets/plasma_store")
"""A socket's path ends at 107 bytes; Ray puts this below its folder."""


class _JobConfig(JobConfig):
    """Lets workers look for modules where this process does. Ray would put the working folder before the libraries,
    and a file random.py there would be imported in place of Python's.
    """

    def _serialize(self) -> str:
        before_libraries = sys.path[: sys.path.index(sysconfig.get_path("stdlib"))]
        searched = {os.path.abspath(folder) for folder in before_libraries}
        self._py_driver_sys_path = [folder for folder in self._py_driver_sys_path if folder in searched]
        return super()._serialize()


def start(config: LongShortConfig, limit_s: float = JOIN_S) -> Callable[[], None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine; return the function that undoes it.

    Raises LongShortError if that cannot be done, within `limit_s` for a cluster that does not answer.
    """
    if ray.is_initialized():
        return lambda: None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray_utils.set_sigterm_handler = lambda handler: None  # Ray's own would exit in the middle of ray.init
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return _start_private()
    _join(address, limit_s)
    return ray.shutdown


def _init(**settings: Any) -> None:
    handler, timer = signal.getsignal(signal.SIGTERM), signal.getitimer(signal.ITIMER_REAL)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, job_config=_JobConfig(), **settings)
    # Ray's C++ part installs a handler of its own, which prints a stack and sets an alarm that aborts the process.
    signal.setitimer(signal.ITIMER_REAL, *timer)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _start_private() -> Callable[[], None]:
    """Start a cluster that listens on loopback only, without a dashboard (it runs code).

    Ray replaces 127.0.0.1 with the machine's outside address. No setting prevents that (ray 2.60), so we replace the
    private function that does it.
    """
    services.resolve_ip_for_localhost = lambda host: host
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    parent, own = os.environ.get(variable, "/tmp"), None
    try:
        if len(os.fsencode(parent)) > LONGEST_FOLDER:
            own = tempfile.mkdtemp(prefix="longshort-", dir="/tmp")
            console.say(
                f"{variable} has {len(os.fsencode(parent))} characters, too many for Ray's sockets (at most "
                f"{LONGEST_FOLDER}): Ray's files go to {own} and are removed at the end"
            )
        _init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=own)
    except Exception as error:  # Ray raises even Exception itself, where its processes take too long
        raise LongShortError(
            f"Ray does not start on this machine, with its files in {own or parent}: {reason_of(error)}; free memory, "
            f"disk and cores, or set {variable} to a folder that can be written"
        ) from error

    def stop() -> None:
        ray.shutdown()
        if own:
            shutil.rmtree(own, ignore_errors=True)

    return stop


def _join(address: str, limit_s: float) -> None:
    """Join a cluster that may be dead.

    Ray would try for a quarter of an hour and notice no signal meanwhile, so it tries in a thread that may be left.
    """
    joined: concurrent.futures.Future[None] = concurrent.futures.Future()
    console.say(f"joining the Ray cluster at {address} (RAY_ADDRESS)")

    def join() -> None:
        try:
            _check_address(address)
            _init()
            joined.set_result(None)
        except Exception as error:  # noqa: BLE001 - raised below, where it is waited for
            joined.set_exception(error)

    try:
        with _ended_by_signals():
            threading.Thread(target=join, name="joins Ray's cluster", daemon=True).start()
            end = time.monotonic() + limit_s
            while not joined.done() and time.monotonic() < end:
                concurrent.futures.wait([joined], 0.1)  # short: SIGHUP may reach another thread and not end this wait
        if not joined.done():
            raise TimeoutError(f"no answer within {limit_s:g} s")
        joined.result()
    except LongShortError:
        raise
    except Exception as error:
        reason = " ".join((reason_of(error.__cause__) if error.__cause__ else str(error)).split())[:300]
        raise LongShortError(
            f"RAY_ADDRESS is {address}, but this process cannot join a Ray cluster there: {reason}; start the cluster, "
            "correct RAY_ADDRESS (and RAY_AUTH_TOKEN), or unset RAY_ADDRESS to use this machine alone"
        ) from error


def _check_address(address: str) -> None:
    """Refuse an address of another protocol, and one where nothing listens: Ray itself would go on trying."""
    if "://" in address:
        raise LongShortError(
            f"RAY_ADDRESS is {address}, but longshort joins a cluster as one of its nodes: give host:port, as `ray "
            "start --head` prints it; from elsewhere, send a job (`ray job submit`, with RAY_API_SERVER_ADDRESS)"
        )
    where = services.canonicalize_bootstrap_address(address)
    host, _, port = str(where).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTEN_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing listens at {where} ({error.strerror or error})") from None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal raise Interrupted at once; the event loop's handlers would wait until its thread is free again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise Interrupted(number, "Ray's cluster had not answered yet")

    wakeup = signal.set_wakeup_fd(-1)  # or the loop would handle the signal a second time
    handled = [number for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
