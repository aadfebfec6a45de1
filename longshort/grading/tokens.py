"""An answer in the plain spelling, cut into tokens. What no token fits is refused: nothing is skipped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from longshort.grading.spelling import GREEK_NAMES


class Unread(Exception):
    """The text has a part that is not understood."""


@dataclass(frozen=True, slots=True)
class Token:
    r"""One token: a `number`, a `name` (a run of letters), a `word` (letters in `\text{}`), a `command` or a `sign`.

    `gap`: blanks stand before it. `places`: decimals of a number, None if it has none.
    """

    kind: str
    text: str
    gap: bool = False
    value: Fraction | None = None
    places: int | None = None


_GROUPED = r"[1-9]\d{0,2}(?:[ ]\d{3})+(?![\d]|[ ]?/)(?:\.\d+)?"
_TOKEN = re.compile(
    rf"""
    (?P<gap>\s+)
    | (?P<repeating>\d*\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot)\s*\{{(?P<period>\d+)\}}|\((?P<period2>\d+)\)))
    | (?P<science>(?:\d+(?:\.\d*)?|\.\d+)[eE][+-]?\d+(?![\d.]))
    | (?P<number>{_GROUPED}|\d+\.\d+|\d+|\.\d+)
    | \\(?P<command>[A-Za-z]+)
    | ⟦(?P<words>[^⟦⟧]*)⟧
    | (?P<greek>[α-ωΑ-Ωℝ])
    | (?P<name>[^\W\d_α-ωΑ-Ωℝ]+)
    | (?P<sign>[-+*/^_!=<>≤≥≠≈∈±∓∪∩∖|,;:'&¦%°∅∞¤€£¥₹₽₩¢{{}}()\[\]⦃⦄⦅⦆⟨⟩⌊⌋⌈⌉])
    """,
    re.VERBOSE,
)
_PLAIN = re.compile(r"\d+\.\d+|\d+|\.\d+")
_COMMAS = re.compile(r"(?<![\d.])\d[\d,]*,[\d,]*\d")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
LARGEST_POWER_OF_TEN = 1_000


def tokens_of(text: str, kind: str = "name") -> list[Token]:
    """Cut a text in the plain spelling; raises Unread. `kind` is that of its letters."""
    text = _without_thousands(text)
    tokens: list[Token] = []
    position, gap = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unread(f"{text[position]!r} is not understood")
        if match["science"] and not _stands_alone(text, match):
            match = _PLAIN.match(text, position) or match  # 2e-1 within an expression is 2·e - 1
        position = match.end()
        if match.re is _PLAIN:
            tokens.append(_number(match.group(), gap))
            gap = False
        elif match["gap"]:
            gap = True
        elif match["words"] is not None:
            inner = tokens_of(match["words"], "word")
            tokens += [Token(one.kind, one.text, one.gap or gap, one.value, one.places) for one in inner]
            gap = True
        else:
            tokens.append(_token(match, gap, kind))
            gap = False
    return tokens


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Return whether a number such as 3e5 is a value of its own, and no part of an expression."""
    before, behind = text[: match.start()].rstrip(" -+"), text[match.end() :]
    clear = not behind.strip() or behind.strip()[0] in ",;)]⦄=<>≤≥≈&¦%°" or re.match(r"\s+[^\W\d_]|[⟦]", behind)
    return bool(clear) and before[-1:] in ("", *",;([⦃=<>≤≥≈&¦")


def _token(match: re.Match[str], gap: bool, kind: str) -> Token:
    text = match.group()
    if match["repeating"]:
        return Token("number", text, gap, _repeating(match))
    if match["science"]:
        mantissa, exponent = re.split("[eE]", text)
        if abs(int(exponent)) > LARGEST_POWER_OF_TEN:
            raise Unread(f"{text} is too large")
        decimals = len(mantissa.partition(".")[2])
        return Token("number", text, gap, Fraction(text.rstrip(".")), decimals - int(exponent))
    if match["number"]:
        return _number(text.replace(" ", ""), gap)
    if match["command"]:
        return Token("command", match["command"], gap)
    if match["greek"]:
        return Token("name", text, gap)
    if match["name"]:
        return (
            Token("name", GREEK_NAMES[text], gap) if text in GREEK_NAMES and len(text) > 1 else Token(kind, text, gap)
        )
    return Token("sign", text, gap)


def _number(text: str, gap: bool) -> Token:
    return Token("number", text, gap, Fraction(text), len(text.partition(".")[2]) if "." in text else None)


def _repeating(match: re.Match[str]) -> Fraction:
    whole, fixed = match["repeating"].partition(".")[0] or "0", match["fixed"]
    period = match["period"] or match["period2"]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    return Fraction(int(whole)) + Fraction(int(fixed or "0"), 10 ** len(fixed)) + Fraction(int(period), nines)


def _bracket_depths(text: str) -> list[int]:
    depths, depth = [], 0
    for char in text:
        depth += (char in "([⦃⟨⦅") - (char in ")]⦄⟩⦆")
        depths.append(depth)
    return depths


def _without_thousands(text: str) -> str:
    """Drop the commas of 1,000,000 where every comma between digits, outside of brackets, can group thousands."""
    if "," not in text:
        return text
    depths = _bracket_depths(text)
    runs = [match for match in _COMMAS.finditer(text) if not depths[match.start()]]
    if not runs or not all(_THOUSANDS.fullmatch(match.group()) for match in runs):
        return text
    spans = {match.start(): match for match in runs}
    return _COMMAS.sub(lambda m: m.group().replace(",", "") if m.start() in spans else m.group(), text)


class Scanner:
    """A list of tokens and a position in it."""

    def __init__(self, tokens: Sequence[Token]):
        self.tokens = list(tokens)
        self.position = 0

    @property
    def next(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def at(self, *signs: str) -> bool:
        return (token := self.next) is not None and token.kind == "sign" and token.text in signs

    def take(self) -> Token:
        if self.next is None:
            raise Unread("it ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def expect(self, sign: str) -> None:
        if not self.at(sign):
            raise Unread(f"{sign} is missing")
        self.position += 1

    def rest(self) -> list[Token]:
        return self.tokens[self.position :]

    def split(self, length: int = 1) -> Token:
        """Take the first characters of the next token and leave the others as a token of their own."""
        token = self.take()
        if len(token.text) > length:
            self.position -= 1
            text = token.text[length:]
            value = Fraction(text) if token.kind == "number" else None
            self.tokens[self.position] = Token(token.kind, text, False, value)
        first = token.text[:length]
        return Token(token.kind, first, token.gap, Fraction(first) if token.kind == "number" else None)
