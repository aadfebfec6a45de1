"""A small verifiable world: last digits of sums of products, a rule-based teacher, and the dialogues of the cold start.

    Last digit of a: 4*6*2+b: 2*9*7-c: 3*7*9?          48 + 126 - 189 = -15 -> 5

A term is a product of three or four distinct digits: the hard part, work for the long model. Every running quantity is
one digit, so models of half a million parameters learn it from nothing. Each thought begins with the label of its term,
sign included. The label is one token, so finding the next digit is a look-up by (label, previous digit), not counting.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass
from itertools import pairwise

from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK
from longshort.types import LONG, SHORT, LongShortError, Problem

DIGITS = (2, 3, 4, 6, 7, 8, 9)
"""Factors: without 0, 1 and 5, which would copy a running product or leave it stuck at 0 or 5."""
NAMES = "abc"
TERMS = (1, 2, 2, 3, 3)
"""How many products a problem has, each entry equally likely."""
GAP = "\n\n"
QUESTION, RESTATE, WRAP = "Last digit of ", "We need the last digit of ", "So the last digit is "
CHECK, WAIT, TOTAL, TIMES, ARROW, BOXED = "Check ", "Wait, that is wrong. ", "Total ", ", *", " -> ", "\\boxed{"
LABELS = tuple(sign + name + ": " for name in NAMES for sign in (("",) if name == "a" else ("+", "-")))
TOTAL_LABELS = tuple(TOTAL + label for label in LABELS)
PHRASES = (GAP, QUESTION, RESTATE, CHECK, WAIT, WRAP, TIMES, ARROW, BOXED, *LABELS, *TOTAL_LABELS)
"""Strings that are one token each in the miniature's vocabularies."""

# How often the verbose teacher makes a mistake and writes each optional thought (the second check: given the first).
RESTATE_SHARE, CHECK_SHARE, SECOND_CHECK_SHARE = 0.4, 0.6, 0.5
ERROR_SHARE, TOTAL_CHECK_SHARE, WRAP_SHARE = 0.03, 0.3, 0.8

SPLITS = ("train", "dev", "test")
Message = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Term:
    """One signed summand, e.g. Term(label="-b: ", factors=(2, 9, 7)). A single factor is a plain digit."""

    label: str
    factors: tuple[int, ...]

    @property
    def is_product(self) -> bool:
        return len(self.factors) > 1

    @property
    def value(self) -> int:
        """Last digit of the product, without the sign."""
        return math.prod(self.factors) % 10

    def added_to(self, total: int) -> int:
        """Return the last digit of `total` plus or minus this term."""
        return (total - self.value if self.label.startswith("-") else total + self.value) % 10


def make_problems(split: str, count: int, seed: int) -> list[Problem]:
    """Make `count` distinct problems of one split. A hash of the expression decides the split, whatever the seed.

    Two tenths are held out: "dev" to choose settings on, "test" to report. Ids depend on the expression alone.
    """
    if split not in SPLITS:
        raise LongShortError(f"split must be 'train', 'dev' or 'test', got {split!r}")
    rng, split_of = random.Random(f"{split} {seed}"), {0: "test", 1: "dev"}
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        terms = _random_terms(rng)
        expression = _expression(terms)
        digest = hashlib.sha256(expression.encode()).hexdigest()
        if expression not in problems and split_of.get(int(digest, 16) % 10, "train") == split:
            question = f"{QUESTION}{expression}?"
            problems[expression] = Problem(id=f"mini-{digest[:12]}", question=question, answer=str(_last_digit(terms)))
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
    summands = re.findall(r"([+-]?[a-c]: )(\d(?:\*\d)*)", question)
    terms = [Term(label, tuple(map(int, digits.split("*")))) for label, digits in summands]
    return terms if question == f"{QUESTION}{_expression(terms)}?" else []


def products(problem: Problem) -> int | None:
    """Return how many products (hard parts) a problem of this world has; None for a problem from elsewhere."""
    terms = _terms(problem.question)
    return sum(term.is_product for term in terms) if terms else None


def teacher_trace(problem: Problem, rng: random.Random) -> str:
    """Write a verbose long trace: thoughts separated by blank lines, many of them redundant, then the boxed answer.

    A few products have a mistake, which the next thought always corrects, so every trace ends on the right answer.
    """
    terms = terms_of(problem)
    thoughts = [f"{RESTATE}{_expression(terms)}."] if rng.random() < RESTATE_SHARE else []
    for term, total in zip(terms, total_thoughts(problem), strict=True):
        if term.is_product:
            if rng.random() < ERROR_SHARE:
                wrong = (term.value + rng.randrange(1, 10)) % 10
                thoughts += [_product(term, ends_with=wrong), WAIT + _product(term)]
            else:
                thoughts.append(_product(term))
            thoughts += [CHECK + _product(term)] * _checks(rng, CHECK_SHARE, SECOND_CHECK_SHARE)
        thoughts += [total] + [CHECK + total] * (rng.random() < TOTAL_CHECK_SHARE)
    thoughts += [f"{WRAP}{_last_digit(terms)}."] * (rng.random() < WRAP_SHARE)
    return GAP.join([*thoughts, f"{BOXED}{_last_digit(terms)}}}"])


