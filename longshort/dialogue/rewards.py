"""The synergy reward: correctness, format and token length (METHOD: Long⊗Short section 3.3, eq. 6-8).

    r_role = eta * correct + lambda * format_role + mu(t) * length(correct, cost)

`cost` is the price-weighted number of tokens that *both* roles sampled in the episode. A length term compares it with
the other episodes of the problem or with a target. (The paper's code counts characters over the whole batch.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from longshort.dialogue.rollout import RewardFunction
from longshort.dialogue.turns import TurnProtocol
from longshort.grading.pool import GradingPool
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.sections import RewardConfig
from longshort.types import Episode, Problem, Reward


def kimi(correct: Sequence[bool], cost: Sequence[float], target: float) -> list[float]:
    """Return 0.5 - (cost - min)/(max - min) over the group, at most 0 for a wrong answer; 0 if all costs are equal.

    Kimi k1.5, arXiv 2501.12599, section 2.3.3.
    """
    low, high = min(cost), max(cost)
    if low == high:
        return [0.0] * len(cost)
    scores = [0.5 - (c - low) / (high - low) for c in cost]
    return [score if right else min(0.0, score) for right, score in zip(correct, scores, strict=True)]


def laser(correct: Sequence[bool], cost: Sequence[float], target: float) -> list[float]:
    """Return 1 for a correct answer within the target cost, else 0 (LASER, arXiv 2505.15612, eq. 5)."""
    return [float(right and c <= target) for right, c in zip(correct, cost, strict=True)]


def shortest_bonus(correct: Sequence[bool], cost: Sequence[float], target: float) -> list[float]:
    """Return 1 for the cheapest correct answers of the group, else 0 (Observe-R1)."""
    best = min((c for right, c in zip(correct, cost, strict=True) if right), default=None)
    return [float(right and c == best) for right, c in zip(correct, cost, strict=True)]


def target_cost(correct: Sequence[bool], cost: Sequence[float], target: float) -> list[float]:
    """Return minus the relative distance to the target cost, at least -1 (L1, arXiv 2503.04697, eq. 1)."""
    return [-min(1.0, abs(c - target) / target) for c in cost]


def none(correct: Sequence[bool], cost: Sequence[float], target: float) -> list[float]:
    """Return 0: no length term."""
    return [0.0] * len(cost)


LENGTH_TERMS: dict[str, Callable[[Sequence[bool], Sequence[float], float], list[float]]] = {
    "kimi": kimi,
    "laser": laser,
    "shortest_bonus": shortest_bonus,
    "target": target_cost,
    "none": none,
}


def length_weight(config: RewardConfig, progress: float) -> float:
    """Return mu(t): 0 until `ramp_start`, then linear up to `length_weight` at `ramp_end`; progress is in [0, 1]."""
    if progress <= config.ramp_start:
        return 0.0
    if progress >= config.ramp_end:
        return config.length_weight
    return config.length_weight * (progress - config.ramp_start) / (config.ramp_end - config.ramp_start)


class SynergyReward:
    """Grades the final text in `pool`, adds format and length, and reports every term."""

    def __init__(self, config: RewardConfig, prices: Mapping[str, float], protocol: TurnProtocol, pool: GradingPool):
        self.config, self.prices, self.protocol, self.pool = config, dict(prices), protocol, pool

    async def __call__(self, problem: Problem, episodes: Sequence[Episode], progress: float) -> list[Reward]:
        correct = await asyncio.gather(*(self._correct(problem, episode) for episode in episodes))
        cost = [episode.cost(self.prices) for episode in episodes]
        length = LENGTH_TERMS[self.config.length.kind](correct, cost, self.config.length.target)
        mu = length_weight(self.config, progress)
        scored = zip(episodes, correct, length, cost, strict=True)
        return [self._reward(episode, right, term, spent, mu) for episode, right, term, spent in scored]

    async def _correct(self, problem: Problem, episode: Episode) -> bool:
        if episode.stop != "answered":
            return False
        return (await self.pool.grade(problem.answer, self.protocol.final_text(episode))).correct

    def _reward(self, episode: Episode, correct: bool, length: float, cost: float, mu: float) -> Reward:
        well_formed = {role: float(self.protocol.well_formed(episode, role)) for role in self.protocol.roles}
        shared = self.config.correct_weight * correct + mu * length
        terms = {"correct": float(correct), "length": length, "cost": cost, "mu": mu}
        return Reward(
            totals={role: shared + self.config.format_weight * form for role, form in well_formed.items()},
            terms=terms | {f"format/{role}": form for role, form in well_formed.items()},
        )


REWARDS: dict[str, Callable[[RewardConfig, Mapping[str, float], TurnProtocol, GradingPool], RewardFunction]] = {
    "synergy": SynergyReward
}
"""Makers of reward functions, from (settings, price of a token per role, protocol, grading pool)."""


def make_reward(config: LongShortConfig, protocol: TurnProtocol, pool: GradingPool) -> RewardFunction:
    """Make the recipe's reward function; LongShortError for an unknown name."""
    return lookup(REWARDS, config.reward.name, "reward.name")(config.reward, config.prices, protocol, pool)
