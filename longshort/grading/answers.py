"""Answers as strings: extract, clean and compare them, and refuse those that would cost the grader too much.

Nothing here knows algebra. `quick` decides most answers without it. The others go to math-verify in another process
(`grading.py`), unless `refusal` sees something in them that would keep a computer-algebra system busy for minutes.
"""

from __future__ import annotations

import math
import re
from collections import deque
from fractions import Fraction
from itertools import accumulate

MAX_CHARACTERS = 500
"""About ten times the longest reference answer of MATH500."""
MAX_NESTING = 10
"""Depth of nested brackets. The time of math-verify's parser is exponential in it: 0.2 s at 10, over 5 s at 60."""
MAX_POWER_DIGITS = 10_000
"""Decimal digits of a power's value; also the largest exponent and the largest factorial."""
MAX_EXPANSION = 20
"""Largest exponent of a bracket with letters or roots in it: simplification multiplies it out."""
MAX_ENTRIES, MAX_PIECES = 100, 10
"""Matrix entries; parts of a union, and bars of absolute values."""

_UNICODE = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "±": r"\pm ", "π": r"\pi ", "θ": r"\theta ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "％": "%", "，": ",", "（": "(", "）": ")",
})  # fmt: skip
_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)"
_ORDINAL = rf"{_TEXT}\{{\s*(?:st|nd|rd|th)\s*\}}"
_UNITS = rf"(?:{_TEXT}\{{[A-Za-z. ]+\}}(?:\^\{{?[23]\}}?)?|[A-Za-z]{{3,}}[A-Za-z ]*)"
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$|\\displaystyle|\\(?:left|right)(?![A-Za-z])\.?", ""),
        (r",\\!\s*(?=\d)|\{,\}(?=\d)|(?<=\d)\\[,!]\s*(?=\d{3}(?!\d))", ","),  # 11,\! 111 and 11{,}111
        (r"(?<!\\)\\[!,;: ]|\\q?quad(?![A-Za-z])|~|\s+", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\varnothing", r"\\emptyset"),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\*\*", "^"),
        (r"_\{(\d+)\}", r"_\1"),
        (rf"(?<=\d)\s*(?:\^\s*)?(?:\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL})", ""),  # 12^{\mathrm{th}}
        (rf"(?:\\?%|{_TEXT}\{{\s*percent\s*\}}|\bpercent\b)", r"\\%"),
        (r"^([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)$", r"\1 \\cdot 10^{\2}"),
        *(
            (rf"^({_NUMBER})\s*(?:{_TEXT}\{{\s*)?{word}\b[A-Za-z ]*\}}?$", rf"\1 \\cdot 10^{{{zeros}}}")
            for word, zeros in (("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
        ),
        (rf"^({_NUMBER})\s*\^\s*(?:\\circ|\{{\s*\\circ\s*\}})$", r"\1"),
        (rf"^({_NUMBER})\s*{_UNITS}$", r"\1"),
        (r"(?<!\d)\s+|\s+(?!\d)", " "),
        (r"[\s.]+$", ""),
    )
]
_BASED = re.compile(r"(\d[0-9A-Z]*)_(\d+)")
_DIGITS = re.compile(r"\d[0-9A-Z]*")


def canonical(answer: str) -> str:
    r"""Return the answer in one spelling, without LaTeX spacing, `\left`, currency, ordinals, units or Unicode signs.

    Refuse answers above MAX_CHARACTERS first: some patterns take quadratic time.
    """
    text = answer.translate(_UNICODE).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    return text


def quick(gold: str, answer: str) -> bool | None:
    """Return whether two canonical answers are equal; None if only algebra can tell.

    Decides the letters of multiple choice, identical spellings, words in any case or wrapping, plain integers and
    decimals, and numerals with a base.
    """
    if letter := _LETTER.fullmatch(_STYLE.sub("", gold)):
        return letter[1] == _choice(answer)
    if _spaceless(gold) == _spaceless(answer) or ((words := _words(gold)) and words == _words(answer)):
        return True
    gold_based, answer_based = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if gold_based and answer_based:
        return gold_based.groups() == answer_based.groups()
    if (gold_based and _DIGITS.fullmatch(answer)) or (answer_based and _DIGITS.fullmatch(gold)):
        # the base is often omitted if the question names it
        return gold.partition("_")[0] == answer.partition("_")[0]
    one, other = _number(gold), _number(answer)
    if one is None or other is None:
        return None
    return True if one == other else False if one.denominator == other.denominator == 1 else None


def is_plain(gold: str) -> bool:
    """Return whether a canonical answer is a plain number, a numeral with a base or words: those need no parser."""
    return bool(_number(gold) is not None or _BASED.fullmatch(gold) or _words(gold))


def _spaceless(text: str) -> str:
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def _number(text: str) -> Fraction | None:
    return Fraction(text.replace(",", "").rstrip(".")) if re.fullmatch(_NUMBER, text) else None


