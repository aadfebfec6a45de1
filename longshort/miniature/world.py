"""A small verifiable world: last digits of sums of products, a rule-based teacher, and the dialogues of the cold start.

    Last digit of a: 4*6*2+b: 2*9*7-c: 3*7*9?          48 + 126 - 189 = -15 -> 5

A term is a product of three or four distinct digits: the hard part, work for the long model. Every running quantity is one digit, so
models of half a million parameters learn it from nothing. Each thought begins with the label of its term, sign included; the
label is one token, which turns "which digit comes next?" from counting into a look-up by (label, previous digit).
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK
from longshort.types import LONG, SHORT, LongShortError, Problem

DIGITS = (2, 3, 4, 6, 7, 8, 9)
"""Factors: neither 5 nor 1 nor 0, so that no running product gets stuck at 0 or 5 or is copied."""
NAMES = "abc"
TERMS = (1, 2, 2, 3, 3)
"""How many products a problem has, each entry equally likely."""
GAP = "\n\n"
QUESTION, RESTATE, WRAP = "Last digit of ", "We need the last digit of ", "So the last digit is "
CHECK, WAIT, TOTAL, TIMES, ARROW, BOXED = "Check ", "Wait, that is wrong. ", "Total ", ", *", " -> ", "\\boxed{"
LABELS = tuple(sign + name + ": " for name in NAMES for sign in (("",) if name == "a" else ("+", "-")))
PHRASES = (
    GAP,
    QUESTION,
    RESTATE,
    CHECK,
    WAIT,
    WRAP,
    TIMES,
    ARROW,
    BOXED,
    *LABELS,
    *(TOTAL + label for label in LABELS),
)
"""Strings that are one token each in the miniature's vocabularies."""

RESTATE_SHARE, CHECK_SHARE, SECOND_CHECK_SHARE, ERROR_SHARE, TOTAL_CHECK_SHARE, WRAP_SHARE = (
    0.4,
    0.6,
    0.5,
    0.03,
    0.3,
    0.8,
)
"""How often the verbose teacher writes each optional thought (the second check: given the first)."""

Split = Literal["train", "dev", "test"]
Message = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Term:
    """One signed summand: Term(label="-b: ", factors=(2, 9, 7)); a single factor is a plain digit (the generator makes none)."""

    label: str
    factors: tuple[int, ...]

    @property
    def is_product(self) -> bool:
        return len(self.factors) > 1

    @property
    def value(self) -> int:
        """Last digit of the product, without the sign."""
        value = 1
        for factor in self.factors:
            value = value * factor % 10
        return value

    def added_to(self, total: int) -> int:
        """Last digit of `total` plus or minus this term."""
        return (total - self.value if self.label.startswith("-") else total + self.value) % 10


