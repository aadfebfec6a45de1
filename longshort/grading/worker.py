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

MIB = 2**20
_PR_SET_PDEATHSIG = 1


def compare(gold: str, answer: str) -> str:
    """Return `match`, `mismatch` or `unparsable`. Raises what math-verify raises: its errors are not wrong answers."""
    from math_verify import verify

    gold_parsed, answer_parsed = parse(gold), parse(answer)
    if not gold_parsed or not answer_parsed:
        return "unparsable"
    # gold first: verify is not symmetric (it unwraps an assignment in the answer to fit the gold's form)
    equal = verify(gold_parsed, answer_parsed, allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True)
    return "match" if equal else "mismatch"


def parse(answer: str) -> list:
    """Parse a LaTeX answer into sympy expressions; empty if math-verify cannot.

    Its plain-expression mode is off: it would pick any number from an answer that is not LaTeX (`9**9 7` reads as 7).
    So is its fallback to strings, which `answers.quick` has compared already.
    """
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${answer}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)


def verdict(request: dict[str, str], trusted_mb: float) -> str:
    """Return the reason of a Verdict.

    math-verify and sympy sometimes swallow a MemoryError and call the answer wrong. So once the process has grown
    beyond `trusted_mb` MiB, anything but a match counts as `memory` too.
    """
    try:
        reason = compare(request["gold"], request["answer"])
    except MemoryError:
        return "memory"
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
        compare(r"\frac{1}{2}+\sqrt{2}", r"(0,1]")  # the first parse builds tables; do it before any deadline runs
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
