"""The measures of an evaluation: accuracy and its uncertainty, pass@k, lengths, rethinking, and one system against
another.

All are pure functions of graded episodes. The problems are the random sample: errors, intervals and resampling are over
problems, and several samples of one problem are a cluster, not independent trials (Miller, arXiv 2411.00640).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, hypot
from statistics import NormalDist, fmean, pvariance
from typing import Any

import numpy as np

from longshort.dialogue.metrics import episode_metrics
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.rethinking import rethinking_phrases
from longshort.evaluation.runner import Evaluation
from longshort.types import Episode, LongShortError, Problem

Z95 = NormalDist().inv_cdf(0.975)
REWARD, PENALTY = 3, -5
"""The weights of accuracy in `aes`: of a gain and of a loss, as in the paper (O1-Pruner, arXiv 2501.12570)."""
BLOCK = 1 << 20
"""How many draws the bootstrap holds in memory at once."""


def by_problem(evaluation: Evaluation, values: Sequence[float]) -> list[float]:
    """Return the mean of each problem's samples; `values` has one entry per episode."""
    size = evaluation.num_samples
    return [fmean(values[i : i + size]) for i in range(0, len(values), size)]


def accuracy(evaluation: Evaluation) -> tuple[float, float]:
    """Return pass@1 and its standard error, clustered by problem: the spread of per-problem means over sqrt(problems).

    The error is given as 0 for a single problem, because its spread is unknown; `accuracy_interval` is honest there
    too.
    """
    means = by_problem(evaluation, evaluation.correct)
    mean = fmean(means)
    if len(means) < 2:
        return mean, 0.0
    return mean, (sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means)) ** 0.5


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion: honest near 0 and 1, where mean ± 1.96 s.e. is not."""
    p, spread = successes / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (p * (1 - p) / n + spread / (4 * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy_interval(evaluation: Evaluation) -> tuple[float, float]:
    """Return the 95 % interval of pass@1: Wilson's, for the number of independent trials that the samples are worth.

    That number is trials / design effect (Kish 1965; with Wilson's interval in Franco, Little, Louis and Slud, J.
    Surv. Stat. Methodol. 7, 2019) = problems * p (1 - p) / variance of the per-problem means. It is one per problem
    if a problem's samples always agree, which is the plain Wilson interval with one sample, and at most all samples.
    Ours: the design effect is estimated with one solved and one unsolved problem added, as Agresti and Coull add
    trials; otherwise it is 0/0 if all is right, and too optimistic near there. In simulations of 10 to 400 problems
    with 4 or 16 samples it covered the true accuracy in at least 94.5 % of cases; mean ± 1.96 s.e. covered an
    accuracy of 0.99 on at most 100 problems in 25 to 83 %.
    """
    means = by_problem(evaluation, evaluation.correct)
    added = [*means, 0.0, 1.0]
    p = fmean(added)
    worth = min(len(evaluation.correct), len(means) * p * (1 - p) / pvariance(added))
    return wilson(fmean(means) * worth, worth)


def pass_at(evaluation: Evaluation, k: int) -> float:
    """Return the unbiased pass@k: the mean over problems of 1 - C(n - c, k) / C(n, k), with c of n samples right.

    n = 4, c = 1, k = 2 -> 1 - C(3, 2) / C(4, 2) = 1/2        (Chen et al., arXiv 2107.03374)
    """
    n = evaluation.num_samples
    if not 1 <= k <= n:
        raise LongShortError(
            f"pass@{k} cannot come from {n} samples per problem: choose k from 1 to {n} or raise eval.num_samples"
        )
    right = (sum(evaluation.correct[i : i + n]) for i in range(0, len(evaluation.correct), n))
    return fmean(1 - comb(n - c, k) / comb(n, k) for c in right)


def characters(episode: Episode, role: str) -> int:
    """Count the characters of a role's turns, without closing tags and without what it only read."""
    return sum(len(turn.completion.text) for turn in episode.turns if turn.role == role)


def summarise(evaluation: Evaluation, protocol: TurnProtocol, prices: Mapping[str, float]) -> dict[str, Any]:
    """Return the measures of one row.

    `n` problems, `samples` of each, `accuracy` with `stderr` and 95 % `interval`, `pass@k` for the powers of two up
    to `samples` and for `samples`, the episode metrics, and per episode the mean `characters` (in all and per role),
    the mean number of `rethinking` phrases, and the share of episodes with one (`rethinking_rate`).
    """
    mean, error = accuracy(evaluation)
    samples, episodes = evaluation.num_samples, evaluation.episodes
    powers = (1 << exponent for exponent in range(samples.bit_length()))
    written = {role: fmean(characters(episode, role) for episode in episodes) for role in protocol.roles}
    phrases = [sum(rethinking_phrases(turn.completion.text).total() for turn in episode.turns) for episode in episodes]
    return {
        "n": len(evaluation.correct) // samples,
        "samples": samples,
        "accuracy": mean,
        "stderr": error,
        "interval": list(accuracy_interval(evaluation)),
        **{f"pass@{k}": pass_at(evaluation, k) for k in dict.fromkeys((*powers, samples))},
        **episode_metrics(episodes, protocol, prices),
        "characters": sum(written.values()),
        **{f"characters/{role}": value for role, value in written.items()},
        "rethinking": fmean(phrases),
        "rethinking_rate": fmean(count > 0 for count in phrases),
    }


def overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one system's means over several benchmarks, each with equal weight: accuracy, tokens, characters and cost.

    `stderr` is the root of the summed squares over the number of benchmarks; `interval` combines the benchmarks' own
    intervals likewise, each side by its distance from the accuracy (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    means = {key: fmean(row[key] for row in rows) for key in ("accuracy", "tokens", "characters", "cost")}
    below = hypot(*(row["accuracy"] - row["interval"][0] for row in rows)) / len(rows)
    above = hypot(*(row["interval"][1] - row["accuracy"] for row in rows)) / len(rows)
    interval = [max(0.0, means["accuracy"] - below), min(1.0, means["accuracy"] + above)]
    return {**means, "stderr": hypot(*(row["stderr"] for row in rows)) / len(rows), "interval": interval}


def aes(accuracy: float, length: float, base_accuracy: float, base_length: float) -> float:
    """Return the accuracy-efficiency score against a base system: length saved plus weighted accuracy won or lost.

        AES = (Len_base - Len) / Len_base + w |Acc - Acc_base| / Acc_base        w = 3 if Acc >= Acc_base else -5

    Both accuracies have one unit (0 to 1, or percent), and both lengths (tokens, characters or cost). Source: METHOD
    1.6, after O1-Pruner, arXiv 2501.12570. Raises LongShortError if the base has accuracy or length 0.
    """
    if base_accuracy <= 0 or base_length <= 0:
        raise LongShortError(
            f"AES divides by the base system's accuracy and length, which are {base_accuracy} and {base_length}: "
            "name a base system that solves something"
        )
    weight = REWARD if accuracy >= base_accuracy else PENALTY
    return (base_length - length) / base_length + weight * abs(accuracy - base_accuracy) / base_accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A system's mean minus a base system's, with its 95 % interval and the two-sided p-value of "no difference".

    Comparison(difference=0.08, interval=(0.03, 0.13), p=0.002)
    """

    difference: float
    interval: tuple[float, float]
    p: float


def _sampled_tokens(evaluation: Evaluation, prices: Mapping[str, float]) -> list[float]:
    return [sum(len(turn.completion.token_ids) for turn in episode.turns) for episode in evaluation.episodes]


COMPARED: dict[str, Callable[[Evaluation, Mapping[str, float]], Sequence[float]]] = {
    "accuracy": lambda evaluation, prices: evaluation.correct,
    "tokens": _sampled_tokens,
    "cost": lambda evaluation, prices: [episode.cost(prices) for episode in evaluation.episodes],
}
"""What `compare` can compare: (evaluation, prices) -> one value per episode."""


def compare(
    a: Evaluation, b: Evaluation, value: str, prices: Mapping[str, float], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare system `a` with base `b` on the same problems, by a paired bootstrap.

    Problems are drawn with replacement, each with both systems' means over its samples, so that a hard problem is
    hard for both (Efron and Tibshirani 1993, chapters 13 and 16). The interval holds the middle 95 % of the resampled
    differences. p is the share of resampled differences, centred on no difference, that lie as far from 0 as the
    observed one, which counts too: never below 1 / (resamples + 1). With few problems both are too confident. `value`
    is a key of COMPARED. Raises LongShortError for another value, for different problems, and for fewer than two.
    """
    if value not in COMPARED:
        raise LongShortError(f"{value!r} cannot be compared; known: {', '.join(COMPARED)}")
    first, second = _problems(a), _problems(b)
    if first != second:
        raise LongShortError(
            "two evaluations are compared problem by problem, but "
            f"{(first - second).total()} of the first's {first.total()} problems are not in the second and "
            f"{(second - first).total()} of the second's {second.total()} not in the first: evaluate both on the same"
        )
    if first.total() < 2:
        raise LongShortError(
            f"a comparison resamples problems and needs at least 2, not {first.total()}: raise eval.num_problems"
        )
    differences = _means_in_order(a, COMPARED[value](a, prices)) - _means_in_order(b, COMPARED[value](b, prices))
    observed = float(differences.mean())
    means = _resampled_means(differences, resamples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    # Differences of shares often tie with the observed one: a tie that is lost to the last bit must count.
    as_far = np.count_nonzero(np.abs(means - observed) >= abs(observed) * (1 - 1e-9))
    return Comparison(difference=observed, interval=(float(low), float(high)), p=(int(as_far) + 1) / (resamples + 1))


def _problems(evaluation: Evaluation) -> Counter[Problem]:
    return Counter(episode.problem for episode in evaluation.episodes[:: evaluation.num_samples])


def _means_in_order(evaluation: Evaluation, values: Sequence[float]) -> np.ndarray:
    """Return per-problem means sorted by problem id, so that two evaluations align. Shape [problems]."""
    ids = [episode.problem.id for episode in evaluation.episodes[:: evaluation.num_samples]]
    return np.array(by_problem(evaluation, values))[sorted(range(len(ids)), key=ids.__getitem__)]


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the means of `resamples` draws of len(values) values with replacement. Shape [resamples]."""
    rng, size = np.random.default_rng(seed), len(values)
    rows = max(1, BLOCK // size)
    counts = (min(rows, resamples - start) for start in range(0, resamples, rows))
    return np.concatenate([values[rng.integers(size, size=(count, size))].mean(axis=1) for count in counts])
