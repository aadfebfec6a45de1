"""Drawings as SVG that stands in a page: matplotlib draws, the page's style gives the colours of both themes and the type."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

RUNS = 8
"""Colours that runs have; those after take the first again."""
_NAMES = ("ink", "quiet", "line", "paper", "plain", "long", "short", *(f"run-{number}" for number in range(RUNS)))
COLOURS = {name: f"#a1b2{number:02x}" for number, name in enumerate(_NAMES)}
"""Stand-ins, one for each of the page's CSS variables that a drawing uses."""
POINTS, POINTS_IN_ALL, MARKED = 400, 2400, 60
"""How many a line may have, all lines of a drawing together, and a line with a dot on every point."""
TEXT = 11
"""Size of letters, in units of the drawing: pixels where it is shown as large as it was drawn."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longshort",
    "font.size": TEXT,
    "text.color": COLOURS["quiet"],
    "axes.edgecolor": COLOURS["line"],
    "axes.axisbelow": True,
    "lines.solid_joinstyle": "round",
}


class Series(NamedTuple):
    """Values over steps, in order."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a plot. `raw` is drawn faintly behind it; `marks` puts a dot on every value, as long as dots can be told apart."""

    smooth: Series
    raw: Series | None = None
    colour: str
    dashed: bool = False
    marks: bool = False


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` at most: [1, 3, 5] by 2 -> [1, 2, 4]."""
    return [sum(values[max(0, at + 1 - window) : at + 1]) / min(at + 1, window) for at in range(len(values))]


def curves(name: str, lines: Sequence[Line], *, title: str, low: float | None, high: float | None, log: bool) -> Markup:
    """Lines over steps, 400 × 200. `name` makes the drawing's ids its own; no value lies beyond `low` and `high`, where they are given,
    and the y axis goes up to them."""
    with canvas(400, 200, left=46, right=8, top=8, bottom=24) as (figure, axes):
        room = max(8, min(POINTS, POINTS_IN_ALL // sum(1 + (line.raw is not None) for line in lines)))
        for line in lines:
            if line.raw:
                axes.plot(
                    *extremes(line.raw, room), color=COLOURS[line.colour], linewidth=0.8, alpha=0.28, clip_on=False
                )
        for line in lines:
            style = {
                "color": COLOURS[line.colour],
                "linewidth": 1.8,
                "linestyle": (0, (3.2, 2.2)) if line.dashed else "solid",
            }
            if len(line.smooth.steps) == 1 or (line.marks and len(line.smooth.steps) <= MARKED):
                style |= {"linewidth": 1.0, "marker": "o", "markersize": 4, "markeredgewidth": 0}
            axes.plot(*evenly(line.smooth, room), clip_on=False, **style)
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(low, high)
        dress(axes, log_y=log, whole_x=True)
        axes.annotate(
            "step", (0, 0), (-6, -6), xycoords="axes fraction", textcoords="offset points", ha="right", va="top"
        )
        return markup(figure, name, title)


def evenly(series: Series, most: int) -> Series:
    """At most `most` of the points, at even distances, the first and the last among them."""
    count = len(series.steps)
    if count <= most:
        return series
    chosen = [round(at * (count - 1) / (most - 1)) for at in range(most)]
    return Series([series.steps[at] for at in chosen], [series.values[at] for at in chosen])


def extremes(series: Series, most: int) -> Series:
    """At most `most` of the points: the lowest and the highest of every stretch, so that no spike is lost."""
    count, stretches = len(series.steps), most // 2
    if count <= most:
        return series
    chosen: list[int] = []
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        chosen += sorted({min(stretch, key=series.values.__getitem__), max(stretch, key=series.values.__getitem__)})
    return Series([series.steps[at] for at in chosen], [series.values[at] for at in chosen])


@contextmanager
def canvas(width: int, height: int, *, left: int, right: int, top: int, bottom: int) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many units with one pair of axes, and matplotlib's defaults whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        frame = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        axes = figure.add_axes(frame)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        yield figure, axes


def dress(axes: Axes, *, log_y: bool = False, whole_x: bool = False, log_x: bool = False) -> None:
    """Thin lines across, few numbers, no frame."""
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8, clip_on=False)
    axes.tick_params(length=0, pad=6, labelcolor=COLOURS["quiet"])
    for axis, log, whole in ((axes.yaxis, log_y, False), (axes.xaxis, log_x, whole_x)):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(
            _log_locator(axis.get_view_interval()) if log else MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole)
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.5g}".replace("-", "−")))


def _log_locator(view: Sequence[float]) -> LogLocator:
    """Powers of ten, with their doubles and fives where there are few of them."""
    return LogLocator(subs=(1, 2, 5) if view[1] / view[0] < 300 else (1,), numticks=7)


def markup(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an element of the page: its own ids, the page's colours and type, nothing that changes from one writing to the next."""
    stream = io.StringIO()
    figure.canvas.print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    view = re.search(r'viewBox="([^"]*)"', text).group(1)
    inner = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<[^>]*>", lambda found: _tag(found.group(), name), inner)
    inner = re.sub(r"<g/>|<defs>\s*</defs>", "", inner)
    inner = re.sub(r"\s*\n\s*", "\n", inner).strip()
    named = escape(title)
    return Markup(
        f'<svg class="plot" viewBox="{view}" role="img" aria-label="{named}">\n<title>{named}</title>\n{inner}\n</svg>'
    )


def _tag(tag: str, name: str) -> str:
    """One tag with the page's colours, ids of the drawing's own, short numbers, and without what the page's style says better."""
    tag = re.sub(r'<g id="(?!point-)[^"]*"', "<g", tag)  # what is pointed at (marks, points) is no other group
    tag = re.sub(r'id="', f'id="{name}-', tag)
    tag = re.sub(r'url\(#|xlink:href="#', lambda found: f"{found.group()}{name}-", tag)
    tag = re.sub(r"font(-family)?: [^;\"]*'[^;\"]*;? ?|stroke-(miterlimit|linejoin|linecap): \w+;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r"#a1b2([0-9a-f]{2})", lambda found: f"var(--{_NAMES[int(found.group(1), 16)]})", tag)
    return re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), tag)
