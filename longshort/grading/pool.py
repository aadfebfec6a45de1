r"""Decide whether an answer is right, in processes that can hang, crash or eat memory without harm to the run.

`answers.decide` compares the last `\boxed{…}` of a text with the reference answer ("gold"). Where that takes algebra,
one of `workers` processes does it. A process has limited memory and is killed and replaced at its deadline, so every
answer gets a verdict; docs/grading.md lists the reasons. Only `match` is correct.
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
from pathlib import Path

from longshort.grading import answers
from longshort.grading.boxes import last_boxes
from longshort.grading.golds import gold_faults
from longshort.grading.spelling import plain
from longshort.recipe.sections import GradingConfig
from longshort.types import LongShortError, Problem

START_TIMEOUT_S = 120.0
"""For importing sympy on a busy machine."""
DYING_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an answer is right, and how that was decided.

    Verdict(correct=False, reason="timeout")
    """

    correct: bool
    reason: str


class GradingPool(contextlib.AbstractContextManager["GradingPool"]):
    """Grades answers for any number of coroutines and threads at once. Each process works on one answer at a time.

    An answer must be graded within `timeout_s`; a process may grow by `memory_mb`. The verdicts of the last
    `cache_size` pairs of gold and answer are remembered. Processes start when first needed: answers that are plain
    numbers need none.
    """

    command: Sequence[str] = (sys.executable, "-P", "-m", "longshort.grading.worker")

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_mb: int = 1024, *, cache_size: int = 10_000):
        if importlib.util.find_spec("math_verify") is None:
            raise LongShortError("grading needs math-verify, which is not installed; run `pip install math-verify`")
        self.timeout_s, self.memory_mb, self.cache_size = timeout_s, memory_mb, cache_size
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grading")
        self._processes: dict[int, _Process] = {}  # by the thread that owns it
        self._reasons: OrderedDict[tuple[str, str], Future[str]] = OrderedDict()  # by gold and answer
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def of(cls, settings: GradingConfig) -> GradingPool:
        """Make the pool that the recipe's section `grading` describes."""
        return cls(settings.workers, settings.timeout_s, settings.memory_mb)

    async def grade(self, gold: str, text: str) -> Verdict:
        r"""Grade the last `\boxed{…}` of `text` against `gold`. Raises LongShortError if no process can start."""
        reason = self._reason(gold, text)
        if isinstance(reason, Future):  # shielded: another coroutine may wait for the same verdict
            reason = await asyncio.shield(asyncio.wrap_future(reason))
        return self._verdict(reason)

    def grade_all(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Grade (gold, text) pairs from ordinary code, in order."""
        reasons = [self._reason(gold, text) for gold, text in pairs]
        return [self._verdict(_wait(reason)) for reason in reasons]

    def gold_faults(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Return the reference answers that cannot be graded, each with the reason."""
        return gold_faults(problems)

    @property
    def counts(self) -> dict[str, int]:
        """Count the verdicts by reason, since the pool was made."""
        with self._lock:
            return dict(self._counts)

    def pids(self) -> list[int]:
        """Return the ids of the grading processes that are running."""
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

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reason(self, gold: str, text: str) -> str | Future[str]:
        """Return the reason if text and arithmetic decide, else the future of a process's reason."""
        contents = [content.strip() for content in last_boxes(text)]
        if not contents or not all(contents):
            return "no_answer"
        answer = ", ".join(dict.fromkeys(contents))
        return answers.decide(gold, answer) or self._ask(plain(gold), plain(answer))

    def _ask(self, gold: str, answer: str) -> Future[str]:
        key = (gold, answer)
        with self._lock:
            if self._closed:
                raise LongShortError("the grading pool was closed; no more answers can be graded")
            reason = self._reasons.get(key)
            # The answer may not be to blame for a crash, so crashes are not remembered.
            if reason is None or (
                reason.done() and (reason.cancelled() or reason.exception() or reason.result().startswith("error:"))
            ):
                reason = self._reasons[key] = self._threads.submit(self._ask_process, gold, answer)
            self._reasons.move_to_end(key)
            while len(self._reasons) > self.cache_size:
                self._reasons.popitem(last=False)
        return reason

    def _ask_process(self, gold: str, answer: str) -> str:
        """Ask this thread's process, which starts if it is not running. Runs in a thread of the pool."""
        reason = ""
        try:
            process = self._processes.get(threading.get_ident())
            if process is None or not process.alive():
                process = self._start()
            reason = process.ask({"gold": gold, "answer": answer}, self.timeout_s)
        except LongShortError:
            if not self._closed:
                raise
        if self._closed:  # close() killed the process: how it ended says nothing about the answer
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


def _wait(reason: str | Future[str]) -> str:
    return reason.result() if isinstance(reason, Future) else reason


def _import_paths() -> list[str]:
    """Return where a grading process finds modules: as this process, but a file of the working folder shadows none."""
    paths = [os.path.realpath(path) for path in sys.path]
    return [path for path in paths if path != os.path.realpath(os.curdir)] + [str(Path(__file__).parents[2])]


class _Process:
    """One grading process and its pipes. One thread makes and uses it: the kernel kills it when that thread ends."""

    def __init__(self, command: Sequence[str]):
        # A plain subprocess, not multiprocessing: that would run the user's main module again in every worker.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(_import_paths())}
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(
            command, env=environment, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        assert self._child.stdin and self._child.stdout  # as PIPE says
        self._requests, self._replies = self._child.stdin, self._child.stdout
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return self._child.poll() is None

    def await_ready(self) -> None:
        """Wait for the imports; raises LongShortError if the process does not start."""
        line = self._read_line(START_TIMEOUT_S)
        if line is None:
            failure = f"no reply for {START_TIMEOUT_S:.0f} s"
        else:
            failure = json.loads(line).get("failed") if line else self._cause_of_death()
        if failure is not None:
            self.reap()
            raise LongShortError(
                f"a grading process did not start: {failure}; to see why, run `python -m longshort.grading.worker 1024`"
            )

    def ask(self, request: dict[str, str], timeout_s: float) -> str:
        """Return the reason of the verdict. Kill the process at the deadline; it may also die by itself."""
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
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
        """End the process. Any thread may call this."""
        self._child.kill()

    def reap(self) -> None:
        """End the process, wait for it and close its pipes."""
        self._child.kill()
        self._child.wait()
        self._requests.close()
        self._replies.close()

    def _read_line(self, timeout_s: float) -> bytes | None:
        """Read one line; None at the deadline, empty if the process closed the pipe."""
        pipe = self._replies.fileno()
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
        """Return how a process ended that closed its pipe. It gets a moment to die, before our own signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(DYING_TIMEOUT_S)
        self.reap()
        code = self._child.returncode
        return signal.Signals(-code).name if code < 0 else f"exit_{code}"
