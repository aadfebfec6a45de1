"""A verdict on an answer by its text and exact arithmetic; None where only algebra can tell.

Undecided is not a match: an answer is right only if everything in it was understood and is what the gold says.
"""

from __future__ import annotations

import re
from itertools import accumulate

from longshort.grading.arithmetic import Arithmetic
from longshort.grading.choices import choice_of, letter_of
from longshort.grading.comparing import same
from longshort.grading.exact import TooCostly
from longshort.grading.reading import read
from longshort.grading.spelling import plain
from longshort.grading.tokens import Unread
from longshort.grading.values import Text

MAX_CHARACTERS = 500
"""About ten times the longest reference answer of MATH500."""
MAX_NESTING, MAX_BARS = 10, 10
"""Depth of nested brackets; bars of absolute values."""
MAX_WORDS = 12
"""Of a gold: no answer is spelled like a longer one."""
NO_GOLDS = frozenset({"", "nan", "n/a", "null", "unknown", "tbd"})


def decide(gold: str, answer: str) -> str | None:
    """Return `match`, `mismatch` or why the answer cannot be graded; None if only algebra can tell."""
    if max(len(gold), len(answer)) > MAX_CHARACTERS:
        return "too_long"
    if letter := letter_of(gold):
        return _reason(choice_of(answer) == letter)
    try:
        return _decide(plain(gold), plain(answer))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"error:{type(error).__name__}"  # as in a grading process: no answer ends the run


def _decide(gold: str, answer: str) -> str | None:
    if _spaceless(gold) == _spaceless(answer) != "":
        return "match"
    if fault := _fault(answer) or _fault(gold):
        return fault
    try:
        return _reason(same(read(gold), read(answer), Arithmetic()))
    except Unread:
        return "unparsable"


def fault_of_gold(gold: str) -> str:
    """Return why nothing can be graded against a gold, "" if it is usable."""
    if not isinstance(gold, str) or gold.strip().casefold() in NO_GOLDS:
        return "no_answer"
    if len(gold) > MAX_CHARACTERS:
        return "too_long"
    if letter_of(gold):
        return ""
    spelled = plain(gold)
    if fault := _fault(spelled):
        return fault
    value = read(spelled)
    return "unparsable" if isinstance(value, Text) and len(value.words.split()) > MAX_WORDS else ""


def _fault(spelled: str) -> str:
    """Return why a text in the plain spelling is not read, "" if it is."""
    if len(spelled) > MAX_CHARACTERS or _nesting(spelled) > MAX_NESTING:
        return "too_long"
    if spelled.count("|") > MAX_BARS:
        return "too_costly"
    try:
        read(spelled)
    except Unread:
        return "unparsable"
    except TooCostly:
        return "too_costly"
    return ""


def _reason(equal: bool | None) -> str | None:
    return None if equal is None else "match" if equal else "mismatch"


def _spaceless(text: str) -> str:
    """Return the text without blanks, but those between letters or digits and behind the commas of lists of numbers."""
    return re.sub(r"(?<![\w,]) | (?!\w)", "", text)


def _nesting(text: str) -> int:
    steps = ((character in "{([⦃⟨⦅") - (character in "})]⦄⟩⦆") for character in text)
    return max(accumulate(steps, initial=0))
