"""What an answer may be: a term with its unit, words, several values, a set, an interval, a matrix, a relation."""

from __future__ import annotations

from dataclasses import dataclass

from longshort.grading.trees import INFINITY, Expr, negated
from longshort.grading.units import Unit


@dataclass(frozen=True, slots=True)
class Scalar:
    r"""An expression with its unit. `letters` is its other reading where the unit is one bare letter: `5 m` as 5·m."""

    expr: Expr
    unit: Unit = ()
    letters: Expr | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words. `expr` is their reading as a product of letters, if they are a short run of letters: `xy`."""

    words: str
    expr: Expr | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """Values side by side: `1, 2` or `x = 1 or x = 2`. The order counts among words and letters only."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    """A quantity in several units: 3 hours 20 minutes."""

    items: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Braces:
    """A finite set."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A pair, a tuple or, with two items, an open interval: (1, 2)."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    low: Expr
    high: Expr
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A union ∪, an intersection ∩ or a difference ∖ of sets."""

    sign: str
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """Which values a variable takes: x ≥ 3, x ∈ [1, 2], {x : x ≠ 0}."""

    variable: Expr
    values: Value


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality, or a chain of them. `label` is the name on its left, "" if that is not just a name."""

    signs: tuple[str, ...]
    sides: tuple[Value, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Expr, ...], ...]


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with its base: 1011_2."""

    numeral: str
    base: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """Numbers with colons between them: a ratio 3:2 or a time 3:20."""

    items: tuple[Expr, ...]
    unit: Unit = ()


Value = (
    Scalar
    | Text
    | Several
    | Compound
    | Braces
    | Ordered
    | Interval
    | Joined
    | Members
    | Relation
    | Matrix
    | Based
    | Ratio
)
REALS = Interval(negated(INFINITY), INFINITY, True, True)


def expressions(value: Value) -> list[Expr]:
    """Return every expression in a value."""
    match value:
        case Scalar():
            return [value.expr, value.letters] if value.letters is not None else [value.expr]
        case Interval():
            return [value.low, value.high]
        case Matrix():
            return [cell for row in value.rows for cell in row]
        case Ratio():
            return list(value.items)
        case Members():
            return expressions(value.values)
        case Several() | Compound() | Braces() | Ordered() | Joined():
            return [expr for item in value.items for expr in expressions(item)]
        case Relation():
            return [expr for side in value.sides for expr in expressions(side)]
    return []
