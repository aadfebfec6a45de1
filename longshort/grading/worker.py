"""The grading process: reads one request per line, asks math-verify, writes one verdict per line.

`grading.GradingPool` starts it. No other file imports math-verify and sympy, which may loop for hours, eat all memory
or crash: they run in a process that the parent can kill. The parent's deadline replaces math-verify's SIGALRM timeouts.

    python -m longshort.grading.worker MEMORY_MB
    < {"gold": "\\\\frac{1}{2}", "answer": "0.5"}
    > {"reason": "match"}
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys

from longshort.grading.comparing import same
from longshort.grading.reading import read
from longshort.grading.tokens import Unread

MIB = 2**20
_PR_SET_PDEATHSIG = 1


def compare(gold: str, answer: str) -> str:
    """Return `match` or `mismatch` for two texts in the plain spelling. Raises what algebra raises."""
    from longshort.grading.algebra import Algebra

    return "match" if same(read(gold), read(answer), Algebra()) else "mismatch"


def verdict(request: dict[str, str], trusted_mb: float) -> str:
    """Return the reason of a Verdict.

    math-verify and sympy sometimes swallow a MemoryError and call the answer wrong. So once the process has grown
    beyond `trusted_mb` MiB, anything but a match counts as `memory` too.
    """
    try:
        reason = compare(request["gold"], request["answer"])
    except MemoryError:
        return "memory"
    except Unread:
        reason = "unparsable"
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"error:{type(error).__name__}"
    return reason if reason == "match" or _peak_mb() < trusted_mb else "memory"


def _peak_mb() -> float:
    """Return the peak of resident memory. (ru_maxrss would start at the peak of the parent process.)"""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def limit_memory(allowance_mb: int) -> None:
    """Let the process grow by `allowance_mb` MiB beyond its imports; more raises MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limit = now + allowance_mb * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends for any reason (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(allowance_mb: int) -> None:
    """Answer requests until standard input ends. The first line sent is {"ready": true}, or {"failed": why}."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and may need verdicts while it saves
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # so that nothing a library prints is read as a reply
    try:
        compare(r"\sqrt{2}x+\sin x", r"x\sqrt{2}+\sin x")  # the first use is slow; do it before any deadline runs
    except ImportError as error:
        print(json.dumps({"failed": str(error)}), file=replies)
        return
    limit_memory(allowance_mb)
    trusted_mb = _peak_mb() + allowance_mb / 4
    print(json.dumps({"ready": True}), file=replies)
    for line in sys.stdin:
        reason = verdict(json.loads(line), trusted_mb)
        print(json.dumps({"reason": reason}), file=replies)
        if reason == "memory":
            return  # the heap is fragmented and its peak stays high: the parent starts a new process


if __name__ == "__main__":
    serve(int(sys.argv[1]))
