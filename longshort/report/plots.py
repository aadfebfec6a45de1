"""Drawings as SVG inside a page: points, lines and labels over two axes, in the page's colours and type.

`plot` draws the learning curves, the Pareto plot and the cold start's figures alike. Colours are classes of base.css.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

RUNS = 8
"""Number of colours for runs; later runs start again with the first."""
MOST_POINTS = 400
"""Points of a drawn line."""
LABEL_LETTERS = 30
"""A longer label is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points of one colour, joined by a line ("solid", "dashed", "dotted", "faint" or "") and marked by dots.

    `intervals` has (low, high) per point; `label` stands beside the last point, `tip` appears under the pointer.
    """

    points: Sequence[tuple[float, float]]
    colour: str
    line: str = "solid"
    dots: bool = False
    hollow: bool = False
    intervals: Sequence[tuple[float, float]] = ()
    label: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.begin + (self.end - self.begin) * (value - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """Return about five round numbers within the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if len(powers) < 4 else (1,)
            ticks = [digit * 10.0**power for power in powers for digit in digits]
            return [tick for tick in ticks[:: 1 + len(ticks) // 12] if self.low <= tick <= self.high]
        coarse = 10.0 ** math.floor(math.log10((self.high - self.low) / 5))
        step = next(coarse * many for many in (1, 2, 5, 10) if (self.high - self.low) / (coarse * many) <= 5)
        return [step * n for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def plot(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    width: int = 400,
    height: int = 200,
    low: float | None = None,
    high: float | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """Return the curves as an SVG element. `low` and `high` end the y axis where no point lies beyond them."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    ys += [end for curve in curves for interval in curve.intervals for end in interval]
    x_axis = _axis(xs, 46, width - 8, log_x, margin=0.05)
    y_axis = _axis([*ys, *(end for end in (low, high) if end is not None)], height - 26, 8, log_y, margin=0.0)
    parts = [
        Markup('<path class="grid" d="M46 {0}H{1}"/><text x="40" y="{0}" dy="4" text-anchor="end">{2}</text>').format(
            y_axis.at(tick), width - 8, number(tick)
        )
        for tick in y_axis.ticks()
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x_axis.at(tick), height - 8, number(tick))
        for tick in x_axis.ticks()
        if width - 8 - x_axis.at(tick) > 6 * len(x_label)
    ]
    parts += [_drawn(curve, x_axis, y_axis) for curve in curves]
    parts += _labels(curves, x_axis, y_axis)
    return Markup(
        '<svg class="plot" viewBox="0 0 {0} {1}" role="img" aria-label="{2}"><title>{2}</title>'
        '{3}<text x="{4}" y="{5}" text-anchor="end">{6}</text></svg>'
    ).format(width, height, title, Markup("\n").join(parts), width - 8, height - 8, x_label)


def number(value: float) -> str:
    """Format an axis' number: −0.5, 1,000."""
    return f"{value:,.10g}".replace("-", "−")


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return at most MOST_POINTS points, the lowest and the highest of every stretch, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    size = -(-2 * len(points) // MOST_POINTS)
    stretches = [points[at : at + size] for at in range(0, len(points), size)]
    lowest_and_highest = [{min(part, key=lambda at: at[1]), max(part, key=lambda at: at[1])} for part in stretches]
    return [point for pair in lowest_and_highest for point in sorted(pair)]


def _axis(values: Iterable[float], begin: float, end: float, log: bool, margin: float) -> Axis:
    low, high = min(values := list(values)), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    if log:
        factor = (high / low) ** margin
        return Axis(low=low / factor, high=high * factor, begin=begin, end=end, log=True)
    pad = margin * (high - low)
    return Axis(low=low - pad, high=high + pad, begin=begin, end=end)


def _drawn(curve: Curve, x_axis: Axis, y_axis: Axis) -> Markup:
    at = [(x_axis.at(x), y_axis.at(y)) for x, y in thin(curve.points)]
    drawn = Markup('<g class="{}"><title>{}</title>' if curve.tip else '<g class="{}">').format(curve.colour, curve.tip)
    if curve.line and len(at) > 1:
        path = "M" + "L".join(f"{x} {y}" for x, y in at)
        drawn += Markup('<path class="{}" d="{}"/>').format(curve.line, path)
    for (x, _), (low, high) in zip(curve.points, curve.intervals, strict=False):
        drawn += Markup('<path class="interval" d="M{} {}V{}"/>').format(x_axis.at(x), y_axis.at(low), y_axis.at(high))
    if curve.dots or len(at) == 1:
        kind = "hollow" if curve.hollow else "dot"
        radius = 3.5 if curve.label else 2
        drawn += Markup().join(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, x, y, radius) for x, y in at
        )
    return drawn + Markup("</g>")


def _labels(curves: Sequence[Curve], x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Return the labels, each beside its point and below those it would cover, the highest first."""
    placed: list[tuple[float, float, float]] = []
    drawn = []
    ends = [(x_axis.at(x), y_axis.at(y), curve) for curve in curves if curve.label for x, y in curve.points[-1:]]
    for x, y, curve in sorted(ends, key=lambda end: end[1]):
        text = cut(curve.label)
        size = sum(12 if unicodedata.east_asian_width(letter) in "WF" else 6.3 for letter in text)
        left_of_point = x + size > x_axis.end
        left, right = (x - 9 - size, x - 9) if left_of_point else (x + 9, x + 9 + size)
        while any(abs(y - other) < 13 and left < end and begin < right for begin, end, other in placed):
            y += 13
        placed.append((left, right, y))
        drawn.append(
            Markup('<text class="label {}" x="{}" y="{}" dy="4" text-anchor="{}">{}</text>').format(
                curve.colour, x - 9 if left_of_point else x + 9, y, "end" if left_of_point else "start", text
            )
        )
    return drawn


def cut(label: str) -> str:
    """Return the label on one line of at most LABEL_LETTERS letters."""
    line = " ".join(label.split())
    return line if len(line) <= LABEL_LETTERS else f"{line[: LABEL_LETTERS - 1]}…"
