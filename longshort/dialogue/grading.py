r"""Is the answer right? A pool of grading processes that can hang, crash or eat memory without harm to the run (METHOD 1.5).

The last `\boxed{…}` of a text is cleaned and compared as a string; what a string comparison cannot decide goes to math-verify
(gold first) in one of `workers` processes. Each is limited in memory, killed at the deadline and replaced, so a verdict always comes
and always has a name:

    match | mismatch       the answer was graded
    no_answer              no \boxed{} in the text, or an empty one
    too_long | too_costly  refused before algebra (`answers.refusal`)
    unparsable             math-verify can make nothing of the answer
    timeout | memory       the process reached its deadline or its memory limit
    error:<name>           the grader raised <name> or died of signal <name>

A policy is paid only for `match`; the rest is counted by name in `GradingPool.counts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from longshort.dialogue import answers
from longshort.dialogue.answers import last_boxed
from longshort.types import LongShortError, Problem

__all__ = ["GradingPool", "Verdict", "check_gold", "last_boxed"]

START_TIMEOUT_S = 120.0
"""For importing sympy on a busy machine."""
DYING_TIMEOUT_S = 5.0
LISTED_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an answer is right, and how that was decided.

    Verdict(correct=False, reason="timeout")
    """

    correct: bool
    reason: str


