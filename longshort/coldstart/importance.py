"""How much each thought of a trace matters (arXiv 2505.11827, section 3.2). Arithmetic only; coldstart/rollouts.py
makes the counts.

A small non-reasoning model continues every prefix y_1..y_i of a trace N times; P_i is the share of continuations that
reach the right answer, P_0 that from the problem alone. Then

    M(y_i) = log2(1 + T1 T2 P_i) - delta_i      T1 = (d - d_{1..i}) / d    T2 = (d - d_i) / d
    delta_i = 0.25 if P_i <= P_{i-1} else 0     d = tokens of all thoughts, d_i of thought i
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from statistics import NormalDist

from longshort.coldstart.records import Score
from longshort.evaluation.measures import wilson

PENALTY = 0.25
"""delta of a thought that did not raise the share of right answers."""
Count = tuple[int, int]
"""(right continuations, continuations) of one prefix."""


def score(tokens: Sequence[int], counts: Sequence[Count], confidence: float = 0.95) -> list[Score]:
    """Return the Score of each thought; `tokens` has d_1..d_n, `counts` one entry more: P_0 comes first.

        tokens (10, 30), counts ((0, 8), (4, 8), (8, 8))
        -> M_1 = log2(1 + 30/40 * 30/40 * 1/2) = 0.357,  M_2 = log2(1 + 0) = 0

    Raises ValueError when the lengths do not fit, a thought has no token, or a prefix has no rollout.
    """
    if len(counts) != len(tokens) + 1:
        raise ValueError(f"{len(tokens)} thoughts need {len(tokens) + 1} prefixes (P_0 first), got {len(counts)}")
    if not tokens or min(tokens) < 1:
        raise ValueError(f"every thought has at least one token, got {list(tokens)}")
    if min(n for _, n in counts) < 1:
        raise ValueError(f"every prefix has at least one rollout, got {[n for _, n in counts]}")
    total, z = sum(tokens), NormalDist().inv_cdf(0.5 + confidence / 2)
    scores = []
    for own, done, (before, n_before), (right, n) in zip(tokens, accumulate(tokens), counts, counts[1:], strict=False):
        p = right / n
        weight = (total - done) / total * (total - own) / total
        delta = PENALTY if p <= before / n_before else 0.0
        loose = math.sqrt(math.log(2 / (1 - confidence)) / (2 * n)) / math.log(2)
        low, high = wilson(right, n, z)
        m, bound = math.log2(1 + weight * p) - delta, weight * loose
        scores.append(Score(m=m, delta=delta, p=p, low=low, high=high, bound=bound, loose_bound=loose))
    return scores


def pooled(counts: Mapping[str, Sequence[Count]], keys: Mapping[str, Sequence[Hashable]]) -> dict[str, list[Count]]:
    """Add up, by trace, the counts of all prefixes with the same key.

    Scores of single thoughts from 8 rollouts are nearly noise; thoughts of one kind in one place are worth the same, so
    their rollouts may be added. Not in the paper.
    """
    sums: dict[Hashable, Count] = defaultdict(lambda: (0, 0))
    for trace, trace_counts in counts.items():
        for key, (right, n) in zip(keys[trace], trace_counts, strict=True):
            sums[key] = (sums[key][0] + right, sums[key][1] + n)
    return {trace: [sums[key] for key in keys[trace]] for trace in counts}


def skeleton(question: str, thoughts: Sequence[str]) -> list[Hashable]:
    """Return the keys of a trace's prefixes for `pooled`: question and last thought with every digit masked."""
    masked = [re.sub(r"\d", "0", text.strip()) for text in (question, "", *thoughts)]
    return [(masked[0], thought) for thought in masked[1:]]
