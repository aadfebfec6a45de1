"""Accuracy over cost: every system of a benchmark as a point, and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from longshort.evaluation.records import SAMPLED, TRAINING
from longshort.report.panels import colour
from longshort.report.plots import Curve, plot
from longshort.report.run_files import RunFiles
from longshort.report.tables import ScoredSystem, benchmarks

LOG_RATIO = 10
"""The x axis is logarithmic when the largest value is more than this many times the smallest."""
COSTS = {"cost": "price-weighted tokens per dialogue", "tokens": "tokens per dialogue"}


class Placed(NamedTuple):
    """A system's place in the plot."""

    x: float
    y: float
    title: str


class ParetoPlot(NamedTuple):
    """A drawing, and the systems on the front from cheap to accurate."""

    title: str
    drawing: Markup
    front: list[Placed]


def front(placed: Iterable[Placed]) -> list[Placed]:
    """Return the systems that no other beats, by rising cost: none is better and costs no more."""
    best: list[Placed] = []
    for one in sorted(placed, key=lambda one: (one.x, -one.y)):
        if not best or one.y > best[-1].y:
            best.append(one)
    return best


def pareto_plots(scored: Sequence[ScoredSystem], runs: Sequence[RunFiles]) -> list[ParetoPlot]:
    """Return a plot of each benchmark's sampled dialogues, over cost where all systems have one, else over tokens."""
    plots = []
    for name, title in benchmarks(scored, runs).items():
        here = [one for one in scored if (one.row.benchmark, one.row.decoding) == (name, SAMPLED)]
        measure = "cost" if all(one.row.get("cost") is not None for one in here) else "tokens"
        here = [one for one in here if one.row.get(measure) is not None]
        if here:
            plots.append(_plot(f"{title}: accuracy over {measure}", here, measure, len(runs)))
    return plots


def _plot(title: str, here: Sequence[ScoredSystem], measure: str, runs: int) -> ParetoPlot:
    placed = [_placed(one, measure) for one in here]
    best = front(placed)
    stair = [place for one, after in pairwise(best) for place in ((one.x, one.y), (after.x, one.y))]
    curves = [Curve(points=[*stair, (best[-1].x, best[-1].y)], colour="is-quiet", line="dotted")]
    checkpoints: dict[int, list[tuple[float, float]]] = {}
    for one, at in zip(here, placed, strict=True):
        curves.append(
            Curve(
                points=[(at.x, at.y)],
                colour=colour(one.run, "", runs),
                intervals=[one.row.interval] if one.row.interval else [],
                label="" if one.kind else one.title,
                tip=at.title,
                hollow=one.baseline,
            )
        )
        if one.kind == TRAINING:
            checkpoints.setdefault(one.run, []).append((at.x, at.y))
    curves += [Curve(points=chain, colour=colour(run, "", runs), line="faint") for run, chain in checkpoints.items()]
    least, most = min(one.x for one in placed), max(one.x for one in placed)
    log = 0 < least < most / LOG_RATIO
    drawing = plot(title, curves, x_label=COSTS[measure], width=900, height=420, log_x=log)
    return ParetoPlot(title, drawing, best)


def _placed(one: ScoredSystem, measure: str) -> Placed:
    x, y, interval = one.row.get(measure) or 0.0, one.row.get("accuracy") or 0.0, one.row.interval
    between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    of_run = f" of {one.run_name}" if one.run_name else ""
    return Placed(x, y, f"{one.title}{of_run} ({one.evaluation}): {y:.3f}{between} at {x:,.1f}")
