"""Which thoughts stay long (arXiv 2505.11827, section 3.3), and the controls that the paper's ablation asks for.

A rule is one function `(importance of each thought, how many may be long or None, random generator) -> long or not, per thought`, and
one line in `PARTITIONS`. The first thought is always long: the dialogue begins with the long model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

from longshort.types import LONG, SHORT

Rule = Callable[[Sequence[float], int | None, random.Random], list[bool]]


def metric(scores: Sequence[float], num_long: int | None, rng: random.Random) -> list[bool]:
    """The paper's scan: y_1 is long; y_i is long iff M(y_i) > max(M(y_1), ..., M(y_{i-1}))."""
    best, chosen = -float("inf"), []
    for value in scores:
        chosen.append(value > best)
        best = max(best, value)
    return chosen


def random_thoughts(scores: Sequence[float], num_long: int | None, rng: random.Random) -> list[bool]:
    """As many as `metric` takes (or `num_long`), drawn at random behind the first."""
    wanted = _wanted(scores, num_long, rng)
    others = set(rng.sample(range(1, len(scores)), wanted - 1))
    return [index == 0 or index in others for index in range(len(scores))]


def first_k(scores: Sequence[float], num_long: int | None, rng: random.Random) -> list[bool]:
    """The first k, k as many as `metric` takes (or `num_long`)."""
    wanted = _wanted(scores, num_long, rng)
    return [index < wanted for index in range(len(scores))]


def all_long(scores: Sequence[float], num_long: int | None, rng: random.Random) -> list[bool]:
    """Every thought; the short model only closes."""
    return [True] * len(scores)


PARTITIONS: dict[str, Rule] = {"metric": metric, "random": random_thoughts, "first_k": first_k, "all_long": all_long}


def _wanted(scores: Sequence[float], num_long: int | None, rng: random.Random) -> int:
    return min(len(scores), num_long or sum(metric(scores, None, rng)))


def capped(long: Sequence[bool], scores: Sequence[float], max_exchanges: int) -> list[bool]:
    """The same with the least important long thoughts given up until the dialogue has at most `max_exchanges` long turns."""
    long = list(long)
    while sum(role == LONG for role, _ in messages(long)) > max_exchanges:
        weakest = min((index for index in range(1, len(long)) if long[index]), key=lambda index: scores[index])
        long[weakest] = False
    return long


def messages(long: Sequence[bool]) -> list[tuple[str, tuple[int, ...]]]:
    """(role, indices of its thoughts) in order: neighbours of one kind are one message. Ends with a short one, empty if need be."""
    merged = [
        (LONG if is_long else SHORT, tuple(index for index, _ in run))
        for is_long, run in groupby(enumerate(long), key=lambda pair: pair[1])
    ]
    return merged if merged[-1][0] == SHORT else [*merged, (SHORT, ())]
