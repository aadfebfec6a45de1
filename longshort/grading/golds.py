"""Reference answers ("golds") that nothing can be graded against: those rows are left out by name, the rest loads."""

from __future__ import annotations

from collections.abc import Sequence

from longshort import console
from longshort.grading.answers import fault_of_gold
from longshort.types import LongShortError, Problem

LISTED_FAULTS = 5


def gold_faults(problems: Sequence[Problem]) -> dict[str, str]:
    """Return the reference answers that cannot be graded, each with the reason."""
    reasons = {problem.answer: fault_of_gold(problem.answer) for problem in problems}
    return {gold: reason for gold, reason in reasons.items() if reason}


def gradable(problems: Sequence[Problem], source: str) -> list[Problem]:
    """Return the problems that can be graded, and say which are left out; LongShortError if none is left."""
    faults = gold_faults(problems)
    bad = [f"problem {p.id!r}: {str(p.answer)[:80]!r} ({faults[p.answer]})" for p in problems if p.answer in faults]
    kept = [problem for problem in problems if problem.answer not in faults]
    if not bad:
        return kept
    listed = "; ".join(bad[:LISTED_FAULTS]) + ("; …" if len(bad) > LISTED_FAULTS else "")
    found = f"{source}: {len(bad)} of {len(problems)} reference answers cannot be graded"
    if not kept:
        raise LongShortError(f"{found}: {listed}. Correct them")
    console.say(f"! {found} and are left out: {listed}")
    return kept
