"""Algebra, in a grading process only: two expressions are the same if math-verify says so and their values agree.

math-verify (and sympy below it) compares what `reading.py` has understood. Its own reader drops what it does not
understand, and its numeric comparison stops at 15 digits. So it never decides alone: the values must agree, at random
points if there are letters, to more digits than numbers of that size can share by chance.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import sympy
from math_verify import verify

from longshort.grading.arithmetic import Arithmetic
from longshort.grading.exact import digits, is_rounded, stands_for
from longshort.grading.trees import Expr
from longshort.grading.values import Braces, Interval, Joined, Members, Ordered, Relation, Scalar, Value

SPARE_DIGITS, MOST_DIGITS, POINTS = 60, 4_000, 4
CONSTANTS = {"π": sympy.pi, "e": sympy.E, "i": sympy.I, "∞": sympy.oo}
NAMED = {"arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "abs": sympy.Abs, "ceil": sympy.ceiling}
NAMED |= {"!": sympy.factorial, "ln": sympy.log, "mod": sympy.Mod, "max": sympy.Max, "min": sympy.Min}
_SYMPYS = "sin cos tan cot sec csc sinh cosh tanh coth log floor binomial"
SYMPYS = frozenset(_SYMPYS.split())


class Algebra(Arithmetic):
    """Compares expressions, sets and relations; always answers."""

    limit = float("inf")

    def equal(self, gold: Expr, answer: Expr) -> bool:
        decided = super().equal(gold, answer)
        if decided is not None:
            return decided
        one, other = symbolic(gold), symbolic(answer)
        if "d" in (gold[0], answer[0]) and not one.free_symbols | other.free_symbols:
            rounded = self._as_decimal(gold, answer, one, other)
            if rounded is not None:
                return rounded
        return _equal(one, other, int(digits(gold) + digits(answer)))

    def _as_decimal(self, gold: Expr, answer: Expr, one: sympy.Expr, other: sympy.Expr) -> bool | None:
        """Compare a decimal with a number that is no fraction, None if only an exact match counts."""
        decimal, number = (gold, other) if gold[0] == "d" else (answer, one)
        if gold[0] == "d" and not is_rounded(gold):
            return None
        value = number.evalf(SPARE_DIGITS + int(digits(decimal)))
        if not value.is_Float:
            return None
        close = Fraction(str(sympy.Rational(value)))
        if gold[0] == "d":
            return abs(close - gold[1]) * 2 <= Fraction(10) ** -gold[2] or None
        return stands_for(answer, close) or None

    def same_set(self, gold: Value, answer: Value) -> bool:
        one, other = _set(gold), _set(answer)
        if one is None or other is None:
            return False
        return bool(one == other or one.symmetric_difference(other).is_empty)

    def same_relation(self, gold: Relation, answer: Relation) -> bool:
        """Return whether the equations or inequalities are multiples of each other."""
        one, other = _difference(gold), _difference(answer)
        if one is None or other is None:
            return False
        (sign, gold_side), (also, answer_side) = one, other
        if sign != also or not gold_side.free_symbols or gold_side.free_symbols != answer_side.free_symbols:
            return False
        ratio = sympy.simplify(gold_side / answer_side)
        if ratio.free_symbols or not ratio.is_finite or ratio.is_zero is not False:
            return False
        return (sign == "=" or bool(ratio.is_positive)) and _equal(gold_side, ratio * answer_side, 20)


def symbolic(expr: Expr) -> Any:
    """Return the expression for sympy."""
    kind = expr[0]
    if kind in "nd":
        return sympy.Rational(expr[1].numerator, expr[1].denominator)
    if kind == "c":
        return CONSTANTS[expr[1]]
    if kind == "s":
        return sympy.Symbol(expr[1], real=True)
    if kind == "+":
        return sympy.Add(*map(symbolic, expr[1]))
    if kind == "*":
        return sympy.Mul(*map(symbolic, expr[1]))
    if kind == "^":
        return sympy.Pow(symbolic(expr[1]), symbolic(expr[2]))
    arguments = [symbolic(part) for part in expr[2]]
    name = "binomial" if expr[1] == "binom" else expr[1]
    if name in ("gcd", "lcm"):  # of letters: sympy would take them for polynomials
        return sympy.Function(name)(*sorted(arguments, key=str))
    function = NAMED.get(name) or (getattr(sympy, name) if name in SYMPYS else sympy.Function(name))
    return function(*arguments)


def _equal(one: Any, other: Any, size: int) -> bool:
    if one == other:
        return one is not sympy.nan and bool(one.is_finite is not False or one in (sympy.oo, -sympy.oo))
    if one.has(sympy.nan, sympy.zoo, sympy.oo) or other.has(sympy.nan, sympy.zoo, sympy.oo):
        return False
    if not _agree(one, other, size):
        return False
    if not one.free_symbols and not other.free_symbols:
        return True
    return verify(one, other, timeout_seconds=0, raise_on_error=True)


def _agree(one: Any, other: Any, size: int) -> bool:
    """Return whether two expressions have the same value, at POINTS random points if they have letters."""
    precision = SPARE_DIGITS + 2 * size
    if precision > MOST_DIGITS:
        return False
    letters = sorted(one.free_symbols | other.free_symbols, key=str)
    if one.atoms(sympy.core.function.AppliedUndef) or other.atoms(sympy.core.function.AppliedUndef):
        return sympy.simplify(one - other) == 0  # a function that nobody defined has no value
    generator = random.Random(str(letters))
    compared = 0
    for _ in range(POINTS if letters else 1):
        point = {letter: sympy.Rational(generator.randint(-999, 999), generator.randint(1, 99)) for letter in letters}
        values = [expr.subs(point).evalf(precision, maxn=4 * precision) for expr in (one, other)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        first, second = values
        largest = max(abs(first), abs(second))
        if (
            abs(first - second) > largest * sympy.Float(10) ** (5 - precision)
            and largest > sympy.Float(10) ** -precision
        ):
            return False
        compared += 1
    return compared > 0


def _set(value: Value) -> Any:
    """Return a set of real numbers for sympy, None if it is not one."""
    if isinstance(value, Members):
        return _set(value.values)
    if isinstance(value, Relation):
        return _solutions(value)
    if isinstance(value, Braces):
        scalars = [item for item in value.items if isinstance(item, Scalar) and not item.unit]
        numbers = [symbolic(item.expr) for item in scalars]
        if len(numbers) < len(value.items) or not all(number.is_real for number in numbers):
            return None
        return sympy.FiniteSet(*numbers)
    if isinstance(value, Ordered) and len(value.items) == 2:
        low, high = value.items
        if not isinstance(low, Scalar) or not isinstance(high, Scalar):
            return None
        value = Interval(low.expr, high.expr, True, True)
    if isinstance(value, Interval):
        ends = symbolic(value.low), symbolic(value.high)
        if not all(end.is_extended_real and not end.free_symbols for end in ends):
            return None
        return sympy.Interval(*ends, value.low_open, value.high_open)
    if isinstance(value, Joined):
        sets = [_set(item) for item in value.items]
        if any(one is None for one in sets):
            return None
        return {"∪": sympy.Union, "∩": sympy.Intersection, "∖": sympy.Complement}[value.sign](*sets)
    return None


def _solutions(relation: Relation) -> Any:
    """Return the solutions of an inequality in one letter, None if sympy does not find them."""
    sides = [symbolic(side.expr) for side in relation.sides if isinstance(side, Scalar) and not side.unit]
    kinds = {"<": sympy.StrictLessThan, "≤": sympy.LessThan, ">": sympy.StrictGreaterThan, "≥": sympy.GreaterThan}
    if len(sides) < len(relation.sides) or not {*relation.signs} <= kinds.keys():
        return None
    try:
        parts = [kinds[sign](sides[at], sides[at + 1]) for at, sign in enumerate(relation.signs)]
        if len(set().union(*(part.free_symbols for part in parts))) != 1:
            return None
        return sympy.Intersection(*(part.as_set() for part in parts))
    except (NotImplementedError, TypeError):  # TypeError: i < 3
        return None


def _difference(relation: Relation) -> tuple[str, Any] | None:
    """Return the relation as ("=", "<" or "≤", what stands on that sign's left when 0 stands on its right)."""
    sides = [symbolic(side.expr) for side in relation.sides[-2:] if isinstance(side, Scalar) and not side.unit]
    if relation.label and len(relation.signs) == 1 and len(sides) == 1:
        sides = [sympy.Symbol(relation.label, real=True), *sides]
    if len(sides) != 2 or len(relation.signs) != 1:
        return None
    sign = relation.signs[0]
    if sign in ">≥":
        return {">": "<", "≥": "≤"}[sign], sides[1] - sides[0]
    return sign, sides[0] - sides[1]
