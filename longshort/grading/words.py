"""Answers in words: which texts are words, and their one spelling."""

from __future__ import annotations

import re

from longshort.grading.atoms import FUNCTIONS
from longshort.grading.expressions import Parser
from longshort.grading.spelling import GREEK_NAMES
from longshort.grading.tokens import tokens_of
from longshort.grading.values import Text

_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS.split())}
LONGEST_RUN_OF_LETTERS = 3
"""A run of so many letters may be a product of variables, too."""
_ONLY_WORDS = re.compile(r"[^\W\d_][^\W\d_ '\-.,]*(?:[ '\-.,]+[^\W\d_]+)*\.?")
_MOSTLY_WORDS = re.compile(r"[^\W\d_][\w '\-.,/&()]*")
_RUN = re.compile(r"[^\W\d_]+")
_NO_WORDS = FUNCTIONS | GREEK_NAMES.keys() | {"and", "or", "pi"}


def only_words(spelling: str) -> Text | None:
    """Return the words of an answer that is nothing but words, None if it is something else."""
    bare = re.sub("[⟦⟧]", "", spelling).strip()
    if not _ONLY_WORDS.fullmatch(bare.replace("(", "").replace(")", "")) or bare.lower() in NUMBER_WORDS:
        return None
    if re.fullmatch(r"[A-Za-z](?: [A-Za-z])+", bare):
        bare = bare.replace(" ", "")  # A B D, and h t
    runs = _RUN.findall(bare)
    if all(len(run) == 1 or run in _NO_WORDS for run in runs):
        return None
    if "-" in bare and max(map(len, runs)) <= LONGEST_RUN_OF_LETTERS:
        return None  # ab - c
    expr = None
    if len(runs) == 1 and len(bare) <= LONGEST_RUN_OF_LETTERS and bare.isascii() and not bare.istitle():
        expr = Parser(tokens_of(bare)).sum()
    return Text(words_of(bare), expr)


def mostly_words(spelling: str) -> Text | None:
    """Return the words of a text that begins with a letter and has a word in it, such as `July 4`."""
    bare = re.sub("[⟦⟧]", "", spelling)
    return Text(words_of(bare)) if _MOSTLY_WORDS.fullmatch(bare) and re.search(r"[^\W\d_]{3}", bare) else None


def words_of(text: str) -> str:
    """Return the words in one spelling: no article, no punctuation; the case counts only in a run of two capitals."""
    text = re.sub(r"^(?:the|an?)\s+(?=\w)", "", text.strip(), flags=re.IGNORECASE)
    text = re.sub(r"(?<=\w),?\s+and\s+(?=\w)", " ", re.sub(r"[\s,\-()\"]+", " ", text))
    text = " ".join(text.split()).strip(" .")
    return text if re.fullmatch("[A-Z]{2}", text) else text.casefold()
