"""The grading process: reads one request per line, asks math-verify, writes one verdict per line. Started by `grading.GradingPool`.

The only file that imports math-verify and sympy. They may loop for hours, eat all memory or crash: that is why they live in a process
that the parent can kill. math-verify's own SIGALRM timeouts are off, the parent's deadline rules.

    python -m longshort.dialogue.grading_worker MEMORY_MB
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
    """One of `match | mismatch | unparsable`. Raises what math-verify raises: an error in the grader is no wrong answer."""
    from math_verify import verify

    gold_parsed, answer_parsed = parse(gold), parse(answer)
    if not gold_parsed or not answer_parsed:
        return "unparsable"
    # gold first: verify is not symmetric (an assignment in the answer is unwrapped to fit the gold's form)
    equal = verify(gold_parsed, answer_parsed, allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True)
    return "match" if equal else "mismatch"


def parse(answer: str) -> list:
    """What math-verify makes of a LaTeX answer: sympy expressions; empty where it cannot.

    Its plain-expression mode is off: from an answer that is no LaTeX it would pick any number (`9**9 7` reads as 7), and so is its
    fallback to strings, since `answers.quick` has compared those already.
    """
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${answer}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)


def verdict(request: dict[str, str], trusted_mb: float) -> str:
    """The reason of a Verdict. math-verify and sympy swallow MemoryError here and there and call the answer wrong, so nothing but a
    match is believed once the process has grown beyond `trusted_mb` MiB: that is `memory` as well."""
    try:
        reason = compare(request["gold"], request["answer"])
    except MemoryError:
        return "memory"
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"error:{type(error).__name__}"
    return reason if reason == "match" or _peak_mb() < trusted_mb else "memory"


def _peak_mb() -> float:
    """Most memory ever resident. Not ru_maxrss, which begins at the peak of the process that started this one."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def limit_memory(allowance_mb: int) -> None:
    """Let the process grow by `allowance_mb` MiB beyond what its imports took; more is a MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + allowance_mb * MIB,) * 2)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(allowance_mb: int) -> None:
    """Answer requests until standard input ends. The first line sent is {"ready": true}, or {"failed": why}."""
    die_with_parent()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle: it may still want verdicts while it saves
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    try:
        compare(r"\frac{1}{2}+\sqrt{2}", r"(0,1]")  # the first parse builds tables: before the first deadline starts
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
            return  # the heap is in pieces and its peak is history: the parent starts a fresh process


if __name__ == "__main__":
    serve(int(sys.argv[1]))
