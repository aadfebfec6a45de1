"""Numbers and terms with a unit behind them, or a sign of money before them."""

from __future__ import annotations

from collections.abc import Sequence

from longshort.grading.atoms import ORDINALS
from longshort.grading.expressions import Parser
from longshort.grading.tokens import Token, Unread
from longshort.grading.trees import negated
from longshort.grading.units import COMPOUND, LOOSE, POWERS, PREFIXED, RAISED, RANKED, SCALES, Unit, unit_named
from longshort.grading.values import Compound, Scalar


def quantity(tokens: Sequence[Token]) -> Scalar | Compound:
    """Return what the tokens say: an expression, with its unit; several with units of their own are a Compound."""
    if not tokens:
        raise Unread("there is nothing")
    if money := _money_before(tokens):
        return money
    if loose := _with_bare_letter(tokens):
        return loose
    parser = Parser(tokens)
    expr = parser.sum()
    unit, rest = unit_of(parser.rest())
    if parser.degrees:
        unit = unit or (("deg", 1),)
    if not rest:
        return Scalar(expr, unit)
    return _compound(Scalar(expr, unit), rest)


def _compound(first: Scalar, rest: Sequence[Token]) -> Compound:
    """Return the quantity that the first part and the tokens behind it are together: 3 hours 20 minutes."""
    if not first.unit or rest[0].kind != "number":
        raise Unread(f"{rest[0].text!r} is not expected")
    more = quantity(rest)
    following = more.items if isinstance(more, Compound) else (more,)
    if any(not item.unit or item.unit == first.unit for item in following):
        raise Unread("numbers side by side")
    return Compound((first, *following))


def _money_before(tokens: Sequence[Token]) -> Scalar | None:
    """Return the amount of `$5`, `-$5`, `$-5`, `US$ 5`, `Rs 5` or `$5 per hour`; None if no money comes first."""
    at = 1 if tokens[0].text == "-" and len(tokens) > 1 else 0
    negative = at == 1
    if tokens[at].text == "US" and len(tokens) > at + 1 and tokens[at + 1].text == "¤":
        at += 1
    sign = PREFIXED.get(tokens[at].text) or {"Rs": "₹"}.get(tokens[at].text)
    if sign is None:
        return None
    amount = quantity(tokens[at + 1 :]) if tokens[at + 1 :] else None
    if not isinstance(amount, Scalar) or amount.letters is not None:
        raise Unread("a sign of money without an amount")
    spelled = any(name == sign for name, _ in amount.unit)  # $5 dollars
    if not spelled and any(power > 0 for _, power in amount.unit):
        raise Unread("an amount of money in another unit")
    unit = amount.unit if spelled else tuple(sorted({**dict(amount.unit), sign: 1}.items()))
    return Scalar(negated(amount.expr) if negative else amount.expr, unit)


def _with_bare_letter(tokens: Sequence[Token]) -> Scalar | Compound | None:
    """Return a number with a unit of one bare letter: `5 m`, `5 m/s`. A lone letter may be a variable, too."""
    at = next((index for index, token in enumerate(tokens) if token.kind == "name"), 0)
    if not at or not tokens[at].gap or tokens[at].text not in LOOSE or tokens[at - 1].kind != "number":
        return None
    try:
        unit, rest = unit_of(tokens[at:])
    except Unread:
        return None
    parser = Parser(tokens[:at])
    expr = parser.sum()
    if parser.rest() or (len(unit) > 1 and all(power > 0 for _, power in unit)):
        return None  # 5 m g is a product
    if rest:
        return _compound(Scalar(expr, unit), rest)
    return Scalar(expr, unit, None if len(unit) > 1 else Parser(tokens).sum())


def unit_of(tokens: Sequence[Token]) -> tuple[Unit, Sequence[Token]]:
    """Return the unit that the tokens begin with, and the tokens behind it."""
    powers: dict[str, int] = {}
    at, sign, power = 0, 1, 1
    if tokens and tokens[0].text in ORDINALS and not tokens[0].gap:
        at = 1  # 12th
        if len(tokens) > 2 or (len(tokens) == 2 and unit_named(tokens[1].text) not in RANKED):
            raise Unread("an ordinal before something that is not counted")
    while at < len(tokens):
        token = tokens[at]
        text = token.text
        if text in ("/", "per"):
            sign = -1
        elif text == "*" and powers:
            pass
        elif text in POWERS and at + 1 < len(tokens) and unit_named(tokens[at + 1].text):
            power = POWERS[text]
        elif text == "old" and powers:
            pass
        elif found := _units(tokens, at):
            at += unit_named(text) == "deg" and found != (("deg", 1),)
            raised, at = _raised(tokens, at + 1)
            for name, times in found:
                powers[name] = powers.get(name, 0) + times * sign * power * raised
            at, sign, power = at - 1, 1, 1
        else:
            break
        at += 1
    if sign < 0 or power > 1 or ("%" in powers and powers != {"%": 1}):
        raise Unread("a unit is missing")
    return tuple(sorted(powers.items())), tokens[at:]


def _units(tokens: Sequence[Token], at: int) -> Unit:
    text = tokens[at].text
    behind = tokens[at + 1].text if at + 1 < len(tokens) else ""
    if unit_named(text) == "deg" and behind.lower() in SCALES:
        return ((SCALES[behind.lower()], 1),)
    if text in COMPOUND:
        return COMPOUND[text]
    return ((unit_named(text), 1),) if tokens[at].kind != "number" and unit_named(text) else ()


def _raised(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    """Return the power behind a unit, 1 if there is none, and where the tokens go on."""
    if at < len(tokens) and tokens[at].text in RAISED:
        return RAISED[tokens[at].text], at + 1
    if at >= len(tokens) or tokens[at].text != "^":
        return 1, at
    braces = at + 1 < len(tokens) and tokens[at + 1].text == "{"
    at += 1 + braces
    negative = at < len(tokens) and tokens[at].text == "-"
    at += negative
    if at >= len(tokens) or not tokens[at].text.isdigit() or len(tokens[at].text) > 1:
        raise Unread("a unit with an unclear power")
    power = int(tokens[at].text)
    at += 1
    if braces:
        if at >= len(tokens) or tokens[at].text != "}":
            raise Unread("a unit with an unclear power")
        at += 1
    return -power if negative else power, at