def _words(text: str) -> str:
    r"""Return the words, case-folded, of an answer such as `\text{Evelyn}`, `even` or `(C)`; empty if it has none."""
    bare = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1", text).strip()
    bare = re.sub(r"^\(([A-Za-z])\)$", r"\1", bare)
    plain = re.fullmatch(r"[A-Za-z]|[A-Za-z]{3,}(?:[ ,'-]+[A-Za-z]{2,})*|[A-Za-z]{2,}(?: [A-Za-z]+)+", bare)
    return re.sub(r"[\s,]+", " ", bare).casefold() if plain else ""


_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|sf|bb)|boldsymbol|mbox|fbox|bf|rm)(?![A-Za-z])\s*|[{}*]|\\ "
)
_LETTER = re.compile(r"\(?([A-Z])\)?")
_LEAD = r"(?:(?:the )?(?:answer|option|choice)(?: is)?:? ?)?"
_CHOICE = re.compile(_LEAD + r"[(\[]?([A-Z])(?:[)\]][.:;,]?.*|[.:] .*|[.:;,])?", re.IGNORECASE | re.DOTALL)


def _choice(answer: str) -> str:
    r"""Return the letter of a multiple-choice answer, or "": `C`, `(c)`, `C) 3.2 eV`, `\textbf{Option C}` -> "C".

    An answer that names several letters, such as `A, C` or `C or D`, has none.
    """
    match = _CHOICE.fullmatch(_STYLE.sub("", answer).strip())
    return match[1].upper() if match else ""


_UNEVALUATED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|det)(?![A-Za-z])")
_ARITHMETIC = re.compile(r"\\(?:[dt]?binom|Gamma|gamma|zeta|gcd|lcm|[bp]?mod)(?![A-Za-z])")
_LARGE = re.compile(r"\d{6,}|\d\s*\^\s*\{?\s*\d")
_STUTTER = re.compile(r"([-+!^_|])(?:\s*\1){3,}")


def refusal(answer: str) -> str:
    """Return why a canonical answer must not reach the algebra system, `too_long` or `too_costly`; "" if it may.

    `too_long`: too many characters or nested brackets. `too_costly`: power towers, huge powers and factorials, wide
    matrices and unions; also unevaluated sums, products, integrals, limits and determinants. math-verify would evaluate
    those, which is slow, and a policy would be rewarded for restating the problem.
    """
    if len(answer) > MAX_CHARACTERS or _nesting(answer) > MAX_NESTING:
        return "too_long"
    if _UNEVALUATED.search(answer) or _STUTTER.search(answer) or (_ARITHMETIC.search(answer) and _LARGE.search(answer)):
        return "too_costly"
    pieces = max(answer.count(r"\cup"), answer.count(r"\cap"), answer.count("|"))
    if answer.count("&") > MAX_ENTRIES or pieces > MAX_PIECES:
        return "too_costly"
    try:
        _product(deque(_TOKEN.findall(answer)))
    except _TooLarge:
        return "too_costly"
    return ""


def _nesting(text: str) -> int:
    steps = ((character in "{([") - (character in "})]") for character in text)
    return max(accumulate(steps, initial=0))


class _TooLarge(Exception):
    """The answer has a power or factorial beyond MAX_POWER_DIGITS."""


_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[A-Za-z]+|\\.|\S")
_CONSTANTS = {"e": math.log10(math.e), "\\pi": math.log10(math.pi), "+": math.log10(2), "-": math.log10(2)}
_LARGEST = math.log10(MAX_POWER_DIGITS)


def _product(tokens: deque[str]) -> tuple[float, bool]:
    """Read up to the closing bracket. Return (log10 of a bound on the value with letters at 1, whether it has none).

    The product of its atoms bounds every operation between them, a sum by twice that.
    """
    size, plain = 0.0, True
    while tokens and tokens[0] not in ("}", ")", "]", r"\}"):
        atom_size, atom_plain = _atom(tokens)
        size, plain = size + atom_size, plain and atom_plain
    if tokens:
        tokens.popleft()
    return size, plain


def _atom(tokens: deque[str]) -> tuple[float, bool]:
    """Read a number, letter, command or bracket with its powers and factorials. Returns as `_product`; may raise."""
    token = tokens.popleft()
    bracket = token in ("{", "(", "[", r"\{")
    if bracket:
        size, plain = _product(tokens)
    elif token[0].isdecimal() or (token[0] == "." and len(token) > 1):
        size, plain = math.log10(max(1.0, float(token))) if len(token) < 300 else float(len(token)), True
    else:
        size, plain = _CONSTANTS.get(token, 0.0), not token[-1].isalpha()
    while tokens and tokens[0] in ("^", "!"):
        operator = tokens.popleft()
        exponent = size if operator == "!" else _atom(tokens)[0] if tokens else 0.0
        if exponent > _LARGEST or (bracket and not plain and operator == "^" and exponent > math.log10(MAX_EXPANSION)):
            raise _TooLarge
        size *= 10**exponent
        if operator == "^" and size > MAX_POWER_DIGITS:
            raise _TooLarge
    return size, plain
