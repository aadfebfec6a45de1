"""Accuracy over cost: every system as a point, the Pareto front, and labels that keep out of each other's way."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from longshort.report.plots import COLOURS, TEXT, canvas, dress, markup

LETTERS = 30
"""Of a label; what is longer is cut."""
WIDE = 10
"""The x axis is logarithmic where the largest value is more than this many times the smallest."""
BESIDE = (
    (9, 0, "left"),
    (-9, 0, "right"),
    (7, 9, "left"),
    (7, -9, "left"),
    (-7, 9, "right"),
    (-7, -9, "right"),
    (0, 12, "center"),
    (0, -12, "center"),
)
PLACES = tuple((dx * far, dy * far, side) for far in (1.0, 1.8, 2.8, 4.0) for dx, dy, side in BESIDE)
"""Where a label may stand beside its point, best first: offset and the side of the text that is turned to the point."""
FAR = 20
"""A label that stands further away than this gets a line to its point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A system at (`x`, accuracy `y`) with its interval. `label` is "" for one of many of a kind; `chain` names the line it belongs to,
    such as a training run's checkpoints; a baseline is drawn hollow."""

    x: float
    y: float
    low: float
    high: float
    title: str
    label: str
    colour: str
    baseline: bool
    chain: str = ""


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats: none costs less or as little and is better. By rising x and y."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def draw(name: str, points: Sequence[Point], *, title: str, x_label: str, width: int, height: int) -> Markup:
    """The points with 95 % intervals, in a drawing of so many units. `name` makes its ids its own."""
    log = min(point.x for point in points) > 0 and max(point.x for point in points) > WIDE * min(
        point.x for point in points
    )
    with canvas(width, height, left=40, right=14, top=12, bottom=38) as (figure, axes):
        if log:
            axes.set_xscale("log")
        axes.margins(x=0.09, y=0.08)
        _front(axes, front(points))
        _chains(axes, points)
        for number, point in enumerate(points):
            style = {"color": COLOURS[point.colour], "clip_on": False}
            if point.high > point.low:
                axes.plot([point.x, point.x], [point.low, point.high], linewidth=1.1, alpha=0.55, zorder=2, **style)
            style |= {
                "markerfacecolor": COLOURS["paper"] if point.baseline else COLOURS[point.colour],
                "gid": f"point-{number}",
            }
            axes.plot(
                [point.x],
                [point.y],
                marker="o",
                markersize=7 if point.label else 4,
                markeredgewidth=1.5,
                zorder=3,
                **style,
            )
        dress(axes, log_x=log)
        axes.annotate(
            x_label, (1, 0), (0, -20), xycoords="axes fraction", textcoords="offset points", ha="right", va="top"
        )
        _labels(axes, points, Box(40, 38, width - 2, height - 2))
        drawing = markup(figure, name, title)
    return _filled_in(drawing, points)


def _front(axes, points: Sequence[Point]) -> None:
    """A stair: from each point to the right, nothing better is to be had for more until the next one."""
    style = {"color": COLOURS["quiet"], "linewidth": 0.9, "linestyle": (0, (1, 2.4)), "zorder": 1, "clip_on": False}
    axes.step([point.x for point in points], [point.y for point in points], where="post", **style)


def _chains(axes, points: Sequence[Point]) -> None:
    for chain in dict.fromkeys(point.chain for point in points if point.chain):
        linked = [point for point in points if point.chain == chain]
        style = {"color": COLOURS[linked[0].colour], "linewidth": 0.9, "alpha": 0.5, "zorder": 1, "clip_on": False}
        axes.plot([point.x for point in linked], [point.y for point in linked], **style)


def _labels(axes, points: Sequence[Point], frame: Box) -> None:
    """Each label where it covers least of what is there already; one that had to move away gets a line to its point."""
    axes.autoscale_view()
    at = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for point, (x, _) in zip(points, at, strict=True):
        low, high = (axes.transData.transform((point.x, value))[1] for value in (point.low, point.high))
        taken.append(Box(x - 1, low, x + 1, high))
    for number, point in sorted(enumerate(points), key=lambda pair: -pair[1].y):
        there = [
            other for other in points[:number] if (other.label, other.x, other.y) == (point.label, point.x, point.y)
        ]
        if there or not point.label:  # the same baseline in several runs needs one label
            continue
        boxes = {place: _box(at[number], place, text_width(cut(point.label))) for place in PLACES}
        hidden = {
            place: sum(box.shared(other) for other in taken) + 4 * _outside(box, frame) for place, box in boxes.items()
        }
        best = min(PLACES, key=lambda place: (hidden[place], PLACES.index(place)))
        taken.append(boxes[best])
        style = {"color": COLOURS[point.colour], "ha": best[2], "va": "center", "annotation_clip": False}
        if abs(best[0]) + abs(best[1]) > FAR:
            style["arrowprops"] = {
                "arrowstyle": "-",
                "color": COLOURS["quiet"],
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            }
        axes.annotate(f"@{number}@", (point.x, point.y), best[:2], textcoords="offset points", **style)


def _box(at: Sequence[float], place: tuple[float, float, str], width: float) -> Box:
    """Where a text of this width would stand."""
    x, y = at[0] + place[0], at[1] + place[1]
    left = {"left": x, "right": x - width, "center": x - width / 2}[place[2]]
    return Box(left, y - TEXT * 0.6, left + width, y + TEXT * 0.6)


def _outside(box: Box, frame: Box) -> float:
    """The area of the box beyond the frame."""
    return (box.right - box.left) * (box.top - box.bottom) - box.shared(frame)


def text_width(text: str) -> float:
    """About as wide as the text is drawn; letters of East Asian scripts count double."""
    return sum(TEXT if unicodedata.east_asian_width(letter) in "WF" else TEXT * 0.55 for letter in text)


def cut(label: str) -> str:
    """The label on one line, at most LETTERS long."""
    plain = " ".join(label.split())
    return plain if len(plain) <= LETTERS else f"{plain[: LETTERS - 1]}…"


def _filled_in(drawing: Markup, points: Sequence[Point]) -> Markup:
    """The labels and what a pointer is told, put in as text: matplotlib never sees what people or models have called things."""
    text = re.sub(
        r">@(\d+)@</text>", lambda found: f">{escape(cut(points[int(found.group(1))].label))}</text>", drawing
    )
    return Markup(
        re.sub(
            r'<g id="[^"]*point-(\d+)">',
            lambda found: f"<g><title>{escape(points[int(found.group(1))].title)}</title>",
            text,
        )
    )
