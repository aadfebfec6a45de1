"""Advantages: how much better an episode did than the others of its group (GRPO, arXiv 2402.03300, section 4.1.2).

    A = (score - mean of the group) / (std + 1e-4)

The std is the group's or the whole batch's, or nothing is divided (TRL's `scale_rewards`). An advantage kind is a
function (group, role) -> one score per episode, plus one line in `ADVANTAGES`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from longshort.recipe.schema import lookup
from longshort.types import Group

STD_EPSILON = 1e-4
"""TRL's."""
EQUAL_SCORES = 1e-8
"""Scores closer than this are equal: sums of the same terms may differ in their last bits."""


def team(group: Group, role: str) -> list[float]:
    """Score by the mean of the roles' totals: both roles get the same advantage."""
    return [statistics.fmean(reward.totals.values()) for reward in group.rewards]


def own(group: Group, role: str) -> list[float]:
    """Score by the role's own total: a format fault counts against its author alone."""
    return [reward.totals[role] for reward in group.rewards]


ADVANTAGES: dict[str, Callable[[Group, str], list[float]]] = {"team": team, "role": own}


def advantages(groups: Sequence[Group], role: str, kind: str, scale: str) -> list[list[float]]:
    """Return one advantage per episode, in the shape of `groups`; a group whose episodes scored the same gets zeros.

    `scale` is "group", "batch" or "none". The standard deviation is the sample one (n - 1), as in TRL.
    Raises LongShortError for an unknown kind.
    """
    score = lookup(ADVANTAGES, kind, "advantage")
    scores = [score(group, role) for group in groups]
    all_scores = [score for group in scores for score in group]
    divisor = {
        "group": lambda group: sample_std(group) + STD_EPSILON,
        "batch": lambda group: sample_std(all_scores) + STD_EPSILON,
        "none": lambda group: 1.0,
    }[scale]
    return [normalise(group, divisor(group)) for group in scores]


def normalise(scores: Sequence[float], divisor: float) -> list[float]:
    """Return (score - mean) / divisor, or exact zeros for equal scores."""
    if equal(scores):
        return [0.0] * len(scores)
    mean = statistics.fmean(scores)
    return [(score - mean) / divisor for score in scores]


def zero_variance(group: Group, role: str, kind: str = "team") -> bool:
    """Tell whether the group trains nothing because all its episodes scored the same."""
    return equal(ADVANTAGES[kind](group, role))


def equal(scores: Sequence[float]) -> bool:
    return max(scores, default=0.0) - min(scores, default=0.0) <= EQUAL_SCORES


def sample_std(scores: Sequence[float]) -> float:
    return statistics.stdev(scores) if len(scores) > 1 else 0.0