class GradingPool:
    """Grades from any number of coroutines and threads at once; each process works on one answer at a time.

    `timeout_s` is the deadline of one answer, `memory_mb` what a process may grow by; verdicts are remembered for the last `cache_size`
    pairs of gold and answer. Processes start when first needed: a run whose answers are plain numbers never starts one.
    """

    command: Sequence[str] = (sys.executable, "-m", "longshort.dialogue.grading_worker")

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_mb: int = 1024, *, cache_size: int = 10_000):
        if importlib.util.find_spec("math_verify") is None:
            raise LongShortError("grading needs math-verify, which is not installed; run `pip install math-verify`")
        self.timeout_s, self.memory_mb, self.cache_size = timeout_s, memory_mb, cache_size
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._processes: dict[int, _Process] = {}  # by the thread that owns it
        self._asked: OrderedDict[tuple[str, str], Future[str]] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = False

    async def grade(self, gold: str, text: str) -> Verdict:
        r"""Grade the last `\boxed{…}` of `text` against `gold`. Raises LongShortError when no grading process can be started."""
        reason = self._begin(gold, text)
        if isinstance(reason, Future):  # shielded: another coroutine may wait for the same verdict
            reason = await asyncio.shield(asyncio.wrap_future(reason))
        return self._verdict(reason)

    def grade_all(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Grade (gold, text) pairs from ordinary code, in order."""
        begun = [self._begin(gold, text) for gold, text in pairs]
        return [self._verdict(reason.result() if isinstance(reason, Future) else reason) for reason in begun]

    def check_golds(self, problems: Sequence[Problem]) -> None:
        """Refuse a data set some of whose reference answers cannot be graded; raises one LongShortError that names the first few."""
        faults = self.gold_faults(problems)
        bad = [f"problem {p.id!r}: {str(p.answer)[:80]!r} ({faults[p.answer]})" for p in problems if p.answer in faults]
        if bad:
            listed = "; ".join(bad[:LISTED_ROWS]) + ("; …" if len(bad) > LISTED_ROWS else "")
            raise LongShortError(
                f"{len(bad)} of {len(problems)} reference answers cannot be graded: {listed}. Correct or drop these rows"
            )

    def gold_faults(self, problems: Sequence[Problem]) -> dict[str, str]:
        """The reference answers that cannot be graded, each with the reason."""
        begun = {problem.answer: self._check(problem.answer) for problem in problems}
        reasons = {gold: reason.result() if isinstance(reason, Future) else reason for gold, reason in begun.items()}
        return {gold: reason for gold, reason in reasons.items() if reason != "match"}

    @property
    def counts(self) -> dict[str, int]:
        """How many verdicts had which reason since the pool was made."""
        with self._lock:
            return dict(self._counts)

    def pids(self) -> list[int]:
        """The grading processes that run now."""
        with self._lock:
            return [process.pid for process in self._processes.values() if process.alive()]

    def close(self) -> None:
        """Kill the processes and wait for them. Verdicts still awaited are cancelled or raise LongShortError."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in processes:
            process.reap()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin(self, gold: str, text: str) -> str | Future[str]:
        """The reason if strings decide it, else the reason to come."""
        answer = (last_boxed(text) or "").strip()
        if not answer:
            return "no_answer"
        if max(len(gold), len(answer)) > answers.MAX_CHARACTERS:
            return "too_long"
        gold, answer = answers.canonical(gold), answers.canonical(answer)
        if (equal := answers.quick(gold, answer)) is not None:
            return "match" if equal else "mismatch"
        return answers.refusal(answer) or answers.refusal(gold) or self._ask(gold, answer)

    def _check(self, gold: str) -> str | Future[str]:
        if not isinstance(gold, str) or gold.strip().casefold() in ("", "nan"):
            return "no_answer"
        if len(gold) > answers.MAX_CHARACTERS:
            return "too_long"
        gold = answers.canonical(gold)
        return answers.refusal(gold) or ("match" if answers.is_plain(gold) else self._ask(gold, gold))

    def _ask(self, gold: str, answer: str) -> Future[str]:
        key = (gold, answer)
        with self._lock:
            if self._closed:
                raise LongShortError("the grading pool was closed; no more answers can be graded")
            known = self._asked.get(key)
            if known is None or (
                known.done() and (known.cancelled() or known.exception() or known.result().startswith("error:"))
            ):
                known = self._threads.submit(
                    self._run, gold, answer
                )  # a crash may be no fault of the answer's: it is not remembered
                self._asked[key] = known
            self._asked.move_to_end(key)
            while len(self._asked) > self.cache_size:
                self._asked.popitem(last=False)
        return known

    def _run(self, gold: str, answer: str) -> str:
        """In a thread of the pool: have this thread's process decide, starting it where there is none."""
        try:
            process = self._processes.get(threading.get_ident())
            if process is None or not process.alive():
                process = self._start()
            reason = process.ask({"gold": gold, "answer": answer}, self.timeout_s)
        except LongShortError:
            if not self._closed:
                raise
        if self._closed:  # then close() killed the process, and how it ended says nothing about the answer
            raise LongShortError("the grading pool was closed while this answer was graded")
        return reason

    def _start(self) -> _Process:
        process = _Process([*self.command, str(self.memory_mb)])
        with self._lock:
            old = self._processes.get(threading.get_ident())
            self._processes[threading.get_ident()] = process
            if self._closed:
                process.kill()
        if old is not None:
            old.reap()
        process.await_ready()
        return process

    def _verdict(self, reason: str) -> Verdict:
        with self._lock:
            self._counts[reason] += 1
        return Verdict(correct=reason == "match", reason=reason)


def check_gold(answer: str) -> None:
    """Raise LongShortError when `answer` cannot serve as a reference answer. For many, `GradingPool.check_golds` is faster."""
    with GradingPool() as pool:
        pool.check_golds([Problem(id="gold", question="", answer=answer)])


class _Process:
    """One grading process and the pipe to it. Made and used by one thread only: the kernel kills it when that thread ends."""

    def __init__(self, command: Sequence[str]):
        # A plain subprocess, not multiprocessing: that would run the user's main module again in every worker.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._child = subprocess.Popen(command, env=environment, bufsize=0, **pipes)
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return self._child.poll() is None

    def await_ready(self) -> None:
        """Wait for the imports; raises LongShortError when the process does not come up."""
        line = self._read_line(START_TIMEOUT_S)
        if line is None:
            reply = {"failed": f"nothing heard for {START_TIMEOUT_S:.0f} s"}
        else:
            reply = json.loads(line) if line else {"failed": self._cause_of_death()}
        if "failed" in reply:
            self.reap()
            raise LongShortError(
                f"a grading process did not start: {reply['failed']}; try `python -m longshort.dialogue.grading_worker 1024` to see why"
            )

    def ask(self, request: dict[str, str], timeout_s: float) -> str:
        """The reason of the verdict; at the deadline the process is killed. Afterwards the process may be dead."""
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            return f"error:{self._cause_of_death()}"
        line = self._read_line(timeout_s)
        if line is None:
            self.reap()
            return "timeout"
        if not line:
            return f"error:{self._cause_of_death()}"
        reason = json.loads(line)["reason"]
        if reason == "memory":
            self.reap()
        return reason

    def kill(self) -> None:
        """End the process; from any thread."""
        self._child.kill()

    def reap(self) -> None:
        """End the process and free what it held."""
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()

    def _read_line(self, timeout_s: float) -> bytes | None:
        """One line; None at the deadline, empty when the process closed the pipe."""
        pipe = self._child.stdout.fileno()
        poll = select.poll()  # select() fails on file numbers above 1023, which a long run reaches
        poll.register(pipe, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            piece = os.read(pipe, 65536)
            if not piece:
                return b""
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _cause_of_death(self) -> str:
        """How a process ended that has closed its pipe; it gets a moment to finish dying, or its end would always be our SIGKILL."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(DYING_TIMEOUT_S)
        self.reap()
        code = self._child.returncode
        return signal.Signals(-code).name if code < 0 else f"exit_{code}"
