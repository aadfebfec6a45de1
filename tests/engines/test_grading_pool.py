"""The grader's processes: a deadline, a crash or a kill costs one answer, and every reference answer is right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from longshort.grading import worker
from longshort.grading.answers import fault_of_gold
from longshort.grading.choices import letter_of
from longshort.grading.pool import GradingPool
from longshort.grading.spelling import plain
from longshort.types import LongShortError
from tests.support import ROOT

NEEDS_ALGEBRA = ("x+y", r"\boxed{y+x}")
EVIL_WORKER = r"""
import ctypes, sys, time
import longshort.grading.worker as worker

def compare(gold, answer):
    if "hang" in answer:
        while True:
            pass
    if "oom" in answer:
        return "match" if bytes(512 * 2**20) else "unparsable"
    if "eat" in answer:
        hoard = bytearray(48 * 2**20)
        return "mismatch"
    if "raise" in answer:
        raise KeyError("a bug in the grader")
    if "segfault" in answer:
        ctypes.string_at(0)
    if "exit" in answer:
        raise SystemExit(3)
    return "match"

worker.compare = compare
worker.serve(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def pool():
    with GradingPool() as pool:
        yield pool


@pytest.fixture
def evil_pool(tmp_path):
    """A pool whose grader misbehaves when the answer says so."""
    script = tmp_path / "evil.py"
    script.write_text(EVIL_WORKER)

    class EvilPool(GradingPool):
        command = (sys.executable, str(script))

    with EvilPool(timeout_s=4.0, memory_mb=128) as pool:
        yield pool


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def runs(pid: int) -> bool:
    """Whether a process lives (a zombie that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_poison_that_is_not_recognised_meets_the_deadline_and_the_pool_lives_on():
    with GradingPool(timeout_s=1.0) as pool:
        gold = "(a+b+c+d)^{20}+(p+q+r+s)^{20}"
        split = "(a+b+c+d)^{19}(a+b+c)+(a+b+c+d)^{19}d+(p+q+r+s)^{19}(p+q+r)+(p+q+r+s)^{19}s"
        slow = (gold, rf"\boxed{{{split}}}")
        assert [verdict.reason for verdict in pool.grade_all([slow, NEEDS_ALGEBRA, slow])] == [
            "timeout",
            "match",
            "timeout",
        ]
        assert pool.counts == {"timeout": 2, "match": 1}


def test_every_way_a_grader_can_fail_has_a_name(evil_pool):
    failures = {
        "hang": "timeout",
        "oom": "memory",
        "eat": "memory",
        "raise": "error:KeyError",
        "segfault": "error:SIGSEGV",
        "exit": "error:exit_3",
    }
    pairs = [
        pair
        for word in failures
        for pair in (("x", rf"\boxed{{y_{{{word}}}}}"), ("x", rf"\boxed{{z_{{{word[::-1]}}}}}"))
    ]
    reasons = [verdict.reason for verdict in evil_pool.grade_all(pairs)]
    assert reasons[::2] == list(failures.values())
    assert reasons[1::2] == ["match"] * len(failures)
    assert evil_pool.counts == Counter(reasons)


def test_a_crash_is_not_remembered_but_a_timeout_is(evil_pool, tmp_path):
    pairs = [("x", r"\boxed{y_{segfault}}"), ("x", r"\boxed{y_{hang}}")]
    assert [verdict.reason for verdict in evil_pool.grade_all(pairs)] == ["error:SIGSEGV", "timeout"]
    healed = EVIL_WORKER.replace("ctypes.string_at(0)", 'return "match"').replace("while True", "while False")
    (tmp_path / "evil.py").write_text(healed)
    assert [verdict.reason for verdict in evil_pool.grade_all(pairs)] == ["match", "timeout"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_worker_killed_while_idle_is_replaced(name):
    with GradingPool() as pool:
        assert pool.grade_all([NEEDS_ALGEBRA])[0].correct
        (old,) = pool.pids()
        os.kill(old, signal.Signals[name])
        assert eventually(lambda: not pool.pids())
        assert pool.grade_all([("a+b", r"\boxed{b+a}")])[0].reason == "match"
        assert pool.pids() != [old]


def test_a_worker_killed_while_grading_costs_that_one_answer(evil_pool):
    evil_pool.timeout_s = 60.0

    async def scenario():
        grading = asyncio.create_task(evil_pool.grade("x", r"\boxed{y_{hang}}"))
        while not evil_pool.pids():
            await asyncio.sleep(0.01)
        await asyncio.sleep(2.0)  # past its start
        os.kill(evil_pool.pids()[0], signal.SIGKILL)
        return [await grading, await evil_pool.grade("x", r"\boxed{y_{fine}}")]

    reasons = [verdict.reason for verdict in asyncio.run(scenario())]
    assert reasons == ["error:SIGKILL", "match"]


def test_one_stuck_worker_does_not_hold_up_the_others(evil_pool):
    with type(evil_pool)(workers=2, timeout_s=600.0) as pool:

        async def scenario():
            stuck = asyncio.create_task(pool.grade("x", r"\boxed{y_{hang}}"))
            verdicts = await asyncio.gather(*(pool.grade("x", rf"\boxed{{y_{{{i}}}}}") for i in range(200)))
            assert not stuck.done()
            pids = pool.pids()
            pool.close()
            with pytest.raises(LongShortError, match="closed"):
                await stuck
            return verdicts, pids

        verdicts, pids = asyncio.run(scenario())
    assert Counter(verdict.reason for verdict in verdicts) == {"match": 200}
    assert len(pids) == 2 and not any(runs(pid) for pid in pids)


@pytest.mark.parametrize(("name", "count"), [("math500.jsonl", 500), ("amc23.jsonl", 40), ("aime24.jsonl", 30)])
def test_every_gold_is_read_and_is_itself(shared_data, name, count):
    golds = [row["answer"] for row in rows(shared_data, name)]
    assert [gold for gold in golds if fault_of_gold(gold)] == []
    assert Counter(worker.compare(plain(gold), plain(gold)) for gold in golds if not letter_of(gold)) == {
        "match": count - sum(map(bool, map(letter_of, golds)))
    }


@pytest.mark.parametrize(("answer", "reason"), [(r"\frac{2}{\sqrt 2}", "match"), (r"\sqrt{3}", "mismatch")])
def test_what_takes_algebra_is_graded_by_a_process(pool, answer, reason):
    assert [verdict.reason for verdict in pool.grade_all([(r"\sqrt{2}", rf"\boxed{{{answer}}}")])] == [reason]
    assert pool.pids()


def test_equal_questions_are_graded_once_and_a_cancelled_waiter_takes_nobody_with_it(evil_pool):
    async def scenario():
        ahead = asyncio.create_task(evil_pool.grade("x", r"\boxed{y}"))
        waiters = [asyncio.create_task(evil_pool.grade("x", r"\boxed{y_{raise}}")) for _ in range(8)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await ahead
        return await asyncio.gather(*waiters, return_exceptions=True)

    first, *others = asyncio.run(scenario())
    assert isinstance(first, asyncio.CancelledError)
    assert {verdict.reason for verdict in others} == {"error:KeyError"} and len(evil_pool._reasons) == 2


def test_close_leaves_no_process_and_refuses_more_work():
    pool = GradingPool()
    assert pool.grade_all([NEEDS_ALGEBRA])[0].correct
    (pid,) = pool.pids()
    pool.close()
    pool.close()
    assert not runs(pid)
    with pytest.raises(LongShortError, match="closed"):
        pool.grade_all([NEEDS_ALGEBRA])


PARENT = r"""
import sys
from longshort.grading.pool import GradingPool
class EvilPool(GradingPool):
    command = (sys.executable, sys.argv[1])
pool = EvilPool(workers=2, timeout_s=600)
pool.grade_all([("x", r"\boxed{y}")])
pool._reason("x", r"\boxed{y_{hang}}")
pool._reason("x", r"\boxed{z_{hang}}")
while len(pool.pids()) < 2:
    pass
print(*pool.pids(), flush=True)
sys.stdin.read()
"""


def test_workers_die_with_a_killed_parent_even_when_busy(tmp_path):
    (tmp_path / "evil.py").write_text(EVIL_WORKER)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "evil.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert eventually(lambda: all(runs(pid) for pid in pids))
        parent.kill()
    assert eventually(lambda: not any(runs(pid) for pid in pids))


def test_the_parent_never_imports_the_algebra():
    script = r"""
import sys
from longshort.grading.pool import GradingPool
with GradingPool() as pool:
    print(pool.grade_all([("x+y", r"\boxed{y+x}")])[0].reason, {"sympy", "math_verify"} & set(sys.modules))
"""
    output = subprocess.check_output(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )
    assert output == "match set()\n"


def test_a_grading_process_that_does_not_start_is_an_error_not_a_verdict():
    class BrokenPool(GradingPool):
        command = (sys.executable, "-c", "raise SystemExit(3)")

    with BrokenPool() as pool, pytest.raises(LongShortError, match="did not start: exit_3;"):
        pool.grade_all([NEEDS_ALGEBRA])


def test_disagreements_with_the_recorded_verdicts_are_the_explained_ones(pool, shared_data):
    recorded = rows(shared_data, "graded_responses_math500.jsonl")
    verdicts = pool.grade_all([(row["answer"], row["response"]) for row in recorded])
    disagreements = [
        i for i, (row, verdict) in enumerate(zip(recorded, verdicts, strict=True)) if row["correct"] != verdict.correct
    ]
    table = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    assert disagreements == [int(index) for index in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert len(disagreements) == 14
    assert Counter(verdict.reason for verdict in verdicts) == {"match": 435, "no_answer": 44, "mismatch": 21}


def test_files_of_the_working_folder_shadow_no_import_of_the_grader(tmp_path, monkeypatch):
    for name in ("random.py", "token.py", "math_verify.py", "longshort.py"):
        (tmp_path / name).write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as in an interactive session
    with GradingPool() as pool:
        assert [verdict.reason for verdict in pool.grade_all([NEEDS_ALGEBRA])] == ["match"]
