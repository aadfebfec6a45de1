"""Multiple choice: the letter that an answer chooses, however it is wrapped."""

from __future__ import annotations

import re

_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|sf|bb)|boldsymbol|mbox|fbox|bf|rm|left|right)(?![A-Za-z])\s*|[{}*$]|\\ "
)
_LETTER = re.compile(r"\(?([A-J])\)?\.?")
_LEAD = r"(?:(?:the )?(?:(?:correct |final )?answer|option|choice)(?: is)?:? ?)*"
_CHOICE = re.compile(
    _LEAD + r"[(\[]?([A-Z])(?:[)\]][.:]?(?P<rest>.*)|[.:] (?P<text>.*)|[.:;,])?", re.IGNORECASE | re.DOTALL
)
_ANOTHER = re.compile(
    r"^\s*(?:[,;](?=.)|[/&+!^_=]|(?:or|and|not|nor|but|is)\b)|\b[A-Ja-j][)\]]|\b[A-J][.:]|^\W*[a-j]\W*$|\b[A-J]\s*$|\b(?:or|and|not)\s+[(\[]?[A-J]\b"
)
"""What makes the text behind a letter more than the words of its option."""


def letter_of(gold: str) -> str:
    r"""Return the letter that a gold of multiple choice is, such as `B` and `\text{(B)}`; "" if it is none."""
    match = _LETTER.fullmatch(_STYLE.sub("", gold).strip())
    return match[1] if match else ""


def choice_of(answer: str) -> str:
    r"""Return the letter of a multiple-choice answer, or "": `C`, `(c)`, `C) 3.2 eV`, `\textbf{Option C}` -> "C".

    An answer that names several letters, such as `A, C`, `C or D` and `(C) or (D)`, has none.
    """
    match = _CHOICE.fullmatch(_STYLE.sub("", answer).strip())
    if not match or _ANOTHER.search(match["rest"] or match["text"] or ""):
        return ""
    return match[1].upper()
