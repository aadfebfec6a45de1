"""The mixer by hand: signals on the paper's 7B bounds, one update, the floor, saturation and recovery, the choice, the
draws."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from longshort.mixture.reweighting import EVEN, WEIGHTINGS, Bounds, Measurement, choose, draw, reweigh, signals, smooth
from longshort.types import LongShortError

PAPER = Bounds(tokens_short=1121, accuracy_short=0.289, tokens_long=7380, accuracy_long=0.756)
"""The 7B bounds of arXiv 2506.02678 (METHOD section 2)."""


def measured(step, accuracy, tokens):
    zeros = dict.fromkeys(("u_short", "u_long", "train_loss"), 0.0)
    return Measurement(
        step=step,
        dev_accuracy=accuracy,
        dev_tokens=tokens,
        alpha_short=0.5,
        alpha_long=0.5,
        drawn_short=0,
        drawn_long=0,
        **zeros,
    )


def test_signals_are_one_at_the_other_bound_and_never_negative():
    assert signals(7380, 0.756, PAPER) == (1.0, 0.0)
    assert signals(1121, 0.289, PAPER) == (0.0, 1.0)
    assert signals(4250.5, 0.5225, PAPER) == pytest.approx((0.5, 0.5))
    assert signals(900, 0.9, PAPER) == (0.0, 0.0)
    assert signals(13639, 0.756, PAPER) == (2.0, 0.0)


def test_one_update_from_even_ratios_by_hand():
    # t 5000, a .6: u = (3879 / 6259, .156 / .467) = (.619748, .334047)
    # softmax(4 u) = 1 / (1 + exp(4 (.334047 - .619748))) = .758193
    u = signals(5000, 0.6, PAPER)
    assert u == pytest.approx((0.619748, 0.334047), abs=1e-6)
    assert reweigh(EVEN, u, 4.0, 0.0) == pytest.approx((0.758193, 0.241807), abs=1e-6)
    assert reweigh(EVEN, u, 4.0, 0.1) == pytest.approx((0.9 * 0.758193 + 0.05, 0.9 * 0.241807 + 0.05), abs=1e-6)


def test_equal_signals_pull_no_way_but_the_floors():
    assert reweigh((0.8, 0.2), (0.4, 0.4), 4.0, 0.0) == pytest.approx((0.8, 0.2))
    assert reweigh((0.8, 0.2), (0.0, 0.0), 4.0, 0.1) == pytest.approx((0.77, 0.23))


def test_ratios_compound_over_updates():
    first = reweigh(EVEN, (0.25, 0.0), 4.0, 0.0)
    assert first[0] / first[1] == pytest.approx(math.e)
    second = reweigh(first, (0.25, 0.0), 4.0, 0.0)
    assert second[0] / second[1] == pytest.approx(math.e**2)


def test_no_ratio_falls_below_half_the_floor_and_nothing_overflows():
    for floor in (1e-4, 0.1, 1.0):
        for signal in ((1e6, 0.0), (0.0, 1e6), (1e6, 1e6 - 1)):
            ratios = reweigh((1e-9, 1 - 1e-9), signal, 4.0, floor)
            assert min(ratios) >= floor / 2 - 1e-15 and sum(ratios) == pytest.approx(1.0)
    assert reweigh((1.0, 0.0), (0.0, 1e6), 4.0, 0.0) == (1.0, 0.0)


def updates_to_recover(floor):
    """Saturate with a model that writes like the long bound; then count the updates until long data lead, as it answers
    like the short."""
    ratios = EVEN
    for _ in range(10):
        ratios = reweigh(ratios, (1.0, 0.0), 4.0, floor)
    saturated, count = ratios, 0
    while ratios[1] < 0.5:
        ratios, count = reweigh(ratios, (0.0, 0.5), 4.0, floor), count + 1
    return saturated[1], count


def test_a_saturated_ratio_comes_back_at_once_with_our_floor_and_late_with_the_papers():
    # Saturated odds: .05 / .95 -> ln = -2.9, with +2 per update (and the floor pulling along): 2. 5e-5 -> ln = -9.9: 5.
    (ours, quick), (papers, slow) = updates_to_recover(0.1), updates_to_recover(1e-4)
    assert ours == pytest.approx(0.9 * 0.05 * math.exp(-4) / 0.95 + 0.05, rel=0.02) and papers == pytest.approx(
        5e-5, rel=0.02
    )
    assert (quick, slow) == (2, 5)


def test_constant_keeps_the_ratios():
    assert WEIGHTINGS["constant"](EVEN, (1.0, 0.0), 4.0, 0.1) == EVEN
    assert WEIGHTINGS["dynamic"] is reweigh


def test_the_moving_average_keeps_its_share():
    assert smooth((1.0, 0.0), (0.5, 0.4), 0.0) == (0.5, 0.4)
    assert smooth((1.0, 0.0), (0.5, 0.4), 0.75) == pytest.approx((0.875, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_long": 1121}, "same tokens: short 1121, long 1121.*mixture.short_bound"),
        ({"accuracy_short": 0.756}, "same accuracy: short 0.756, long 0.756"),
    ],
)
def test_bounds_without_a_scale_are_refused_with_their_numbers(change, message):
    with pytest.raises(LongShortError, match=message):
        replace(PAPER, **change)


def test_the_choice_is_the_shortest_that_is_accurate_enough():
    # 0.7 * .756 = .5292
    rows = [
        measured(32, 0.75, 6000),
        measured(64, 0.60, 2500),
        measured(96, 0.53, 1900),
        measured(128, 0.5292, 1500),
        measured(160, 0.3, 9),
    ]
    assert choose(rows, PAPER, 0.7) == (rows[2], True)
    assert choose(rows, PAPER, 0.75) == (rows[1], True)
    assert choose(rows, PAPER, 1.0) == (rows[0], False)


def test_of_equals_the_more_accurate_then_the_earlier_is_chosen():
    rows = [measured(32, 0.6, 1900), measured(64, 0.7, 1900), measured(96, 0.7, 1900)]
    assert choose(rows, PAPER, 0.7) == (rows[1], True)
    assert choose(rows[1:], replace(PAPER, accuracy_long=1.0), 0.9) == (rows[1], False)


def test_rows_come_without_replacement_within_an_epoch_of_each_source():
    drawn, seen = (0, 0), []
    for step in range(12):
        picks, drawn = draw((5, 7), drawn, EVEN, 8, seed=3, step=step)
        assert len(picks) == 8
        seen += picks
    assert sum(drawn) == 96
    for source, size in ((0, 5), (1, 7)):
        rows = [row for which, row in seen if which == source]
        assert len(rows) == drawn[source]
        epochs = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert len(epochs) > 3 and all(sorted(epoch) == [*range(size)] for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_the_ratios_decide_how_much_of_each_source_is_drawn():
    picks, drawn = draw((50, 50), (0, 0), (0.9, 0.1), 2000, seed=0, step=0)
    assert Counter(source for source, _ in picks) == {0: drawn[0], 1: drawn[1]}
    assert abs(drawn[0] - 1800) < 4 * math.sqrt(2000 * 0.09)
    assert draw((50, 50), (0, 0), (1.0, 0.0), 500, seed=0, step=0)[1] == (500, 0)
    assert draw((50, 50), (0, 0), (0.0, 1.0), 500, seed=0, step=0)[1] == (0, 500)


def test_seed_step_and_what_was_drawn_say_which_rows_come_next():
    first, drawn = draw((20, 30), (0, 0), EVEN, 16, seed=1, step=0)
    second = draw((20, 30), drawn, EVEN, 16, seed=1, step=1)
    assert draw((20, 30), drawn, EVEN, 16, seed=1, step=1) == second
    assert draw((20, 30), (0, 0), EVEN, 16, seed=2, step=0)[0] != first
    assert [s for s, _ in first] != [s for s, _ in second[0]]
