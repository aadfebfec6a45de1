"""Accuracy and length of continuations over the thoughts kept (arXiv 2505.11827, figures 2 and 3), and their drawing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from markupsafe import Markup
from matplotlib.axes import Axes

from longshort.evaluation.measures import Z95, wilson
from longshort.report import plots

BINS = 10
"""Of the relative position k / n."""
WIDTH, LEFT, RIGHT = 460, 46, 8
"""Of a drawing, and what its plot leaves free at its sides, in units of the SVG."""
STRIP = 38
"""Height of the bars that count traces, with the room above them."""


@dataclass(frozen=True, slots=True)
class Point:
    """A mean at `x` over `n` traces, with its interval; `low` = `high` = `y` where there is none."""

    x: float
    y: float
    low: float
    high: float
    n: int


Groups = Mapping[float, Sequence[float]]
"""One value per trace, by place on the x axis."""


def by_thoughts_kept(curves: Sequence[Sequence[float]]) -> Groups:
    """The traces' values at k = 0, 1, …: a trace with n thoughts is in the groups 0 to n."""
    groups: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        for kept, value in enumerate(curve):
            groups[kept].append(value)
    return groups


def by_position(curves: Sequence[Sequence[float]]) -> Groups:
    """The traces' values at relative position k / n, in ten bins named by their middle; a trace counts once in a bin, with its mean."""
    groups: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        bins: dict[int, list[float]] = defaultdict(list)
        for kept, value in enumerate(curve):
            bins[min(BINS * kept // (len(curve) - 1), BINS - 1)].append(value)
        for number, values in bins.items():
            groups[(number + 0.5) / BINS].append(fmean(values))
    return groups


def shares(groups: Groups) -> list[Point]:
    """Means of shares with the Wilson interval of as many independent observations as there are traces: rollouts of one trace are not
    independent of each other, so this is rather too wide than too narrow."""
    return [
        Point(x, fmean(values), *wilson(sum(values), len(values)), len(values)) for x, values in sorted(groups.items())
    ]


def means(groups: Groups) -> list[Point]:
    """Means with ±1.96 standard errors over traces; one trace alone has no interval."""
    points = []
    for x, values in sorted(groups.items()):
        mean = fmean(values)
        half = Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        points.append(Point(x, mean, mean - half, mean + half, len(values)))
    return points


def losses(values: Sequence[float], steps: int) -> list[Point]:
    """A loss curve, logged at even distances up to `steps`."""
    return [Point(steps * number / len(values), value, value, value, 0) for number, value in enumerate(values, 1)]


def draw(
    name: str,
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_top: float,
    y_top: float | None = None,
) -> Markup:
    """The series (colour -> points) as lines with intervals, over bars that count the first one's traces where it has any.

    `name` makes the drawing's ids its own.
    """
    first = next(iter(series.values()))
    counted = max(point.n for point in first)
    strip = STRIP if counted else 0
    height = 196 + strip
    with plots.canvas(WIDTH, height, left=LEFT, right=RIGHT, top=26, bottom=42 + strip) as (figure, axes):
        for colour, points in series.items():
            _line(axes, plots.COLOURS[colour], points)
        axes.set_xlim(-0.02 * x_top, 1.02 * x_top)
        axes.set_ylim(0, y_top or 1.04 * max(point.high for points in series.values() for point in points) or 1.0)
        plots.dress(axes, whole_x=x_top > 1)
        axes.annotate(y_label, (0, 1), (-LEFT, 14), xycoords="axes fraction", textcoords="offset points")
        if counted:
            axes.tick_params(labelbottom=False)
            axes = figure.add_axes(
                (LEFT / WIDTH, 42 / height, (WIDTH - LEFT - RIGHT) / WIDTH, (strip - 18) / height), sharex=axes
            )
            _count(axes, first, counted)
        axes.annotate(x_label, (1, 0), (0, -34), xycoords="axes fraction", textcoords="offset points", ha="right")
        return plots.markup(figure, name, title)


def _line(axes: Axes, colour: str, points: Sequence[Point]) -> None:
    """Intervals, the line, and a dot on each point that stands for traces."""
    ranged = [point for point in points if point.high > point.low]
    axes.vlines(
        [p.x for p in ranged],
        [max(p.low, 0) for p in ranged],
        [p.high for p in ranged],
        color=colour,
        linewidth=1.0,
        alpha=0.6,
    )
    marker = {"marker": "o", "markersize": 4, "markeredgewidth": 0} if any(point.n for point in points) else {}
    axes.plot([p.x for p in points], [p.y for p in points], color=colour, linewidth=1.5, clip_on=False, **marker)


def _count(axes: Axes, points: Sequence[Point], counted: int) -> None:
    """Bars as high as there are traces, with the highest number beside them."""
    apart = min((after.x - before.x for before, after in pairwise(points)), default=points[0].x or 1.0)
    axes.bar(
        [p.x for p in points],
        [p.n for p in points],
        0.72 * apart,
        color=plots.COLOURS["quiet"],
        alpha=0.35,
        linewidth=0,
    )
    axes.patch.set_visible(False)
    plots.dress(axes)
    axes.set_yticks([counted], [f"{counted:,}"])
    axes.tick_params(labelbottom=True)
