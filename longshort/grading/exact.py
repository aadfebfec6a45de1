"""Exact numbers: the value of an expression as a fraction, a bound on its digits, and when two numbers are the same."""

from __future__ import annotations

import math
from fractions import Fraction

from longshort.grading.tokens import Unread
from longshort.grading.trees import Expr

MAX_POWER_DIGITS = 10_000
"""Decimal digits of a power's value; also the largest exponent and the largest factorial."""
MAX_EXPANSION = 20
"""Largest exponent of a sum with letters or roots in it: simplification multiplies it out."""
MAX_ARITHMETIC = 100_000
"""Arguments of binomials, greatest common divisors and remainders stay below it."""
QUICK_DIGITS = 2_000
"""Numbers of more digits are worked out in a grading process."""
LEAST_DIGITS, LEAST_PLACES = 3, 2
"""A decimal gold with so many digits and places is taken for a rounded number: the answer may have more digits."""
APPROXIMATE_DIGITS = 6
"""So many digits stand for a fraction or root whose decimals do not end, rounded correctly."""


class TooCostly(Exception):
    """The answer has a power, factorial or other value that is too large to work out."""


def digits(expr: Expr) -> float:
    """Return a bound on the digits of the expression's value with letters at 1; raises TooCostly."""
    return _size(expr)[0]


def _size(expr: Expr) -> tuple[float, bool]:
    """Return (log10 of a bound on the value, or on its parts if it is a fraction; whether it has no letter or root)."""
    kind = expr[0]
    if kind in "nd":
        parts = abs(expr[1].numerator), expr[1].denominator
        return sum(
            math.log10(part) if part.bit_length() < 1000 else part.bit_length() * 0.30103 for part in parts if part
        ), True
    if kind in "cs":
        return {"π": 0.5, "e": 0.44}.get(expr[1], 0.0), expr[1] in ("π", "e")
    if kind in "+*":
        sizes = [_size(part) for part in expr[1]]
        return sum(size for size, _ in sizes) + (math.log10(len(sizes)) if kind == "+" else 0), all(
            plain for _, plain in sizes
        )
    if kind == "^":
        return _size_of_power(expr)
    sizes = [_size(part) for part in expr[2]]
    size = sum(size for size, _ in sizes)
    if expr[1] == "!":
        if size > math.log10(MAX_POWER_DIGITS):
            raise TooCostly
        return size * 10**size, sizes[0][1]
    if expr[1] in ("sinh", "cosh", "tanh", "coth"):  # made of powers of e: tanh 100 differs from 1 in the 87th place
        return _size_of_power(("^", ("c", "e"), ("*", (("n", Fraction(2)), expr[2][0]))))
    if expr[1] in ("binom", "gcd", "lcm", "mod") and max(sizes)[0] >= math.log10(MAX_ARITHMETIC):
        raise TooCostly
    return size * 10 ** min(size, 4) if expr[1] == "binom" else max(size, 0.5), False


def _size_of_power(expr: Expr) -> tuple[float, bool]:
    base, exponent = _size(expr[1]), _size(expr[2])
    literal = expr[2][0] in "nd"
    limit = math.log10(MAX_POWER_DIGITS)
    if exponent[0] > limit or (literal and abs(expr[2][1]) > MAX_POWER_DIGITS):
        raise TooCostly
    times = max(1.0, float(abs(expr[2][1]))) if literal else 10 ** exponent[0]
    if expr[1][0] == "+" and not base[1] and times > MAX_EXPANSION:
        raise TooCostly
    if base[0] * times > MAX_POWER_DIGITS:
        raise TooCostly
    return base[0] * times, base[1] and literal and expr[2][1].denominator == 1


def fraction(expr: Expr) -> Fraction | None:
    """Return the exact value of an expression of rational numbers, None if it is not one. Raises Unread for x/0."""
    try:
        return _fraction(expr)
    except ZeroDivisionError:
        raise Unread("a division by zero") from None


def _fraction(expr: Expr) -> Fraction | None:
    kind = expr[0]
    if kind in "nd":
        return expr[1]
    if kind in "cs":
        return None
    if kind in "+*":
        total = Fraction(kind == "*")
        for part in expr[1]:
            value = _fraction(part)
            if value is None:
                return None
            total = total + value if kind == "+" else total * value
        return total
    if kind == "^":
        base, exponent = _fraction(expr[1]), _fraction(expr[2])
        if base is None or exponent is None:
            return None
        return _power(base, exponent)
    values = [_fraction(part) for part in expr[2]]
    known = [value for value in values if value is not None]
    return _applied(expr[1], known) if len(known) == len(values) else None


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator == 1:
        if not base and not exponent:
            raise Unread("0^0")
        return base ** int(exponent)
    if exponent == Fraction(1, 2) and base >= 0:
        root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
        return root if root * root == base else None
    return None


def _applied(name: str, values: list[Fraction]) -> Fraction | None:
    if name in ("abs", "max", "min", "floor", "ceil"):
        function = {"abs": abs, "floor": math.floor, "ceil": math.ceil}.get(name)
        return Fraction(function(values[0])) if function else (max if name == "max" else min)(values)
    whole = [int(value) for value in values if value.denominator == 1]
    if name == "!" and (not whole or whole[0] < 0):
        raise Unread("the factorial of a negative number or a fraction")
    if len(whole) < len(values):
        return None
    if name == "!":
        return Fraction(math.factorial(whole[0]))
    if name == "binom" and min(whole) >= 0:
        return Fraction(math.comb(*whole))
    if name == "mod" and whole[1] > 0:
        return Fraction(whole[0] % whole[1])
    return Fraction({"gcd": math.gcd, "lcm": math.lcm}[name](*whole)) if name in ("gcd", "lcm") else None


def same_number(gold: Expr, answer: Expr, gold_value: Fraction, answer_value: Fraction) -> bool:
    """Return whether two exact values are the same number.

    A decimal gold may be a rounded number: an answer with more digits, or a fraction whose decimals do not end, matches
    if it rounds to the gold. A decimal answer may be a rounded fraction. All else is compared exactly.
    """
    if gold_value == answer_value:
        return True
    if gold[0] == "d" and _is_rounded(gold) and (answer[0] == "d" or not _ends(answer_value)):
        return _rounds_to(answer_value, gold) and (answer[0] != "d" or answer[2] > gold[2])
    return gold[0] != "d" and answer[0] == "d" and not _ends(gold_value) and stands_for(answer, gold_value)


def stands_for(decimal: Expr, value: Fraction) -> bool:
    """Return whether a decimal is a value without an end of decimals, rounded to APPROXIMATE_DIGITS digits or more."""
    return _significant(decimal) >= APPROXIMATE_DIGITS and _rounds_to(value, decimal)


def is_rounded(decimal: Expr) -> bool:
    """Return whether a decimal gold has enough digits to be taken for a rounded number."""
    return decimal[0] == "d" and _is_rounded(decimal)


def _is_rounded(decimal: Expr) -> bool:
    return decimal[2] >= LEAST_PLACES and _significant(decimal) >= LEAST_DIGITS


def _significant(decimal: Expr) -> int:
    return len(str(abs(int(decimal[1] * Fraction(10) ** decimal[2])))) if decimal[1] else 0


def _rounds_to(value: Fraction, decimal: Expr) -> bool:
    return abs(value - decimal[1]) * 2 <= Fraction(10) ** -decimal[2]


def _ends(value: Fraction) -> bool:
    """Return whether the value has finitely many decimals."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
