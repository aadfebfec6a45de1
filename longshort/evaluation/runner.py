"""Accuracy and cost of a pair, or of a single model, on held-out problems."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from longshort.team.metrics import episode_metrics
from longshort.team.rollout import Decoding, Engine, run_episode, stable_seed
from longshort.types import Episode, Problem

Z95 = NormalDist().inv_cdf(0.975)
EVALUATION_SEED = 2024
"""Sampling seed of every evaluation, so that two systems meet the same problems with the same dice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Graded episodes, `num_samples` per problem, problem by problem."""

    episodes: tuple[Episode, ...]
    correct: tuple[bool, ...]
    num_samples: int


async def evaluate(
    policies: Mapping[str, Engine], protocol, problems: Sequence[Problem], pool, decoding: Decoding, *, num_samples: int = 1, seed: int = 0
) -> Evaluation:
    """Run every problem `num_samples` times and grade each final answer; same seed and problems give the same episodes."""
    attempts = [(problem, index) for problem in problems for index in range(num_samples)]
    episodes = await asyncio.gather(
        *(run_episode(problem, policies, protocol, decoding, stable_seed(seed, problem.id, index)) for problem, index in attempts)
    )
    verdicts = await asyncio.gather(
        *(pool.grade(episode.problem.answer, protocol.final_text(episode)) for episode in episodes if episode.stop == "answered")
    )
    graded = iter(verdicts)
    correct = tuple(episode.stop == "answered" and next(graded).correct for episode in episodes)
    return Evaluation(episodes=tuple(episodes), correct=correct, num_samples=num_samples)


def accuracy(evaluation: Evaluation) -> tuple[float, float]:
    """Pass@1 and its standard error, clustered by problem: the spread of per-problem means over sqrt(problems)."""
    size = evaluation.num_samples
    means = [fmean(evaluation.correct[i : i + size]) for i in range(0, len(evaluation.correct), size)]
    mean = fmean(means)
    if len(means) < 2:
        return mean, 0.0
    return mean, (sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means)) ** 0.5


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion: honest near 0 and 1, where mean ± 1.96 s.e. is not."""
    p, spread = successes / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (p * (1 - p) / n + spread / (4 * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise(evaluation: Evaluation, protocol, prices: Mapping[str, float]) -> dict[str, float | list[float]]:
    """Flat numbers for a table: accuracy with standard error and 95 % interval, then the episode metrics."""
    mean, error = accuracy(evaluation)
    problems = len(evaluation.correct) // evaluation.num_samples
    interval = (
        wilson(mean * problems, problems) if evaluation.num_samples == 1 else (max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error))
    )
    summary: dict[str, float | list[float]] = {"accuracy": mean, "stderr": error, "interval": list(interval), "n": problems}
    return summary | episode_metrics(evaluation.episodes, protocol, prices)
