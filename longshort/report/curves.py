"""Accuracy and length of continuations over the thoughts kept (arXiv 2505.11827, figures 2 and 3), and their drawing as SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from markupsafe import Markup, escape

from longshort.evaluation.measures import Z95, wilson

BINS = 10
"""Of the relative position k / n."""
WIDTH, LEFT, RIGHT, TOP, BASE = 560, 50, 550, 34, 204
"""The drawing, the edges of its plot, the plot's top and foot, in units of the SVG."""
STRIP = 28
"""Height of the bars that count traces, below the plot."""


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
Scale = Callable[[float], float]


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
    return [Point(x, fmean(values), *wilson(sum(values), len(values)), len(values)) for x, values in sorted(groups.items())]


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


def ticks(top: float, most: int = 6) -> list[float]:
    """0, a round step, … up to at most `top`; `most` numbers or fewer."""
    rough = max(top, 1e-9) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.floor(top / step * (1 + 1e-9)) + 1)]


def draw(
    series: Mapping[str, Sequence[Point]], *, title: str, x_label: str, y_label: str, x_top: float, y_top: float | None = None
) -> Markup:
    """The series (class name -> points) as lines with intervals, over bars that count the first one's traces where it has any."""
    first = next(iter(series.values()))
    everything = [point for points in series.values() for point in points]
    y_top = y_top or 1.04 * max(point.high for point in everything) or 1.0
    counted = max(point.n for point in first)
    foot = BASE + (STRIP + 18 if counted else 0)
    inset = 8
    x_at = lambda x: LEFT + inset + (RIGHT - LEFT - 2 * inset) * x / (x_top or 1)  # noqa: E731
    y_at = lambda y: BASE - (BASE - TOP) * min(y, y_top) / y_top  # noqa: E731
    parts = [f'<text x="0" y="14" class="label">{escape(y_label)}</text>']
    for tick in ticks(y_top):
        parts.append(f'<path d="M{LEFT} {y_at(tick):.1f}H{RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y_at(tick) + 4:.1f}" class="tick end">{tick:.6g}</text>')
    for tick in ticks(x_top, 9):
        parts.append(f'<text x="{x_at(tick):.1f}" y="{foot + 20}" class="tick mid">{tick:.6g}</text>')
    parts.append(f'<text x="{RIGHT}" y="{foot + 42}" class="label end">{escape(x_label)}</text>')
    if counted:
        parts += _strip(first, counted, x_at, foot)
    for name, points in series.items():
        parts += _line(name, points, x_at, y_at)
    height = foot + 48
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')


def _line(name: str, points: Sequence[Point], x_at: Scale, y_at: Scale) -> list[str]:
    """Whiskers, the line, and on each point a dot that tells its numbers."""
    parts = [
        f'<path d="M{x_at(p.x):.1f} {y_at(max(p.low, 0)):.1f}V{y_at(p.high):.1f}" class="whisker {name}"/>'
        for p in points
        if p.high > p.low
    ]
    path = "L".join(f"{x_at(p.x):.1f} {y_at(p.y):.1f}" for p in points)
    parts.append(f'<path d="M{path}" class="line {name}"/>')
    for p in points:
        told = f"{p.x:.4g}: {p.y:.3g}" + (f" ({max(p.low, 0):.3g} to {p.high:.3g}), {p.n} traces" if p.n else "")
        radius = 3 if p.n else 1.8
        parts.append(f'<circle cx="{x_at(p.x):.1f}" cy="{y_at(p.y):.1f}" r="{radius}" class="dot {name}"><title>{told}</title></circle>')
    return parts


def _strip(points: Sequence[Point], counted: int, x_at: Scale, foot: float) -> list[str]:
    """Bars as high as there are traces, with the highest number beside them."""
    width = max(1.5, min(26.0, 0.72 * (x_at(points[1].x) - x_at(points[0].x)))) if len(points) > 1 else 26.0
    parts = [f'<text x="{LEFT - 8}" y="{foot - STRIP / 2 + 6:.0f}" class="tick end">{counted:,}</text>']
    parts.append(f'<path d="M{LEFT} {foot}H{RIGHT}" class="grid"/>')
    for p in points:
        high = STRIP * p.n / counted
        parts.append(
            f'<rect x="{x_at(p.x) - width / 2:.1f}" y="{foot - high:.1f}" width="{width:.1f}" height="{high:.1f}" class="count">'
            f"<title>{p.x:.4g}: {p.n} traces</title></rect>"
        )
    return parts
