"""Equations and inequalities: the name that an equation defines, the values that an inequality leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longshort.grading.tokens import Token
from longshort.grading.trees import INFINITY, has_letters
from longshort.grading.values import REALS, Braces, Interval, Joined, Members, Scalar, Value

LONGEST_NAME = 4
"""Words of a name such as "area of the square"."""
_CHANGING = "not no never false wrong without except minus negative half twice double than"
CHANGING = frozenset(_CHANGING.split())
"""Words that make a text on the left of "=" more than a name."""
_NAME = r"(?:[^\W\d_]|[A-Z]{2,4})(?:_\{?\w+\}?)?'*"
_DEFINED = re.compile(rf"{_NAME}(?:\((?:{_NAME}(?:,{_NAME})*|-?\d+)\))?|\({_NAME}(?:,{_NAME})+\)")
_OPENERS = ("(", "angle", "overline", "triangle")
_TURNED = {">": "<", "≥": "≤", "<": ">", "≤": "≥", "≠": "≠"}


def name_of(tokens: Sequence[Token]) -> str:
    """Return the name on the left of an equation: x, x_1, f(x), AB, Area, (x, y); "" if it is not just a name."""
    if not tokens or (tokens[0].kind not in ("name", "word") and tokens[0].text not in _OPENERS):
        return ""
    text = "".join(token.text for token in tokens)
    if _DEFINED.fullmatch(text):
        return "" if text in ("π", "e", "i", "ℝ") else text.replace("{", "").replace("}", "")
    if len(tokens) > LONGEST_NAME or any(token.text.lower() in CHANGING for token in tokens):
        return ""
    words = all(token.kind == "word" or (token.kind == "name" and len(token.text) > 3) for token in tokens)
    marked = tokens[0].kind == "command" and all(
        token.kind in ("name", "command") or token.text in "{}" for token in tokens
    )
    return text if words or marked else ""


def members(signs: Sequence[str], sides: Sequence[Value]) -> Members | None:
    """Return the values that a simple inequality leaves to its variable: x ≥ 3, 1 < x ≤ 2, x ≠ 0; None if it is not."""
    exprs = [side.expr for side in sides if isinstance(side, Scalar) and not side.unit]
    if len(exprs) < len(sides):
        return None
    if signs[0] in ">≥":
        exprs, signs = exprs[::-1], [_TURNED.get(sign, "") for sign in signs[::-1]]
    places = [index for index, expr in enumerate(exprs) if expr[0] == "s"]
    if len(places) != 1 or any(has_letters(expr) for index, expr in enumerate(exprs) if index not in places):
        return None
    at = places[0]
    if [*signs] == ["≠"]:
        return Members(exprs[at], Joined("∖", (REALS, Braces((Scalar(exprs[1 - at]),)))))
    if not {*signs} <= {"<", "≤"} or (len(exprs), at) not in ((2, 0), (2, 1), (3, 1)):
        return None
    low, low_open = (exprs[at - 1], signs[at - 1] == "<") if at else (REALS.low, True)
    high, high_open = (exprs[at + 1], signs[at] == "<") if at + 1 < len(exprs) else (INFINITY, True)
    return Members(exprs[at], Interval(low, high, low_open, high_open))
