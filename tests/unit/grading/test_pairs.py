"""No wrong answer is paid, and right answers match in every usual spelling. The pairs stand in tests/support."""

from __future__ import annotations

import pytest

from longshort.grading.answers import decide
from longshort.grading.spelling import plain
from longshort.grading.worker import compare
from tests.support.graded_pairs import KINDS, Rows
from tests.support.graded_variants import variants

EVERY = KINDS | {f"random {name}": rows for name, rows in variants().items()}


def verdict(gold: str, answer: str) -> str:
    """Grade as the pool does, but in this process."""
    return decide(gold, answer) or compare(plain(gold), plain(answer))


def right(rows: Rows) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, answers, _ in rows for answer in (gold, *answers)]


def wrong(rows: Rows) -> list[tuple[str, str]]:
    return [(gold, answer) for gold, _, answers in rows for answer in answers]


@pytest.mark.parametrize("kind", EVERY)
def test_no_wrong_answer_is_accepted(kind):
    assert [pair for pair in wrong(EVERY[kind]) if verdict(*pair) == "match"] == []


@pytest.mark.parametrize("kind", EVERY)
def test_no_right_answer_is_refused(kind):
    assert [pair for pair in right(EVERY[kind]) if verdict(*pair) != "match"] == []


def test_there_are_thousands_of_pairs_of_both_verdicts():
    assert sum(len(right(rows)) for rows in EVERY.values()) > 1500
    assert sum(len(wrong(rows)) for rows in EVERY.values()) > 1500
    assert len(right([row for rows in KINDS.values() for row in rows])) > 700
    assert len(wrong([row for rows in KINDS.values() for row in rows])) > 700
