"""Sequences over ranks: everything once, about equal work, always the same."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.backends.learners.sharding import cost, shard


@pytest.mark.parametrize(
    ("costs", "ranks", "expected"),
    [
        ([5, 3, 3, 2], 1, [[0, 1, 2, 3]]),
        ([5, 3, 3, 2], 2, [[0, 3], [1, 2]]),  # 7 and 6
        ([1, 1, 1, 9], 2, [[3], [0, 1, 2]]),
        ([2, 2, 2, 2], 3, [[0, 3], [1], [2]]),  # ties go to the lowest number
        ([4], 3, [[0], [], []]),
        ([], 2, [[], []]),
    ],
)
def test_partitions_by_hand(costs, ranks, expected):
    assert shard(costs, ranks) == expected


@given(st.lists(st.integers(1, 50), max_size=7), st.integers(1, 3))
def test_every_item_once_and_no_rank_beyond_four_thirds_of_the_best(costs, ranks):
    shards = shard(costs, ranks)
    assert sorted(item for items in shards for item in items) == list(range(len(costs)))
    heaviest = max(sum(costs[i] for i in items) for items in shards)
    best = min(
        max(sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks))
        for owners in product(range(ranks), repeat=len(costs))
    )
    assert heaviest <= 4 / 3 * best


def test_attention_costs_as_much_as_the_products_at_twelve_times_the_width():
    assert cost(100, hidden=10**9) == pytest.approx(100)
    assert cost(12 * 64, hidden=64) == 2 * 12 * 64
    assert cost(2000, 1000) > 2 * cost(1000, 1000)
