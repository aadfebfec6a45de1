"""One run per folder: a lock that its holder's end removes, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from longshort import console
from longshort.types import LongShortError

LOCK = "run.lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder while the block runs; makes the folder, and leaves none that is empty.

    LongShortError, with the holder's process and machine, if another run has it. The kernel frees the lock of a process
    that dies. On a network file system it holds between machines if the system has such locks (NFS has); where a file
    system has none, the run says so and goes on.
    """
    path = folder / LOCK
    file = _locked(path)
    try:
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}: {' '.join(sys.argv)}\n")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # it holds results
            folder.rmdir()


def _locked(path: Path) -> TextIO:
    """Open and lock the file. A run that just ended may remove the file between the two: then once more."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise LongShortError(f"{path} cannot be written ({error.strerror}); choose another output_dir") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise LongShortError(
                f"{path.parent} belongs to another run (process {holder}); wait for its end or stop it, or choose "
                "another output_dir"
            ) from None
        except OSError as error:
            console.say(f"! {path}: this file system has no locks ({error.strerror}); let no second run write here")
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def check(folder: Path) -> None:
    """Refuse a folder that a run holds; LongShortError as `hold` raises it."""
    if (folder / LOCK).exists():
        with hold(folder):
            pass
