"""Grading: what counts as the same answer, and that no answer can harm the run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from longshort.grading.answers import decide
from longshort.grading.boxes import last_boxed, last_boxes
from longshort.grading.golds import gradable
from longshort.grading.pool import GradingPool, Verdict
from longshort.recipe.sections import GradingConfig
from longshort.types import LongShortError, Problem
from tests.support import ROOT

POISON = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "grading.py"))["POISON"]
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


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done {", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {3}", "3"),
        (r"\boxed{1} and \boxed{2", None),
        (r"}} \boxed{4}", "4"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed 5", "5"),
        (r"\boxed 12.", "12."),
        (r"\fbox{5}", "5"),
        (r"\boxed{5}. As asked, in \boxed{}.", ""),
        (r"so \boxed{5}. Finally \boxed{", None),
        (r"\boxed{" * 100_000, None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", ["1", "2", "3"]),
        (r"\boxed{1} \text{ or } \boxed{2}", ["1", "2"]),
        (r"first \boxed{1}. Then \boxed{2}", ["2"]),
        (r"\boxed{1} \boxed{2}", ["2"]),
    ],
)
def test_boxes_that_stand_side_by_side_are_one_answer(text, contents):
    assert last_boxes(text) == contents


@pytest.mark.parametrize(
    ("gold", "text", "reason"),
    [
        ("1,2", r"\boxed{1} and \boxed{2}", "match"),
        ("1,2", r"\boxed{1} and \boxed{3}", "mismatch"),
        ("2", r"\boxed{1} or \boxed{2}", "mismatch"),
        ("2", r"\boxed{1}. No, \boxed{2}", "match"),
        ("5", r"\boxed{5}, \boxed{5}", "match"),
        ("5", r"\boxed 5", "match"),
        ("5", r"\fbox{5}", "match"),
        ("5", r"\boxed{5}. As asked, in \boxed{}.", "no_answer"),
        ("5", r"so \boxed{5}. Finally \boxed{", "no_answer"),
        ("5", r"\boxed{ }", "no_answer"),
        ("7", r"\boxed{\frac\frac 7}", "unparsable"),
        ("5", r"\boxed{5 zorks}", "unparsable"),
        ("5", r"\boxed{5" + " " * 600 + "7}", "too_long"),
        ("5050", r"\boxed{\sum_{k=1}^{100} k}", "too_costly"),
        ("9^{9^{9^9}}", r"\boxed{9^{9^{9^9}}}", "match"),
        (r"\sqrt{2}", r"\boxed{\frac{2}{\sqrt 2}}", "match"),
        (r"\sqrt{2}", r"\boxed{\sqrt{3}}", "mismatch"),
    ],
)
def test_every_verdict_has_its_reason(pool, gold, text, reason):
    assert pool.grade_all([(gold, text)]) == [Verdict(correct=reason == "match", reason=reason)]


ORDINARY = ["e^{-x^2}", "2^{2^{10}}", "100!", r"\binom{2018}{1009}", "x^{n(n+1)/2}", "(a+b)^{10}", "10^{-9}"]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_powers_are_not_refused(text):
    assert decide(text, text + "+0") in ("match", None)


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("(" * 10 + "1" + ")" * 10, "(" * 11 + "1" + ")" * 11),
        ("7" * 500, "7" * 501),
        (r"\begin{pmatrix}" + "1&" * 99 + r"1\end{pmatrix}", r"\begin{pmatrix}" + "1&" * 100 + r"1\end{pmatrix}"),
        ("+".join(["|x|"] * 5), "+".join(["|x|"] * 6)),
        (r"\cup".join(["(1,2)"] * 11), r"\cup".join(["(1,2)"] * 12)),
        ("2^{10000}", "2^{10001}"),
        ("(x+1)^{20}", "(x+1)^{21}"),
        ("10000!", "10001!"),
        (r"\binom{99999}{2}", r"\binom{100000}{2}"),
    ],
)
def test_the_limits_of_what_is_refused(allowed, refused):
    assert decide("7", allowed) in ("mismatch", None)
    assert decide("7", refused) in ("too_long", "too_costly")


@pytest.mark.parametrize("name", POISON)
def test_poison_is_refused_by_name_before_any_process_sees_it(name):
    with GradingPool() as pool:
        (verdict,) = pool.grade_all([("7", rf"\boxed{{{POISON[name]}}}")])
        assert (verdict.correct, verdict.reason in ("too_long", "too_costly"), pool.pids()) == (False, True, [])


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


def test_plain_numbers_need_no_process():
    with GradingPool() as pool:
        assert [verdict.correct for verdict in pool.grade_all([("7", r"\boxed{7}"), ("7", r"\boxed{8}")])] == [
            True,
            False,
        ]
        assert (pool.pids(), pool.counts) == ([], {"match": 1, "mismatch": 1})


def test_a_grading_process_that_does_not_start_is_an_error_not_a_verdict():
    class BrokenPool(GradingPool):
        command = (sys.executable, "-c", "raise SystemExit(3)")

    with BrokenPool() as pool, pytest.raises(LongShortError, match="did not start: exit_3;"):
        pool.grade_all([NEEDS_ALGEBRA])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no_answer"),
        ("nan", "no_answer"),
        ("N/A", "no_answer"),
        (float("nan"), "no_answer"),
        (r"\frac{1}{", "unparsable"),
        ("5 zorks", "unparsable"),
        ("5 (approximately)", "unparsable"),
        ("it depends on which of the two numbers one takes first, and on what is left", "unparsable"),
        ("9^{9^{9^9}}", "too_costly"),
        ("?" * 501, "too_long"),
    ],
)
def test_a_gold_that_cannot_be_graded_is_left_out_by_name_and_the_rest_loads(answer, reason, capsys):
    fine, bad = Problem(id="fine", question="", answer=r"\frac{1}{2}"), Problem(id="row-9", question="", answer=answer)
    assert gradable([fine, bad], "data") == [fine]
    said = capsys.readouterr().out
    assert said.startswith("! data: 1 of 2 reference answers cannot be graded and are left out: problem 'row-9': ")
    assert said.endswith(f"({reason})\n")


UNUSUAL = ["€5", "蓝色", "Müller", '["1","2"]', "The answer is 5", "Answer: 5", "3/4 cup", "5%"]


@pytest.mark.parametrize("answer", UNUSUAL)
def test_unusual_golds_are_graded(answer):
    problem = Problem(id="1", question="", answer=answer)
    assert gradable([problem], "data") == [problem]


def test_data_without_any_usable_gold_are_refused_and_the_list_is_cut():
    with pytest.raises(LongShortError, match=r"^data: 8 of 8 .*'row-4'.*; …\. Correct"):
        gradable([Problem(id=f"row-{i}", question="", answer="") for i in range(8)], "data")


def test_a_pool_follows_the_recipes_section():
    with GradingPool.of(GradingConfig(workers=2, timeout_s=7.0, memory_mb=256)) as pool:
        assert (pool.timeout_s, pool.memory_mb, pool._threads._max_workers) == (7.0, 256, 2)


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


ODD = [
    r"\0",
    r"2\5",
    "²",
    "٣",
    ".",
    r"\.5",
    "|" * 300,
    "-" * 400,
    r"\frac1" * 80,
    "^",
    "\u0305",
    "1 1/-",
    "2 0/pi",
    "73:>",
]


@pytest.mark.parametrize("answer", ODD)
def test_odd_answers_get_an_ordinary_verdict(answer):
    assert decide("7", answer) in ("mismatch", "unparsable", "too_costly", "too_long")
