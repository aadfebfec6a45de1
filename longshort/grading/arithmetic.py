"""Arithmetic: what can be said about numbers with units without algebra."""

from __future__ import annotations

from fractions import Fraction

from longshort.grading.exact import QUICK_DIGITS, digits, fraction, same_number
from longshort.grading.trees import Expr, has_letters
from longshort.grading.units import Unit
from longshort.grading.values import Relation, Scalar, Value

PERCENT: Unit = (("%", 1),)


class Arithmetic:
    """Compares rational numbers; does not know about the rest."""

    limit: float = QUICK_DIGITS

    def equal(self, gold: Expr, answer: Expr) -> bool | None:
        """Return whether two expressions are the same, None if that takes algebra."""
        if gold == answer:
            return True
        if digits(gold) + digits(answer) > self.limit:
            return None
        one, other = fraction(gold), fraction(answer)
        return None if one is None or other is None else same_number(gold, answer, one, other)

    def same_set(self, gold: Value, answer: Value) -> bool | None:
        """Return whether two sets of real numbers are the same, None if that takes algebra."""
        return None

    def same_relation(self, gold: Relation, answer: Relation) -> bool | None:
        """Return whether two equations or inequalities say the same, None if that takes algebra."""
        return None


def agree(gold: Unit, answer: Unit) -> bool:
    """Return whether two units are the same, or one is absent."""
    return gold == answer or not gold or not answer


def same_quantity(gold: Scalar, answer: Scalar, oracle: Arithmetic) -> bool | None:
    """Return whether two terms with their units are the same, None if that takes algebra."""
    if gold.letters is not None or (answer.letters is not None and not gold.unit and has_letters(gold.expr)):
        if gold.unit and gold.unit == answer.unit:
            return oracle.equal(gold.expr, answer.expr)
        other = answer.letters or (None if answer.unit else answer.expr)
        return False if other is None else oracle.equal(gold.letters or gold.expr, other)
    if PERCENT in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return _same_percentage(gold, answer, oracle)
    return oracle.equal(gold.expr, answer.expr) if agree(gold.unit, answer.unit) else False


def _same_percentage(gold: Scalar, answer: Scalar, oracle: Arithmetic) -> bool | None:
    """Compare a percentage with a bare number.

    A gold of 50% matches 50 and 0.5. A gold without the sign is a share if it is at most 1: 0.5 matches 50%. Above 1 it
    is taken for a percentage: 50 matches 50%.
    """
    if gold.unit and answer.unit:
        return False
    if gold.unit:
        equal = oracle.equal(gold.expr, answer.expr)
        return equal if equal else _either(equal, oracle.equal(_hundredth(gold.expr), answer.expr))
    value = fraction(gold.expr) if digits(gold.expr) <= QUICK_DIGITS else None
    above_one = value is not None and abs(value) > 1
    return oracle.equal(gold.expr, answer.expr if above_one else _hundredth(answer.expr))


def _either(one: bool | None, other: bool | None) -> bool | None:
    return True if one or other else None if one is None or other is None else False


def _hundredth(expr: Expr) -> Expr:
    if expr[0] == "d":
        return ("d", expr[1] / 100, expr[2] + 2)
    return ("*", (expr, ("n", Fraction(1, 100))))
