"""What an answer says: its plain spelling becomes a value, or it is refused as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from longshort.grading.exact import TooCostly, digits
from longshort.grading.expressions import Parser
from longshort.grading.quantities import quantity
from longshort.grading.relations import members, name_of
from longshort.grading.tokens import Token, Unread, tokens_of
from longshort.grading.trees import INFINITY, Expr, leaves
from longshort.grading.values import (
    REALS,
    Based,
    Braces,
    Compound,
    Interval,
    Joined,
    Matrix,
    Members,
    Ordered,
    Ratio,
    Relation,
    Scalar,
    Several,
    Text,
    Value,
    expressions,
)
from longshort.grading.words import NUMBER_WORDS, mostly_words, only_words

MAX_ENTRIES, MAX_PIECES = 100, 10
"""Matrix entries; parts of a union."""
BRACKETS = {"(": ")", "[": "]", "{": "}", "⦃": "⦄", "⟨": "⟩", "⦅": "⦆", "⌊": "⌋", "⌈": "⌉"}
RELATIONS = frozenset("=<>≤≥≠∈≈")
_UNEVALUATED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|det)(?![A-Za-z])|[∑∏∫]")
_DATE = re.compile(r"\d{4}([-/.])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2\d{4}")
_BASED = re.compile(r"(\()?([0-9A-F]*\d[0-9A-F]*)(?(1)\))\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))")


@lru_cache(maxsize=4096)
def read(spelling: str) -> Value:
    """Return what a text in the plain spelling says. Raises Unread, or TooCostly if working it out takes too long."""
    if _UNEVALUATED.search(spelling):
        raise TooCostly
    if _DATE.fullmatch(spelling):
        return Text(spelling)
    if (based := _BASED.fullmatch(spelling)) and int(based[3] or based[4]) in range(2, 37):
        return Based(based[2].lstrip("0") or "0", based[3] or based[4])
    if (text := only_words(spelling)) is not None:
        return text
    try:
        value = _value(tokens_of(spelling))
    except Unread:
        if (text := mostly_words(spelling)) is not None:
            return text
        raise
    for expr in expressions(value):
        digits(expr)
        if expr not in (INFINITY, REALS.low) and INFINITY in leaves(expr):
            raise Unread("arithmetic with infinity")
    return value


def _value(tokens: Sequence[Token]) -> Value:
    parts, separators = _split(tokens, _is_separator)
    if len(parts) > 1:
        kept = [part for part, before in zip(parts, ["", *separators], strict=True) if part or before not in ",;"]
        if not kept or not all(kept):
            raise Unread("a part of the list is empty")
        return _several([item for part in kept for item in _alternatives(part)], {*separators} - {",", ";"})
    found = _alternatives(tokens)
    return found[0] if len(found) == 1 else Several(tuple(found))


def _is_separator(token: Token) -> bool:
    return (token.kind == "sign" and token.text in ",;") or (token.kind != "sign" and token.text in ("and", "or"))


def _split(tokens: Sequence[Token], cuts: Callable[[Token], bool]) -> tuple[list[list[Token]], list[str]]:
    """Split tokens where `cuts` says so, outside of brackets; returns the parts and the texts of the cuts."""
    parts: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        if token.kind == "sign":
            depth += (token.text in BRACKETS) - (token.text in BRACKETS.values())
        if not depth and cuts(token):
            found.append(token.text)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, found


def _alternatives(tokens: Sequence[Token]) -> list[Value]:
    """Return the two values of `1 ± x`, or the one value of anything else."""
    depth = 0
    signs: list[str] = []
    for token in tokens:
        depth += (token.text == "⦃") - (token.text == "⦄")
        if not depth and token.kind == "sign" and token.text in "±∓":
            signs.append(token.text)
    if len(signs) > len({*signs}):
        raise Unread("two signs ± may be two values or four")
    return [_single(_with_signs(tokens, pair)) for pair in ("+-", "-+")] if signs else [_single(tokens)]


def _with_signs(tokens: Sequence[Token], signs: str) -> list[Token]:
    chosen = dict(zip("±∓", signs, strict=True))
    return [Token(t.kind, chosen.get(t.text, t.text), t.gap, t.value, t.places) for t in tokens]


def _several(items: list[Value], words: set[str]) -> Value:
    flat = [inner for item in items for inner in (item.items if isinstance(item, Several) else (item,))]
    first = flat[0]
    if isinstance(first, Members) and not words and any(map(_leaves_out, flat)):
        words = {"and"}  # x > 0, x ≠ 1
    conditions = [item for item in flat if isinstance(item, Members)]
    if len(words) == 1 and len({item.variable for item in conditions}) == 1 and len(conditions) == len(flat):
        sign = "∪" if words == {"or"} else "∩"
        return Members(conditions[0].variable, Joined(sign, tuple(item.values for item in conditions)))
    if isinstance(first, Relation) and first.label and all(isinstance(item, Scalar) for item in flat[1:]):
        flat[0] = first.sides[-1] if len(first.sides) == 2 else first  # x = 1, 2
    if words == {"and"} and all(isinstance(item, Scalar) and item.unit for item in flat):
        scalars = [item for item in flat if isinstance(item, Scalar)]
        if len({item.unit for item in scalars}) == len(scalars):
            return Compound(tuple(scalars))
    return Several(tuple(flat))


def _leaves_out(value: Value) -> bool:
    """Return whether a value is a condition such as x ≠ 1."""
    return isinstance(value, Members) and isinstance(value.values, Joined) and value.values.sign == "∖"


def _single(tokens: Sequence[Token]) -> Value:
    if not tokens:
        raise Unread("there is nothing")
    parts, signs = _split(tokens, lambda token: token.kind == "sign" and token.text in RELATIONS)
    if signs:
        return _relation(parts, signs)
    for sign in "∖∪∩":
        pieces, cuts = _split(tokens, lambda token, sign=sign: token.kind == "sign" and token.text == sign)
        if len(pieces) > MAX_PIECES + 1:
            raise TooCostly
        if cuts:
            sets = tuple(_set(piece) for piece in pieces)
            return sets[0] if not sets[1:] else Joined(sign, sets)
    if len(tokens) == 1 and tokens[0].text == "∅":
        return Braces(())
    if len(tokens) == 1 and tokens[0].text == "ℝ":
        return REALS
    if len(tokens) == 1 and tokens[0].text.lower() in NUMBER_WORDS:
        return Scalar(("n", Fraction(NUMBER_WORDS[tokens[0].text.lower()])))
    if tokens[0].text in "([⦃⟨⦅{" and _closing(tokens) == len(tokens) - 1:
        return _bracketed(tokens[0].text, tokens[1:-1], tokens[-1].text)
    parts, colons = _split(tokens, lambda token: token.text == ":")
    if colons:
        return _ratio(parts)
    return quantity(tokens)


def _closing(tokens: Sequence[Token]) -> int:
    """Return where the bracket that opens the tokens closes, -1 if it does not."""
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind == "sign":
            depth += (token.text in BRACKETS) - (token.text in BRACKETS.values())
            if not depth:
                return index
    return -1


def _bracketed(opening: str, inner: Sequence[Token], closing: str) -> Value:
    if opening == "⦅":
        return _matrix(inner)
    if opening == "⦃":
        return _braces(inner) if closing == "⦄" else _fail()
    parts, commas = _split(inner, lambda token: token.kind == "sign" and token.text in ",;")
    if opening == "{" and closing == "}":
        return _value(inner)
    if not commas:
        return _value(inner) if BRACKETS[opening] == closing else _fail()
    if opening == "⟨" or (len(parts) > 2 and BRACKETS[opening] == closing):
        return Ordered(tuple(_value(part) for part in parts))
    if len(parts) != 2 or opening == "{" or closing not in ")]":
        raise Unread("brackets that do not belong together")
    if opening == "(" and closing == ")":
        items = [_alternatives(part) for part in parts]
        if [len(item) for item in items] != [1, 1]:
            raise Unread("± in a pair")
        return Ordered((items[0][0], items[1][0]))
    ends = [_value(part) for part in parts]
    low, high = ends
    if not isinstance(low, Scalar) or not isinstance(high, Scalar) or low.unit or high.unit:
        raise Unread("an interval of something else than numbers")
    return Interval(low.expr, high.expr, opening == "(", closing == ")")


def _fail() -> Value:
    raise Unread("brackets that do not belong together")


def _braces(inner: Sequence[Token]) -> Value:
    if not inner:
        return Braces(())
    bars, _ = _split(inner, lambda token: token.text in ("|", ":") and token.kind == "sign")
    if len(bars) > 1 and (len(bars[0]) == 1 or any(token.text == "∈" for token in bars[0])):
        return _builder(bars[0], list(inner[len(bars[0]) + 1 :]))
    found = _value(inner)
    return Braces(found.items if isinstance(found, Several) else (found,))


def _builder(head: Sequence[Token], condition: Sequence[Token]) -> Value:
    """Return the set {x ∈ S | condition}."""
    limits = _single(condition) if not _split(condition, _is_separator)[1] else _value(condition)
    if isinstance(limits, Several) and all(isinstance(item, Members) for item in limits.items):
        parts = [item for item in limits.items if isinstance(item, Members)]
        limits = Members(parts[0].variable, Joined("∩", tuple(item.values for item in parts)))
    within = _single(head)
    variable = within.variable if isinstance(within, Members) else within.expr if isinstance(within, Scalar) else None
    if not isinstance(limits, Members) or limits.variable != variable:
        raise Unread("a condition that is not about the variable")
    if isinstance(within, Members) and within.values != REALS:
        return Joined("∩", (within.values, limits.values))
    return limits.values


def _set(tokens: Sequence[Token]) -> Value:
    found = _single(tokens)
    if isinstance(found, Members):
        return found
    if isinstance(found, Interval | Joined | Braces) or (isinstance(found, Ordered) and len(found.items) == 2):
        return found
    raise Unread("a union of something else than sets")


def _matrix(inner: Sequence[Token]) -> Value:
    rows, _ = _split(inner, lambda token: token.text == "¦")
    if sum(token.text == "&" for token in inner) + len(rows) > MAX_ENTRIES:
        raise TooCostly
    cells = [_split(row, lambda token: token.text == "&")[0] for row in rows if row]
    if not cells or len({len(row) for row in cells}) > 1:
        raise Unread("a matrix with rows of different lengths")
    return Matrix(tuple(tuple(_whole(cell) for cell in row) for row in cells))


def _whole(tokens: Sequence[Token]) -> Expr:
    """Return the expression that the tokens are, all of them."""
    parser = Parser(tokens)
    expr = parser.sum()
    if parser.rest():
        raise Unread(f"{parser.rest()[0].text!r} is not expected")
    return expr


def _ratio(parts: Sequence[Sequence[Token]]) -> Value:
    last = quantity(parts[-1])
    if not isinstance(last, Scalar):
        raise Unread("a ratio of something else than numbers")
    return Ratio((*(_whole(part) for part in parts[:-1]), last.expr), last.unit)


def _relation(parts: list[list[Token]], signs: list[str]) -> Value:
    if "∈" in signs:
        if signs != ["∈"]:
            raise Unread("∈ in a chain")
        within = _set(parts[1])
        return Members(_whole(parts[0]), within.values if isinstance(within, Members) else within)
    names = [name_of(part) for part in parts]
    if len(parts) == 2 and names[1] and not names[0] and signs[0] in "=≈":
        parts, names = parts[::-1], names[::-1]
    sides = tuple(
        Text(name) if name and not index else _single(part) for index, (name, part) in enumerate(zip(names, parts))
    )
    if not {*signs} <= {"=", "≈"}:
        sides = tuple(_single(part) for part in parts)
        return members(signs, sides) or Relation(tuple(signs), sides)
    return Relation(tuple(signs), sides, names[0])