def dialogue(problem: Problem, rng: random.Random, redundancy: float) -> list[Message]:
    """Write the teacher's content as a dialogue for `protocols.demonstration`: long multiplies, short adds.

    `redundancy` is the probability of each optional thought (restatement, check, second check, total's check, wrap-up).
    0 gives the tersest dialogue; whatever a higher value adds, RL can learn to leave out.
    """
    terms, totals = terms_of(problem), total_thoughts(problem)
    hard = [index for index, term in enumerate(terms) if term.is_product]
    cuts = [0, *hard[1:], len(terms)]  # the short turn after each product covers the terms up to the next product
    messages: list[Message] = []
    for product, (start, stop) in zip(hard, pairwise(cuts), strict=True):
        restated = [f"{RESTATE}{_expression(terms)}."] if not messages and rng.random() < redundancy else []
        checks = [CHECK + _product(terms[product])] * _checks(rng, redundancy, redundancy)
        messages.append((LONG, GAP.join([*restated, _product(terms[product]), *checks]), END_THINK))
        thoughts = []
        for total in totals[start:stop]:
            thoughts += [total] + [CHECK + total] * (rng.random() < redundancy)
        if stop == len(terms):
            answer = _last_digit(terms)
            thoughts += [f"{WRAP}{answer}."] * (rng.random() < redundancy) + [f"{BOXED}{answer}}}"]
        messages.append((SHORT, GAP.join(thoughts), END_ANSWER if stop == len(terms) else RETHINK))
    return messages


def total_thoughts(problem: Problem) -> list[str]:
    """Return the running total after each term, each as a thought: `Total -b: 8-6 -> 2.`

    The arrow occurs in running totals only, so a model can find the last one from anywhere behind it. With `=` instead,
    every other mistake of the long model was a wrong total after a long product.
    """
    total, thoughts = 0, []
    for term in terms_of(problem):
        sign = "-" if term.label.startswith("-") else "+"
        thoughts.append(f"{TOTAL}{term.label}{total}{sign}{term.value}{ARROW}{term.added_to(total)}.")
        total = term.added_to(total)
    return thoughts


def direct_ending(problem: Problem, written: str) -> str:
    """End a trace directly after `written` (whole thoughts of it): the totals that are missing, then the box.

    A total whose product is not written is a guess for a model that learns this. So some thoughts become important.
    """
    done = sum(thought.startswith(TOTAL) for thought in written.split(GAP))
    return GAP.join([*total_thoughts(problem)[done:], f"{BOXED}{problem.answer}}}"])


def compressed_trace(problem: Problem, rng: random.Random) -> str:
    """Write the tersest dialogue as one model's trace: the control that separates compression from cooperation."""
    return GAP.join(text for _, text, _ in dialogue(problem, rng, redundancy=0.0))


def _random_terms(rng: random.Random) -> list[Term]:
    """Draw one to three products."""
    terms = []
    for name in NAMES[: rng.choice(TERMS)]:
        sign = "" if name == NAMES[0] else rng.choice("+-")
        terms.append(Term(f"{sign}{name}: ", tuple(rng.sample(DIGITS, rng.randint(3, 4)))))
    return terms


def _expression(terms: list[Term]) -> str:
    return "".join(term.label + "*".join(map(str, term.factors)) for term in terms)


def _last_digit(terms: list[Term]) -> int:
    total = 0
    for term in terms:
        total = term.added_to(total)
    return total


def _product(term: Term, ends_with: int | None = None) -> str:
    """Write a product step by step: `b: 4*6=4, *2=8.` `ends_with` replaces the last digit (a mistake)."""
    value, steps = term.factors[0], []
    for factor in term.factors[1:]:
        value = value * factor % 10
        steps.append(f"{factor}={value}")
    text = f"{term.label}{term.factors[0]}*{TIMES.join(steps)}"
    return f"{text if ends_with is None else text[:-1] + str(ends_with)}."


def _checks(rng: random.Random, first: float, second: float) -> int:
    """Draw how many checks a product gets: 0, 1 or 2."""
    if rng.random() >= first:
        return 0
    return 2 if rng.random() < second else 1
