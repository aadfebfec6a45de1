"""Whether two values are the same. Undecided is not a match.

`same` knows no algebra: it asks an oracle about expressions, sets and relations. The driver's oracle, `Arithmetic`,
knows rational numbers and answers None otherwise; a grading process has `algebra.Algebra`, which always answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from longshort.grading.arithmetic import Arithmetic, agree, same_quantity
from longshort.grading.trees import leaves
from longshort.grading.values import (
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

SETS = Interval | Joined | Braces | Ordered | Relation | Members


def same(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    """Return whether the answer is the gold, None if the oracle cannot tell."""
    if gold == answer:
        return True
    match gold, answer:
        case (Relation(), Relation()):
            return _same_relations(gold, answer, oracle)
        case (Relation(), _) | (_, Relation()):
            return _said(gold, answer, oracle)
        case (Members(), Members()):
            return gold.variable == answer.variable and same(gold.values, answer.values, oracle)
        case (Members(), _):
            return same(gold.values, answer, oracle)
        case (_, Members()):
            return same(gold, answer.values, oracle)
        case (Text(), _) | (_, Text()):
            return _same_words(gold, answer, oracle)
        case (Based(), _) | (_, Based()):
            return _same_numeral(gold, answer)
        case (Scalar(), Scalar()):
            return same_quantity(gold, answer, oracle)
    return _same_collection(gold, answer, oracle)


def _same_collection(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    match gold, answer:
        case (Several() | Braces(), Several() | Braces()):
            in_order = isinstance(gold, Several) and isinstance(answer, Several)
            return _same_items(gold.items, answer.items, oracle, in_order)
        case (Braces(items=(only,)), Scalar() | Ordered() | Matrix()):
            return same(only, answer, oracle)
        case (Scalar() | Ordered() | Matrix(), Braces(items=(only,))):
            return same(gold, only, oracle)
        case (Interval() | Joined(), Interval() | Joined() | Ordered() | Braces()) | (Ordered(), Interval() | Joined()):
            return _same_sets(gold, answer, oracle)
        case (Braces(), Interval() | Joined()):
            return oracle.same_set(gold, answer)
    return _same_layout(gold, answer, oracle)


def _same_layout(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    """Compare tuples, matrices, ratios and quantities in several units, part by part."""
    match gold, answer:
        case (Ordered(), Ordered()) if len(gold.items) == len(answer.items):
            return _all(same(one, other, oracle) for one, other in zip(gold.items, answer.items))
        case (Several(), Ordered()):
            return _same_point(gold, answer, oracle)
        case (Ordered(), Several()):
            return _same_point(answer, gold, oracle)
        case (Compound(), Compound()) if [item.unit for item in gold.items] == [item.unit for item in answer.items]:
            return _all(oracle.equal(one.expr, other.expr) for one, other in zip(gold.items, answer.items))
        case (Matrix(), Matrix()) if [*map(len, gold.rows)] == [*map(len, answer.rows)]:
            return _all(oracle.equal(*cells) for rows in zip(gold.rows, answer.rows) for cells in zip(*rows))
        case (Ratio(), Ratio()) if len(gold.items) == len(answer.items) and agree(gold.unit, answer.unit):
            return _all(oracle.equal(one, other) for one, other in zip(gold.items, answer.items))
    return False


def _all(verdicts) -> bool | None:
    """Return True if all are, False if one is False, else None."""
    listed = list(verdicts)
    return False if False in listed else None if None in listed else True


def _same_words(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    if isinstance(gold, Text) and isinstance(answer, Text):
        return gold.words == answer.words
    text, other = (gold, answer) if isinstance(gold, Text) else (answer, gold)
    assert isinstance(text, Text)
    if isinstance(other, Several):  # ABD and A, B, D
        letters = [_letter(item) for item in other.items]
        single = all(len(letter) == 1 and letter.isupper() for letter in letters)
        return single and text.words == _run(letters)
    if isinstance(other, Scalar) and text.expr is not None and not other.unit:
        return oracle.equal(text.expr, other.expr) if isinstance(gold, Text) else oracle.equal(other.expr, text.expr)
    return False


def _run(letters: Sequence[str]) -> str:
    run = "".join(letters)
    return run if len(run) == 2 and run.isupper() else run.casefold()


def _letter(value: Value) -> str:
    """Return the letter or words that an item of a list is, "" if it is something else."""
    if isinstance(value, Text):
        return value.words
    return value.expr[1] if isinstance(value, Scalar) and value.expr[0] == "s" and not value.unit else ""


def _same_numeral(gold: Value, answer: Value) -> bool:
    """An answer may omit the base that the gold gives, and say that a number is in base ten."""
    if isinstance(gold, Based) and isinstance(answer, Based):
        return False  # unequal as they stand
    if isinstance(gold, Based):
        return isinstance(answer, Scalar) and not answer.unit and answer.expr == ("n", Fraction(_decimal(gold)))
    assert isinstance(answer, Based)
    return answer.base == "10" and isinstance(gold, Scalar) and gold.expr == ("n", Fraction(_decimal(answer)))


def _decimal(based: Based) -> str:
    return based.numeral if based.numeral.isdigit() else "-1"


def _same_items(
    gold: Sequence[Value], answer: Sequence[Value], oracle: Arithmetic, in_order: bool = False
) -> bool | None:
    """Compare two lists of values; `in_order` if all of them are words or letters."""
    if len(gold) != len(answer):
        return False
    labels = [re.sub(r"^x_\d$", "x", item.label) if isinstance(item, Relation) else "" for item in (*gold, *answer)]
    if len({*labels} - {""}) > 1 and "" in labels:
        return False  # x = 1, y = 2 does not say which is which in 1, 2
    if in_order and all(_letter(item) for item in (*gold, *answer)):
        return _all(same(one, other, oracle) for one, other in zip(gold, answer))
    left = list(answer)
    undecided = False
    for item in gold:
        verdicts = [same(item, other, oracle) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _same_point(coordinates: Several, point: Ordered, oracle: Arithmetic) -> bool | None:
    """Compare x = 1, y = 2 with (1, 2): the letters in their order."""
    named = {item.label: item for item in coordinates.items if isinstance(item, Relation) and len(item.label) == 1}
    names = sorted(named)
    if len(coordinates.items) != len(names) or "".join(names) not in ("xy", "xyz", "ab", "abc"):
        return False
    found = [_outcome(named[name], oracle) for name in names]
    if len(found) != len(point.items):
        return False
    return _all(
        (*(known for _, known in found), *(same(one, value, oracle) for one, (value, _) in zip(point.items, found)))
    )


def _same_interval(gold: Interval, answer: Interval, oracle: Arithmetic) -> bool | None:
    if (gold.low_open, gold.high_open) != (answer.low_open, answer.high_open):
        return False
    return _all((oracle.equal(gold.low, answer.low), oracle.equal(gold.high, answer.high)))


def _same_sets(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    gold, answer = _as_interval(gold), _as_interval(answer)
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return _same_interval(gold, answer, oracle)
    match gold, answer:
        case (Joined(sign="∪"), Joined(sign="∪")) if _same_items(gold.items, answer.items, oracle):
            return True
    return oracle.same_set(gold, answer)


def _as_interval(value: Value) -> Value:
    """Read a pair as an open interval."""
    if isinstance(value, Joined):
        return replace(value, items=tuple(_as_interval(item) for item in value.items))
    if isinstance(value, Ordered) and len(value.items) == 2:
        low, high = value.items
        if isinstance(low, Scalar) and isinstance(high, Scalar) and not low.unit and not high.unit:
            return Interval(low.expr, high.expr, True, True)
    return value


def _same_relations(gold: Relation, answer: Relation, oracle: Arithmetic) -> bool | None:
    if gold.label and gold.label == answer.label:
        (one, known), (other, also) = _outcome(gold, oracle), _outcome(answer, oracle)
        return _all((known, also, same(one, other, oracle)))
    return oracle.same_relation(gold, answer)


def _said(gold: Value, answer: Value, oracle: Arithmetic) -> bool | None:
    """Compare an equation with the value that it states: x = 5 with 5, or 2 + 3 = 5 with 5."""
    relation = gold if isinstance(gold, Relation) else answer
    assert isinstance(relation, Relation)
    if not {*relation.signs} <= {"=", "≈"}:
        return oracle.same_set(gold, answer) if isinstance(gold, SETS) and isinstance(answer, SETS) else False
    value, holds = _outcome(relation, oracle)
    return _all((holds, same(value, answer, oracle) if relation is gold else same(gold, value, oracle)))


def _outcome(relation: Relation, oracle: Arithmetic) -> tuple[Value, bool | None]:
    """Return the last value of a chain of equations, and whether all that it equates is equal."""
    sides = relation.sides[1:] if relation.label else relation.sides
    value = sides[-1]
    if relation.signs[-1] == "≈" and len(sides) > 1:
        rounded, sides, value = sides[-1], sides[:-1], sides[-2]  # x = 2π ≈ 6.28 says 2π
        checks = [same(rounded, value, oracle)]
    else:
        checks = []
    letter = ("s", relation.label)
    if any(letter in leaves(expr) and expr != letter for expr in expressions(value)):
        checks.append(False)  # x = x + 1
    return value, _all([*checks, *(same(one, value, oracle) for one in sides[:-1])])
