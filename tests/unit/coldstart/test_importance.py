"""The metric M, its bounds and intervals, against numbers worked out by hand and against simulated thoughts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.coldstart.importance import PENALTY, pooled, score, skeleton


def test_two_thoughts_by_hand():
    first, second = score((10, 30), ((0, 8), (4, 8), (8, 8)))
    # T1 = 30/40, T2 = 30/40, P = 1/2: log2(1 + 0.28125); the second thought ends the trace, so T1 = 0 and M = 0
    assert first.m == pytest.approx(math.log2(1.28125)) and first.delta == 0 and first.p == 0.5
    assert (second.m, second.delta, second.p) == (0.0, 0.0, 1.0)


def test_three_thoughts_by_hand_with_a_penalty():
    scores = score((20, 20, 60), ((2, 8), (2, 8), (6, 8), (8, 8)))
    # T1 = .8, .6, 0; T2 = .8, .8, .4; the first thought leaves P where P_0 was: delta
    assert [s.m for s in scores] == pytest.approx([math.log2(1 + 0.64 * 0.25) - 0.25, math.log2(1 + 0.48 * 0.75), 0.0])
    assert [s.delta for s in scores] == [PENALTY, 0.0, 0.0]


def test_bounds_and_interval_by_hand():
    (first, _) = score((10, 30), ((0, 8), (4, 8), (8, 8)), confidence=0.95)
    epsilon = math.sqrt(math.log(2 / 0.05) / 16)  # 0.480: with N = 8 nearly half of everything
    assert epsilon == pytest.approx(0.480, abs=5e-4)
    assert first.loose_bound == pytest.approx(epsilon / math.log(2)) and first.bound == pytest.approx(
        0.5625 * epsilon / math.log(2)
    )
    assert (first.low, first.high) == pytest.approx((0.2152, 0.7848), abs=1e-4)  # Wilson, 4 of 8


def test_a_single_thought_and_a_trace_that_is_right_from_the_start():
    (only,) = score((7,), ((0, 4), (4, 4)))
    assert (only.m, only.delta, only.bound) == (0.0, 0.0, 0.0)  # T1 = T2 = 0
    assert [s.delta for s in score((5, 5), ((4, 4), (4, 4), (4, 4)))] == [PENALTY, PENALTY]  # nothing left to raise


@pytest.mark.parametrize(
    ("tokens", "counts", "says"),
    [
        ((3, 4), ((0, 8), (1, 8)), "2 thoughts need 3 prefixes"),
        ((), ((0, 8),), "at least one token"),
        ((3, 0), ((0, 8), (1, 8), (1, 8)), r"at least one token, got \[3, 0\]"),
        ((3,), ((0, 8), (0, 0)), "at least one rollout"),
    ],
)
def test_what_does_not_fit_together_is_refused(tokens, counts, says):
    with pytest.raises(ValueError, match=says):
        score(tokens, counts)


traces = st.integers(1, 20).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(1, 500), min_size=size, max_size=size),
        st.lists(st.integers(0, 8), min_size=size + 1, max_size=size + 1),
    )
)


@given(traces)
def test_m_stays_between_minus_delta_and_one_and_p_in_its_interval(trace):
    tokens, right = trace
    for one in score(tokens, [(count, 8) for count in right]):
        assert -one.delta <= one.m < 1
        assert one.low - 1e-12 <= one.p <= one.high + 1e-12
        assert 0 <= one.bound <= one.loose_bound


def test_the_bound_holds_on_simulated_thoughts():
    """Thoughts whose true P is known: the share of scores further off than their bound stays below 1 - confidence."""
    rng, tokens, n, misses, total = random.Random(0), (10, 40, 25, 60), 8, 0, 0
    for _ in range(2000):
        truth = [rng.random() for _ in range(5)]
        counts = [(sum(rng.random() < p for _ in range(n)), n) for p in truth]
        exact = score(tokens, [(p, 1) for p in truth])
        for found, true in zip(score(tokens, counts, confidence=0.9), exact, strict=True):
            misses += abs((found.m + found.delta) - (true.m + true.delta)) > found.bound + 1e-12
            total += 1
    assert total == 8000 and 0 < misses / total < 0.1


def test_pooling_adds_the_rollouts_of_equal_keys():
    counts = {"x": [(0, 2), (1, 2)], "y": [(1, 2), (2, 2)], "z": [(0, 2), (0, 2)]}
    keys = {"x": ["q", "qa"], "y": ["q", "qa"], "z": ["r", "ra"]}
    assert pooled(counts, keys) == {"x": [(1, 4), (3, 4)], "y": [(1, 4), (3, 4)], "z": [(0, 2), (0, 2)]}


def test_skeletons_mask_digits_and_nothing_else():
    assert skeleton("a: 4*6?", ["a: 4*6=4.\n\n", "Total a: 0+4 -> 4."]) == [
        ("a: 0*0?", ""),
        ("a: 0*0?", "a: 0*0=0."),
        ("a: 0*0?", "Total a: 0+0 -> 0."),
    ]