def make_problems(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of one split. A hash of the expression decides the split, so no seed can move a problem into another.

    Two tenths are held out: "dev" to choose settings on, "test" to report. Ids depend on the expression alone.
    """
    if split not in ("train", "dev", "test"):
        raise LongShortError(f"split must be 'train', 'dev' or 'test', got {split!r}")
    rng = random.Random(f"{split} {seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        terms = _random_terms(rng)
        expression = _expression(terms)
        digest = hashlib.sha256(expression.encode()).hexdigest()
        if expression not in problems and _split_of(digest) == split:
            question, answer = f"{QUESTION}{expression}?", str(_totals(terms)[-1])
            problems[expression] = Problem(id=f"mini-{digest[:12]}", question=question, answer=answer)
    return list(problems.values())


def terms_of(problem: Problem) -> list[Term]:
    """Return the terms of a problem of this world; raises LongShortError for a question from elsewhere."""
    if terms := _terms(problem.question):
        return terms
    raise LongShortError(
        f"problem {problem.id}: {problem.question!r} is not of the miniature world ('{QUESTION}a: 4*6*2+b: 9?')"
    )


def _terms(question: str) -> list[Term]:
    """Read a question's terms; empty for a question from elsewhere."""
    found = re.findall(r"([+-]?[a-c]: )(\d(?:\*\d)*)", question)
    terms = [Term(label, tuple(map(int, digits.split("*")))) for label, digits in found]
    return terms if question == f"{QUESTION}{_expression(terms)}?" else []


def products(problem: Problem) -> int | None:
    """Return how many products the problem has, 1 to 3 (each is worth a long thought); None for a problem from elsewhere."""
    terms = _terms(problem.question)
    return sum(term.is_product for term in terms) if terms else None


def hard_parts(problem: Problem) -> int:
    """Return `products` of a problem of this world; raises LongShortError for one from elsewhere."""
    return sum(term.is_product for term in terms_of(problem))


def teacher_trace(problem: Problem, rng: random.Random) -> str:
    """A verbose long trace: thoughts separated by blank lines, many of them redundant, then the boxed answer.

    Mistakes occur in a few products and are always noticed and put right, so every trace ends on the gold answer.
    """
    terms = terms_of(problem)
    thoughts = [f"{RESTATE}{_expression(terms)}."] if rng.random() < RESTATE_SHARE else []
    total = 0
    for term in terms:
        if term.is_product:
            if rng.random() < ERROR_SHARE:
                wrong = (term.value + rng.randrange(1, 10)) % 10
                thoughts += [_product(term, ends_with=wrong), WAIT + _product(term)]
            else:
                thoughts.append(_product(term))
            thoughts += [CHECK + _product(term)] * _checks(rng, CHECK_SHARE, SECOND_CHECK_SHARE)
        thoughts.append(_total(term, total))
        thoughts += [CHECK + thoughts[-1]] * (rng.random() < TOTAL_CHECK_SHARE)
        total = term.added_to(total)
    thoughts += [f"{WRAP}{total}."] * (rng.random() < WRAP_SHARE)
    return GAP.join([*thoughts, f"{BOXED}{total}}}"])


def dialogue(problem: Problem, rng: random.Random, redundancy: float) -> list[Message]:
    """The teacher's content as a dialogue for `protocols.demonstration`: each product is one long turn, the totals are short turns.

    `redundancy` is the probability of each optional thought (restatement, check, second check, total's check, wrap): 0 is the tersest
    dialogue, and what is kept above 0 is what RL can learn to leave out.
    """
    terms = terms_of(problem)
    products = [index for index, term in enumerate(terms) if term.is_product]
    cuts = [0, *products[1:], len(terms)]  # the short turn after each product covers the terms up to the next product
    messages: list[Message] = []
    total = 0
    for product, (start, stop) in zip(products, pairwise(cuts), strict=True):
        restated = [f"{RESTATE}{_expression(terms)}."] if not messages and rng.random() < redundancy else []
        checks = [CHECK + _product(terms[product])] * _checks(rng, redundancy, redundancy)
        messages.append((LONG, GAP.join([*restated, _product(terms[product]), *checks]), END_THINK))
        thoughts = []
        for index in range(start, stop):
            thoughts.append(_total(terms[index], total))
            thoughts += [CHECK + thoughts[-1]] * (rng.random() < redundancy)
            total = terms[index].added_to(total)
        if stop == len(terms):
            thoughts += [f"{WRAP}{total}."] * (rng.random() < redundancy) + [f"{BOXED}{total}}}"]
        messages.append((SHORT, GAP.join(thoughts), END_ANSWER if stop == len(terms) else RETHINK))
    return messages


def total_thoughts(problem: Problem) -> list[str]:
    """The running total after each term, as a thought each."""
    total, thoughts = 0, []
    for term in terms_of(problem):
        thoughts.append(_total(term, total))
        total = term.added_to(total)
    return thoughts


def direct_ending(problem: Problem, written: str) -> str:
    """How a quick thinker ends what is `written` so far (whole thoughts of a trace): the totals still missing, then the box.

    A total whose product nobody wrote is a guess to whoever learns this, which is what makes important thoughts important.
    """
    done = sum(thought.startswith(TOTAL) for thought in written.split(GAP))
    return GAP.join([*total_thoughts(problem)[done:], f"{BOXED}{problem.answer}}}"])


def compressed_trace(problem: Problem, rng: random.Random) -> str:
    """The tersest dialogue as one model's trace: the control that tells compression from cooperation."""
    return GAP.join(text for _, text, _ in dialogue(problem, rng, redundancy=0.0))


def _split_of(digest: str) -> Split:
    return {0: "test", 1: "dev"}.get(int(digest, 16) % 10, "train")


def _random_terms(rng: random.Random) -> list[Term]:
    """One to three products."""
    return [
        Term(_label(name, rng), tuple(rng.sample(DIGITS, rng.randint(3, 4)))) for name in NAMES[: rng.choice(TERMS)]
    ]


def _label(name: str, rng: random.Random) -> str:
    return f"{'' if name == NAMES[0] else rng.choice('+-')}{name}: "


def _expression(terms: list[Term]) -> str:
    return "".join(term.label + "*".join(map(str, term.factors)) for term in terms)


def _totals(terms: list[Term]) -> list[int]:
    """Running last digit after each term."""
    totals, total = [], 0
    for term in terms:
        total = term.added_to(total)
        totals.append(total)
    return totals


def _product(term: Term, ends_with: int | None = None) -> str:
    """`b: 4*6=4, *2=8.`; `ends_with` replaces the last digit (a mistake)."""
    value, steps = term.factors[0], []
    for factor in term.factors[1:]:
        value = value * factor % 10
        steps.append(f"{factor}={value}")
    text = f"{term.label}{term.factors[0]}*{TIMES.join(steps)}"
    return f"{text if ends_with is None else text[:-1] + str(ends_with)}."


def _total(term: Term, total: int) -> str:
    """`Total -b: 8-6 -> 2.`: the running total after this term.

    The arrow stands before running totals and nothing else, so that the last one can be found from anywhere behind it; with `=` there
    every other mistake of the long model was a total taken up wrongly after a long product.
    """
    return f"{TOTAL}{term.label}{total}{'-' if term.label.startswith('-') else '+'}{term.value}{ARROW}{term.added_to(total)}."


def _checks(rng: random.Random, first: float, second: float) -> int:
    """How many checks a product gets: 0, 1 or 2."""
    if rng.random() >= first:
        return 0
    return 2 if rng.random() < second else 1
