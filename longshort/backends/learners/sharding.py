"""Which rank learns from which sequence: a partition of about equal work."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def cost(tokens: int, hidden: int) -> float:
    """Return the work of a sequence in tokens' worth of matrix products: T + T²/(12 h).

    Per layer and token the products take about 24 h² operations, causal attention 2 h T: as much at T = 12 h.
    """
    return tokens + tokens**2 / (12 * hidden)


def shard(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Return the item numbers of each rank, ascending; a rank may have none.

    The costliest item goes first, each to the rank with the least work so far: no rank has more than 4/3 of the best
    partition's work (Graham 1969, longest processing time). Every rank computes the same, ties included.

        shard([5, 3, 3, 2], ranks=2) -> [[0, 3], [1, 2]]
    """
    shards: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        load, rank = heapq.heappop(loads)
        shards[rank].append(item)
        heapq.heappush(loads, (load + costs[item], rank))
    return [sorted(items) for items in shards]
