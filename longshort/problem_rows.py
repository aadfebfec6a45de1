"""One row of a data set, of any known shape, as a Problem.

Known columns, first match wins (`answer` may be a number of any type; all other columns are ignored):

    question    problem | question | prompt (text, or a chat list: its user messages, as text or as parts of text)
    answer      answer (GSM8K: what follows `####`) | reward_model.ground_truth (verl)
                | solution (TRL; its last \\boxed{} if it has one)
    id          id | unique_id | Record ID (GPQA) | a hash of question and answer, the same in every file
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
import sys
from collections.abc import Mapping
from decimal import Decimal
from numbers import Number, Rational, Real
from typing import Any

import numpy

from longshort.grading.boxes import last_boxed
from longshort.types import LongShortError, Problem

MAX_EXPONENT = 100
"""Decimals of more digits stay in scientific notation."""
MAX_QUESTION = 100_000
"""Characters; a longer "question" is a broken row."""
QUESTION_COLUMNS = ("problem", "question", "prompt")
ID_COLUMNS = ("id", "unique_id", "Record ID")
LEFT_OUT = ("system", "developer")
"""Roles of a chat prompt that the protocol's own instructions replace."""
WHOLE = re.compile(r"([+-]?\d+)\.0+")
GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


TOO_LONG = f"an integer of more than {sys.get_int_max_str_digits():,} digits; put it between quotes, or delete the row"


class _BadRow(ValueError):
    """What is wrong with a row, and what to do."""


def normalise(row: Mapping[str, Any], where: str) -> Problem:
    """Turn a row of any known shape into a Problem; the LongShortError for a bad row begins with `where`."""
    try:
        if not isinstance(row, Mapping):
            shown = " ".join(repr(row).split())
            raise _BadRow(f"a row is a mapping with a question and an answer, got {type(row).__name__} {shown:.60}")
        question, answer, given = _encodable(_question(row)), _encodable(_answer(row)), _encodable(given_id(row))
    except _BadRow as fault:
        raise LongShortError(f"{where}: {fault}") from None
    content = hashlib.blake2b(f"{question}\0{answer}".encode(), digest_size=6).hexdigest()
    return Problem(id=given or content, question=question, answer=answer)


def _question(row: Mapping[str, Any]) -> str:
    column = next((name for name in QUESTION_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise _BadRow(f"no question; expected a column {', '.join(QUESTION_COLUMNS)}, got {_names(row) or 'none'}")
    value = _plain(row[column])
    if isinstance(value, list):
        value = "\n\n".join(map(_chat_content, value))
    if not isinstance(value, str):
        raise _BadRow(f"the column {column!r} must hold text, got {_shown(value)}")
    question = value.strip()
    if not question:
        raise _BadRow(f"the question in column {column!r} is empty; fill it in or delete the row")
    if len(question) > MAX_QUESTION:
        raise _BadRow(f"a question of {len(question):,} characters (limit {MAX_QUESTION:,}); shorten or delete it")
    return question


def _chat_content(message: Any) -> str:
    """Return the text of a user message; "" for one that is left out."""
    content = _plain(message.get("content")) if isinstance(message, Mapping) else None
    if isinstance(content, list):
        content = "".join(map(_text_of_part, content))
    if not isinstance(message, Mapping) or not isinstance(content, str):
        raise _BadRow(f"a chat prompt is a list of {{role, content}} with text content, got {message!r}")
    if (role := message.get("role")) not in ("user", *LEFT_OUT):
        known = ", ".join(("user", *LEFT_OUT))
        raise _BadRow(f"the chat prompt holds a message of {role!r}; a problem has {known} only, delete the others")
    return content if role == "user" else ""


def _text_of_part(part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise _BadRow(f'the models read text only: a part is {{"type": "text", "text": "…"}}, got {kind!r:.60}')
    return part["text"]


def _answer(row: Mapping[str, Any]) -> str:
    value = row.get("answer")
    if value is None and isinstance(row.get("reward_model"), Mapping):
        value = row["reward_model"].get("ground_truth")
    if value is None and isinstance(solution := row.get("solution"), str):
        boxed = last_boxed(solution)
        if boxed is None and "prompt" not in row:
            raise _BadRow("no answer: the row has a solution without \\boxed{}; add an `answer` column")
        value = solution if boxed is None else boxed
    value = _plain(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        expected = "a column answer, solution or reward_model.ground_truth"
        raise _BadRow(f"no answer; expected {expected}, got {_names(row)}; add it or delete the row")
    return _answer_text(value)


def _answer_text(value: Any) -> str:
    """Return the answer as text: `5.0` -> "5", "… #### 1,080" -> "1080"; refuse what cannot be an answer."""
    text = value if isinstance(value, str) else _number_text(value)
    if "####" in text:
        text = text.rpartition("####")[2].strip()
        text = text.replace(",", "") if GROUPED.fullmatch(text) else text
    text = text.strip()
    if not text or text.lower() == "nan":
        raise _BadRow(f"the answer is {'empty' if not text else repr(text)}; fill it in or delete the row")
    return WHOLE.sub(r"\1", text) if WHOLE.fullmatch(text) else text


def _number_text(value: Any) -> str:
    """Return a number of any type as text, e.g. 0.1 for numpy's float32 and 0 for Decimal("0E-10")."""
    if isinstance(value, bool) or not isinstance(value, Decimal | Real):
        raise _BadRow(f"the answer must be text or a number, got {_shown(value)}")
    finite = value.is_finite() if isinstance(value, Decimal) else isinstance(value, Rational) or math.isfinite(value)
    if not finite:
        raise _BadRow(f"the answer is {value}; correct it or delete the row")
    if isinstance(value, Decimal) and abs(value.adjusted()) < MAX_EXPONENT:
        return f"{value:f}"
    try:
        return str(value)
    except ValueError:
        raise _BadRow(TOO_LONG) from None


def _plain(value: Any) -> Any:
    """Return an array of numpy or torch, or a tuple, as a list; an array without length as the number that it holds."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str | Number) or not hasattr(value, "__array__"):
        return value
    try:
        array = numpy.asarray(value)
    except (TypeError, RuntimeError) as error:  # a tensor of bfloat16, on a GPU, or with a gradient
        raise _BadRow(f"a {type(value).__name__} that numpy cannot read ({error}); give numbers or text") from error
    return list(array) if array.ndim else array[()]


def _shown(value: Any) -> str:
    """Return a value and its type for an error."""
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row))


def _encodable(text: str) -> str:
    """Refuse half a character (from a cut emoji in JSON), which would only fail in a tokenizer."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRow(
            f"half a character (\\u{ord(text[error.start]):04x}), which is no text; correct the row"
        ) from error
    return text


def given_id(row: Mapping[str, Any]) -> str:
    try:
        given = next((str(row[name]).strip() for name in ID_COLUMNS if row.get(name) is not None), "")
        return "" if given in ("nan", "<NA>") else given  # what a pandas table holds where a row has no id
    except ValueError:
        raise _BadRow(f"the id is {TOO_LONG}") from None
