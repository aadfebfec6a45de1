"""Drawings of the cold start: continuations over thoughts kept (arXiv 2505.11827, figures 2 and 3), and the loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from markupsafe import Markup

from longshort.coldstart.records import RolloutLine, SftManifest
from longshort.evaluation.measures import Z95, wilson
from longshort.report.plots import Curve, plot

BINS = 10  # of the relative position k / n


def rollout_figures(lines: Sequence[RolloutLine]) -> dict[str, Markup]:
    """Return accuracy and length of the continuations over k / n."""
    whole = [line for line in lines if line.n and len(line.correct) == len(line.length) > 1]
    accuracy = by_position([[right / line.n for right in line.correct] for line in whole])
    length = by_position([line.length for line in whole])
    figures = {}
    for title, groups, interval in ("Accuracy", accuracy, share_interval), ("Tokens", length, mean_interval):
        points = [(x, fmean(values)) for x, values in groups.items()]
        intervals = [interval(values) for values in groups.values()]
        curve = Curve(points=points, colour="is-plain", dots=True, intervals=intervals)
        if points:
            figures[title] = plot(title, [curve], x_label="k / n", low=0)
    return figures


def by_position(curves: Sequence[Sequence[float]]) -> dict[float, list[float]]:
    """Group the traces' values by k / n in bins named by their middle; a trace counts once in a bin, with its mean."""
    groups: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        bins: dict[int, list[float]] = defaultdict(list)
        for kept, value in enumerate(curve):
            bins[min(BINS * kept // (len(curve) - 1), BINS - 1)].append(value)
        for number, values in bins.items():
            groups[(number + 0.5) / BINS].append(fmean(values))
    return dict(sorted(groups.items()))


def share_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Wilson's interval of a mean share; each trace counts as one observation."""
    return wilson(sum(values), len(values))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean ± 1.96 standard errors, at least 0; a single value has no interval."""
    half = Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return max(0.0, fmean(values) - half), fmean(values) + half


def loss_figure(sft: Mapping[str, SftManifest]) -> Markup | None:
    """Return both roles' loss over the optimizer steps, logged at even distances."""
    curves = []
    for role, manifest in sft.items():
        every = manifest.steps / max(len(manifest.losses), 1)
        points = [(every * at, loss) for at, loss in enumerate(manifest.losses, 1)]
        curves += [Curve(points=points, colour=f"is-{role}")] if points else []
    return plot("Loss per token of fine-tuning", curves, x_label="optimizer step", low=0) if curves else None
