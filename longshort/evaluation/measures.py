"""Accuracy and cost of graded episodes, as numbers for a table."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist, fmean

from longshort.evaluation.runner import Evaluation
from longshort.team.metrics import episode_metrics

Z95 = NormalDist().inv_cdf(0.975)


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
