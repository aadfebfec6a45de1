"""TL;DR's dynamic re-weighting: how much short and how much long reasoning the next batches hold (arXiv 2506.02678).

A model is fine-tuned on a mixture of System-1 data (short traces of easy problems) and System-2 data (long traces of
hard problems). At intervals its accuracy a and its mean tokens t on dev problems move the *sampling ratios* alpha:

    u_short = max((t - t_S) / |t_L - t_S|, 0)      u_long = max((a_L - a) / |a_L - a_S|, 0)
    alpha  <-  (1 - c) * softmax(log alpha + eta * u) + c / 2

t_S, a_S are those of a short thinker (an instruct model), t_L, a_L those of the reasoning model: `Bounds`. Too many
tokens call for short data, too little accuracy for long data. Ours: c is 0.1, not 1e-4, from which a saturated ratio
cannot come back; an average over the signals; and the control `constant`. Pairs are (short, long) throughout.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longshort.types import LongShortError

ShortLong = tuple[float, float]
Drawn = tuple[int, int]
EVEN: ShortLong = (0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Mean tokens and accuracy of the short and of the long thinker on the dev problems: the scale of the two signals.

    Bounds(tokens_short=1121, accuracy_short=0.289, tokens_long=7380, accuracy_long=0.756)
    """

    tokens_short: float
    accuracy_short: float
    tokens_long: float
    accuracy_long: float

    def __post_init__(self) -> None:
        for what, short, long in (
            ("tokens", self.tokens_short, self.tokens_long),
            ("accuracy", self.accuracy_short, self.accuracy_long),
        ):
            if short == long:
                raise LongShortError(
                    f"the bounds of the mixture have the same {what}: short {short:g}, long {long:g}; the signal has "
                    "no scale; choose another mixture.short_bound or mixture.long_bound, or more mixture.dev_problems"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The model after `step` optimizer steps, and what follows for the mixture: one line of trajectory.jsonl.

    The ratios are those from this step on; `drawn` counts the examples taken from each source so far; `train_loss` is
    the mean since the line before.
    """

    step: int
    dev_accuracy: float
    dev_tokens: float
    u_short: float
    u_long: float
    alpha_short: float
    alpha_long: float
    train_loss: float
    drawn_short: int
    drawn_long: int


def signals(tokens: float, accuracy: float, bounds: Bounds) -> ShortLong:
    """Return (u_short, u_long): how far the model is above the short thinker's tokens, and below the long thinker's
    accuracy, where 1 is the distance between the two thinkers."""
    u_short = (tokens - bounds.tokens_short) / abs(bounds.tokens_long - bounds.tokens_short)
    u_long = (bounds.accuracy_long - accuracy) / abs(bounds.accuracy_long - bounds.accuracy_short)
    return max(u_short, 0.0), max(u_long, 0.0)


def smooth(before: ShortLong, now: ShortLong, keep: float) -> ShortLong:
    """Return the exponential moving average: the share `keep` of the old signals, the remainder of the new ones."""
    return keep * before[0] + (1 - keep) * now[0], keep * before[1] + (1 - keep) * now[1]


def reweigh(ratios: ShortLong, signal: ShortLong, eta: float, floor: float) -> ShortLong:
    """Return the next sampling ratios; neither falls below floor / 2."""
    scores = [(math.log(ratio) if ratio else -math.inf) + eta * u for ratio, u in zip(ratios, signal, strict=True)]
    weights = [math.exp(score - max(scores)) for score in scores]
    short, long = ((1 - floor) * weight / sum(weights) + floor / 2 for weight in weights)
    return short, long


def keep_ratios(ratios: ShortLong, signal: ShortLong, eta: float, floor: float) -> ShortLong:
    """Return the ratios unchanged, whatever the signals say: the control."""
    return ratios


Weighting = Callable[[ShortLong, ShortLong, float, float], ShortLong]
WEIGHTINGS: dict[str, Weighting] = {"dynamic": reweigh, "constant": keep_ratios}


def choose(measurements: Sequence[Measurement], bounds: Bounds, keep_accuracy: float) -> tuple[Measurement, bool]:
    """Return the checkpoint with the fewest dev tokens among those with a > keep_accuracy * a_L, and True.

    If none is so accurate, return the most accurate one, and False. Of equals, the earliest.
    """
    accurate = [m for m in measurements if m.dev_accuracy > keep_accuracy * bounds.accuracy_long]
    if accurate:
        return min(accurate, key=lambda m: (m.dev_tokens, -m.dev_accuracy)), True
    return min(measurements, key=lambda m: (-m.dev_accuracy, m.dev_tokens)), False


def draw(
    sizes: tuple[int, int], drawn: Drawn, ratios: ShortLong, count: int, seed: int, step: int
) -> tuple[list[tuple[int, int]], Drawn]:
    """Return one step's batch as (source, row) pairs, source 0 being the short data, and the rows drawn of each source.

    Each example's source is drawn with the ratios, seeded by `seed` and `step`; within a source the rows come without
    replacement, one permutation per epoch. So a resumed run draws what it would have drawn.
    """
    rng = random.Random(f"{seed}/mixture/{step}")
    taken, picks = list(drawn), []
    for _ in range(count):
        source = int(rng.random() >= ratios[0])
        epoch, position = divmod(taken[source], sizes[source])
        picks.append((source, _permutation(sizes[source], f"{seed}/{source}/{epoch}")[position]))
        taken[source] += 1
    return picks, (taken[0], taken[1])


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(size), size)
