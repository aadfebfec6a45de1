"""Which thoughts stay long (arXiv 2505.11827, section 3.3), and the controls of the paper's ablation.

A rule is one function `(importance of each thought, number of long thoughts, RNG) -> whether each thought is long`, and
one line in `PARTITIONS`. The first thought is always long: the dialogue begins with the long model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

from longshort.types import LONG, SHORT

Rule = Callable[[Sequence[float], int, random.Random], list[bool]]


def metric(scores: Sequence[float], num_long: int, rng: random.Random) -> list[bool]:
    """Apply the paper's scan: y_1 is long; y_i is long iff M(y_i) > max(M(y_1), ..., M(y_{i-1}))."""
    best, chosen = -float("inf"), []
    for value in scores:
        chosen.append(value > best)
        best = max(best, value)
    return chosen


def random_thoughts(scores: Sequence[float], num_long: int, rng: random.Random) -> list[bool]:
    """Keep the first thought, and others drawn at random."""
    others = set(rng.sample(range(1, len(scores)), num_long - 1))
    return [index == 0 or index in others for index in range(len(scores))]


def first_k(scores: Sequence[float], num_long: int, rng: random.Random) -> list[bool]:
    """Keep the first `num_long` thoughts."""
    return [index < num_long for index in range(len(scores))]


def all_long(scores: Sequence[float], num_long: int, rng: random.Random) -> list[bool]:
    """Keep every thought; the short model only closes."""
    return [True] * len(scores)


PARTITIONS: dict[str, Rule] = {"metric": metric, "random": random_thoughts, "first_k": first_k, "all_long": all_long}


def divide(
    rule: Rule, scores: Sequence[float], num_long: int | None, max_exchanges: int, rng: random.Random
) -> list[bool]:
    """Apply the rule, then give up long messages beyond `max_exchanges`.

    `num_long` None: as many as `metric` keeps in this trace. `metric` gives up the least important message, every other
    rule a random one, because the scores must not reach it this way.
    """
    kept = capped(metric(scores, 0, rng), scores, max_exchanges)
    chosen = rule(scores, min(len(scores), num_long or sum(kept)), rng)
    return kept if rule is metric else capped(chosen, [rng.random() for _ in scores], max_exchanges)


def capped(long: Sequence[bool], weights: Sequence[float], max_exchanges: int) -> list[bool]:
    """Give up long messages beyond `max_exchanges`, those of the smallest weight first and never the first one."""
    long = list(long)
    while len(runs := [indices for role, indices in messages(long) if role == LONG]) > max_exchanges:
        for index in min(runs[1:], key=lambda indices: max(weights[i] for i in indices)):
            long[index] = False
    return long


def messages(long: Sequence[bool]) -> list[tuple[str, tuple[int, ...]]]:
    """Join neighbours of one kind to messages (role, indices of its thoughts); the last is short, empty if need be."""
    runs = groupby(enumerate(long), key=lambda pair: pair[1])
    merged = [(LONG if is_long else SHORT, tuple(index for index, _ in run)) for is_long, run in runs]
    return merged if merged[-1][0] == SHORT else [*merged, (SHORT, ())]
