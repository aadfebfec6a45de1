"""The report's drawings: lines and points where they belong, and labels that can be read."""

import re
from itertools import pairwise

from longshort.report.panels import running_mean
from longshort.report.pareto import Placed, front
from longshort.report.plots import MOST_POINTS, Axis, Curve, cut, plot, thin


def test_a_running_mean_by_hand():
    points = [(1, 1), (2, 3), (3, 5), (4, 9)]
    assert running_mean(points, 2) == [(1, 1), (2, 2), (3, 4), (4, 7)]
    assert running_mean(points, 1) == points


def test_ticks_are_round_numbers():
    assert Axis(low=0, high=1, begin=0, end=100).ticks() == [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]
    assert Axis(low=-3, high=95, begin=0, end=100).ticks() == [0, 20, 40, 60, 80]
    assert Axis(low=1, high=1000, begin=0, end=100, log=True).ticks() == [1, 10, 100, 1000]
    assert Axis(low=1, high=1000, begin=0, end=90, log=True).at(10) == 30


def test_a_line_by_hand():
    curve = Curve(points=[(0, 0), (1, 1)], colour="is-long", line="dashed")
    drawing = plot('Accuracy <"&', [curve], x_label="step", low=0, high=1)
    assert drawing.startswith(
        '<svg class="plot" viewBox="0 0 400 200" role="img" aria-label="Accuracy &lt;&#34;&amp;">'
    )
    # 346 wide from 46 with a margin on both sides, 166 high from 174 up to 8
    assert '<g class="is-long"><path class="dashed" d="M61.7 174.0L376.3 8.0"/></g>' in drawing


def test_a_long_line_is_thinned_and_keeps_its_spikes():
    points = [(step, 1000 if step == 7777 else step % 7) for step in range(20_000)]
    assert len(thin(points)) <= MOST_POINTS
    assert (7777, 1000) in thin(points)
    assert thin(points[:9]) == points[:9]


def test_a_single_point_and_equal_values_can_be_drawn():
    for points in ([(5, 0.0)], [(1, 3.0), (2, 3.0)]):
        assert "nan" not in plot("T", [Curve(points=points, colour="is-plain")], x_label="step")


def test_the_front_by_hand():
    a, b, c, d, e = (Placed(x, y, "") for x, y in ((10, 0.5), (10, 0.6), (20, 0.6), (30, 0.9), (40, 0.8)))
    assert front([e, d, c, b, a]) == [b, d]  # a is beaten at its own cost, c costs more than b for the same


def test_labels_do_not_cover_each_other():
    places = {"first system": (20, 0.5), "second system": (21, 0.505), "third": (20.4, 0.51), "<b>far away": (80, 0.9)}
    curves = [Curve(points=[place], colour="run-0", label=label) for label, place in places.items()]
    drawing = plot("T", curves, x_label="cost", width=900, height=420)
    labels = re.findall(r'<text class="label run-0" x="[\d.]+" y="([\d.]+)" dy="4" text-anchor="(\w+)">(.*?)<', drawing)
    assert [label for *_, label in labels] == ["&lt;b&gt;far away", "third", "second system", "first system"]
    assert labels[0][1] == "end"
    heights = sorted(float(y) for y, *_ in labels[1:])
    assert all(after - before >= 13 for before, after in pairwise(heights))


def test_a_label_is_cut_to_one_line():
    assert cut("one\n two") == "one two"
    assert cut("x" * 31) == "x" * 29 + "…"
