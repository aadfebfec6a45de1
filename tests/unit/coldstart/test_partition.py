"""Which thoughts stay long: the paper's scan, its controls, and the messages made of them."""

import random

from hypothesis import given
from hypothesis import strategies as st

from longshort.coldstart.partition import PARTITIONS, capped, divide, messages
from longshort.types import LONG, SHORT

SCORES = [0.2, 0.1, 0.3, 0.3, -0.25, 0.5]


def chosen(rule, scores=SCORES, num_long=None, seed=0, max_exchanges=9):
    long = divide(PARTITIONS[rule], scores, num_long, max_exchanges, random.Random(seed))
    return [index for index, kept in enumerate(long) if kept]


def test_metric_takes_the_first_and_each_new_maximum():
    assert chosen("metric") == [0, 2, 5]  # the second 0.3 is no new maximum
    assert chosen("metric", [-0.25, -0.25, -0.3]) == [0]


def test_controls_take_as_many_as_the_metric_unless_told():
    assert chosen("first_k") == [0, 1, 2] and chosen("first_k", num_long=2) == [0, 1]
    assert chosen("all_long") == [0, 1, 2, 3, 4, 5]
    for seed in range(20):
        drawn = chosen("random", seed=seed)
        assert len(drawn) == 3 and drawn[0] == 0
    assert chosen("random", seed=1) == chosen("random", seed=1)
    assert len({tuple(chosen("random", seed=seed)) for seed in range(20)}) > 3
    assert chosen("random", num_long=99) == [0, 1, 2, 3, 4, 5]


def test_neighbours_of_one_kind_become_one_message():
    assert messages([True, False, False, True, True, False]) == [
        (LONG, (0,)),
        (SHORT, (1, 2)),
        (LONG, (3, 4)),
        (SHORT, (5,)),
    ]
    assert messages([True, True]) == [(LONG, (0, 1)), (SHORT, ())]  # a closing short answer is asked for


def test_too_many_long_turns_give_up_the_least_important_run():
    long, scores = [True, False, True, False, True, False, True], [0.1, 0, 0.2, 0, 0.4, 0, 0.3]
    assert capped(long, scores, 4) == long
    assert capped(long, scores, 3) == [True, False, False, False, True, False, True]
    assert capped(long, scores, 1) == [True, False, False, False, False, False, False]
    assert capped([True, True, True, False, True], [0.5, 0.1, 0.1, 0, 0.9], 1) == [
        True,
        True,
        True,
        False,
        False,
    ]  # never the first run


def test_controls_take_as_many_as_the_metric_keeps_and_do_not_learn_of_the_scores():
    rising = [index / 100 for index in range(0, 80, 2)]  # each a new maximum: one run, nothing to give up
    assert chosen("metric", rising, max_exchanges=1) == list(range(40))
    zigzag = [value for pair in zip(rising, [-1.0] * 40, strict=True) for value in pair]
    assert chosen("metric", zigzag, max_exchanges=3) == [0, 76, 78]
    assert chosen("first_k", zigzag, max_exchanges=3) == [0, 1, 2]
    drawn = [chosen("random", zigzag, seed=seed, max_exchanges=3) for seed in range(400)]
    assert {len(kept) for kept in drawn} == {3}
    tight = [chosen("random", zigzag, num_long=10, seed=seed, max_exchanges=3) for seed in range(400)]
    kept = [index for row in tight for index in row[1:]]
    assert (
        abs(sum(kept) / len(kept) - 40) < 2.5
    )  # the middle of 1..79: what is given up for the cap does not follow the scores


@given(
    st.lists(st.floats(-0.25, 0.99), min_size=1, max_size=30),
    st.sampled_from([*PARTITIONS]),
    st.integers(1, 6),
    st.integers(0, 9),
)
def test_every_partition_is_a_dialogue_of_every_thought_once(scores, rule, exchanges, seed):
    parts = messages(divide(PARTITIONS[rule], scores, None, exchanges, random.Random(seed)))
    assert [role for role, _ in parts] == [LONG, SHORT] * (len(parts) // 2) and 1 <= len(parts) // 2 <= exchanges
    assert [index for _, indices in parts for index in indices] == list(range(len(scores)))
