r"""Expressions as trees of tuples. The first item names the kind:

("n", Fraction)             an exact number
("d", Fraction, places)     a decimal and its places
("c", "π")                  π, e, i or ∞
("s", name)                 a variable, or a name such as AB
("+", (terms…))             ("*", (factors…))   ("^", base, exponent)
("f", name, (arguments…))   sin, ln, log(x, base), !, abs, binom, …
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

Expr = tuple[Any, ...]
MINUS, HALF = ("n", Fraction(-1)), ("n", Fraction(1, 2))
INFINITY: Expr = ("c", "∞")
DEGREE: Expr = ("*", (("c", "π"), ("n", Fraction(1, 180))))


def negated(expr: Expr) -> Expr:
    """Return -expr; a number stays a number."""
    if expr[0] in "nd":
        return (expr[0], -expr[1], *expr[2:])
    return ("*", (MINUS, expr))


def leaves(expr: Expr) -> Iterator[Expr]:
    """Yield the numbers, constants and names of an expression."""
    parts = expr[1] if expr[0] in "+*" else expr[1:] if expr[0] == "^" else expr[2] if expr[0] == "f" else None
    if parts is None:
        yield expr
    else:
        for part in parts:
            yield from leaves(part)


def has_letters(expr: Expr) -> bool:
    """Return whether an expression has a variable in it."""
    return any(leaf[0] == "s" for leaf in leaves(expr))
