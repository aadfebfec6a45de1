"""Grading: what counts as the same answer, and that no answer can harm the run."""

from __future__ import annotations

import runpy

import pytest

from longshort.grading.answers import decide
from longshort.grading.boxes import last_boxed, last_boxes
from longshort.grading.golds import gradable
from longshort.grading.pool import GradingPool, Verdict
from longshort.grading.worker import compare
from longshort.recipe.sections import GradingConfig
from longshort.types import LongShortError, Problem
from tests.support import ROOT

POISON = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "grading.py"))["POISON"]


@pytest.fixture(scope="module")
def pool():
    with GradingPool() as pool:
        yield pool


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


def test_plain_numbers_need_no_process():
    with GradingPool() as pool:
        assert [verdict.correct for verdict in pool.grade_all([("7", r"\boxed{7}"), ("7", r"\boxed{8}")])] == [
            True,
            False,
        ]
        assert (pool.pids(), pool.counts) == ([], {"match": 1, "mismatch": 1})


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


def test_a_set_of_a_lone_comma_is_not_understood():
    assert decide("5", r"\{,\}") == "unparsable"


def test_an_inequality_of_the_imaginary_unit_is_a_mismatch():
    assert compare("0<x<1", "i<31") == "mismatch"
