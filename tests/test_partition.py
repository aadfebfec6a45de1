"""Which thoughts stay long: the paper's scan, its controls, and the messages made of them."""

import random

from hypothesis import given
from hypothesis import strategies as st

from longshort.thoughts.partition import PARTITIONS, capped, messages
from longshort.types import LONG, SHORT

SCORES = [0.2, 0.1, 0.3, 0.3, -0.25, 0.5]


def chosen(rule, scores=SCORES, num_long=None, seed=0):
    return [index for index, long in enumerate(PARTITIONS[rule](scores, num_long, random.Random(seed))) if long]


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
    assert messages([True, False, False, True, True, False]) == [(LONG, (0,)), (SHORT, (1, 2)), (LONG, (3, 4)), (SHORT, (5,))]
    assert messages([True, True]) == [(LONG, (0, 1)), (SHORT, ())]  # a closing short answer is asked for


def test_too_many_long_turns_give_up_the_least_important():
    long, scores = [True, False, True, False, True, False, True], [0.1, 0, 0.2, 0, 0.4, 0, 0.3]
    assert capped(long, scores, 4) == long
    assert capped(long, scores, 3) == [True, False, False, False, True, False, True]
    assert capped(long, scores, 1) == [True, False, False, False, False, False, False]


@given(st.lists(st.floats(-0.25, 0.99), min_size=1, max_size=30), st.sampled_from([*PARTITIONS]), st.integers(1, 6), st.integers(0, 9))
def test_every_partition_is_a_dialogue_of_every_thought_once(scores, rule, exchanges, seed):
    long = capped(PARTITIONS[rule](scores, None, random.Random(seed)), scores, exchanges)
    parts = messages(long)
    assert [role for role, _ in parts] == [LONG, SHORT] * (len(parts) // 2) and 1 <= len(parts) // 2 <= exchanges
    assert [index for _, indices in parts for index in indices] == list(range(len(scores)))
