"""The learning curves of a report: which metrics are drawn together, and the last value of every line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from longshort.report.plots import RUNS, Curve, plot
from longshort.report.run_files import RunFiles
from longshort.types import ROLES

TRAINING, EVALUATION = "training", "evaluation"
RUN_PARTS, LONGEST_WINDOW = 20, 50
"""A running mean spans this part of the longest run, and at most this many steps."""
LOG_RATIO = 100
"""A panel with `log` gets a logarithmic axis when its largest value is more than this many times its smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot. `metrics` maps metrics to what their line stands for: a role, training or evaluation.

    `low` and `high` are the ends of the y axis; `log` allows a logarithmic one. The roles' lines replace training's.
    """

    title: str
    metrics: Mapping[str, str]
    low: float | None = 0
    high: float | None = None
    log: bool = False

    def drawn(self, logged: set[str]) -> dict[str, str]:
        """Return the metrics to draw of those that a run has logged."""
        metrics = {metric: kind for metric, kind in self.metrics.items() if metric in logged}
        by_role = any(kind in ROLES for kind in metrics.values())
        return {metric: kind for metric, kind in metrics.items() if not (by_role and kind == TRAINING)}


class DrawnPanel(NamedTuple):
    """A drawing. `ends` has (number of the run, kind, step, value) of the last point of every line."""

    title: str
    drawing: Markup
    ends: list[tuple[int, str, int, float]]
    log: bool


def _team(name: str) -> dict[str, str]:
    return {f"team/{name}": TRAINING, f"eval/{name}": EVALUATION}


def _roles(pattern: str) -> dict[str, str]:
    return {pattern.format(role): role for role in ROLES}


def _both(name: str) -> dict[str, str]:
    return {name: TRAINING} | {f"{name}/{role}": role for role in ROLES}


MISMATCH, RATIO = "{}/sampling/sampling_logp_difference", "{}/sampling/importance_sampling_ratio"
REWARDS = "What it earns"
GROUPS: dict[str, tuple[Panel, ...]] = {
    "What the pair does": (
        Panel(title="Accuracy", metrics=_team("accuracy"), high=1),
        Panel(title="Tokens per dialogue", metrics=_team("tokens")),
        Panel(title="Cost, price-weighted tokens", metrics=_team("cost")),
        Panel(title="Tokens of each role", metrics=_roles("team/tokens/{}")),
        Panel(title="Messages per dialogue", metrics={"team/turns": TRAINING}),
        Panel(title="Dialogues with a hand-back", metrics={"team/hand_back_rate": TRAINING}, high=1),
    ),
    REWARDS: (
        Panel(title="Reward", metrics=_both("team/reward"), low=None),
        Panel(title="Format kept", metrics=_both("team/format"), high=1),
    ),
    "How the policies move": (
        Panel(title="KL to the starting model", metrics=_roles("{}/kl"), log=True),
        Panel(title="Entropy, nats per token", metrics=_roles("{}/entropy")),
        Panel(title="Gradient norm", metrics=_roles("{}/grad_norm"), log=True),
        Panel(title="Tokens clipped below", metrics=_roles("{}/clip_ratio/low_mean")),
        Panel(title="Tokens clipped above", metrics=_roles("{}/clip_ratio/high_mean")),
        Panel(title="Learning rate", metrics=_roles("{}/learning_rate")),
    ),
    "Engine against learner, and where the time goes": (
        Panel(title="Difference in log-prob, mean", metrics=_roles(f"{MISMATCH}/mean"), log=True),
        Panel(title="Difference in log-prob, largest", metrics=_roles(f"{MISMATCH}/max"), log=True),
        Panel(title="Importance ratio, mean", metrics=_roles(f"{RATIO}/mean"), low=None),
        Panel(title="Importance ratio, largest", metrics=_roles(f"{RATIO}/max"), low=None),
        Panel(title="Engine idle, share of the time", metrics=_roles("rollout/idle_frac/{}"), high=1),
        Panel(title="Seconds per step", metrics={"perf/step_s": TRAINING}),
    ),
}
NOT_TERMS = ("cost", "format", "mu")
"""Metrics under reward/ that other panels show, or (mu, the length's weight) that follow from the recipe."""


def window_of(runs: Sequence[RunFiles]) -> int:
    """Return the steps of a running mean: the same for all runs, so that they can be compared."""
    longest = max((len(run.metrics) for run in runs), default=0)
    return max(1, min(LONGEST_WINDOW, longest // RUN_PARTS))


def draw_groups(runs: Sequence[RunFiles]) -> dict[str, list[DrawnPanel]]:
    """Return the drawings by group, of what any run has logged."""
    logged = {metric for run in runs for row in run.metrics.values() for metric in row}
    window, groups = window_of(runs), {}
    for group, panels in GROUPS.items():
        panels = (*panels, *_terms(logged)) if group == REWARDS else panels
        groups[group] = [_draw(panel, metrics, runs, window) for panel in panels if (metrics := panel.drawn(logged))]
    return {group: panels for group, panels in groups.items() if panels}


def _terms(logged: set[str]) -> list[Panel]:
    """Return a panel for each term of the reward that a run has logged, a custom reward's included."""
    names = sorted(name.removeprefix("reward/") for name in logged if name.startswith("reward/"))
    roles = tuple(f"/{role}" for role in ROLES)
    terms = dict.fromkeys(name.rpartition("/")[0] if name.endswith(roles) else name for name in names)
    return [
        Panel(title=f"Reward term: {term.replace('_', ' ')}", metrics=_both(f"reward/{term}"), low=None)
        for term in terms
        if term not in NOT_TERMS
    ]


def _draw(panel: Panel, metrics: Mapping[str, str], runs: Sequence[RunFiles], window: int) -> DrawnPanel:
    faint, curves, ends = [], [], []
    for number, run in enumerate(runs):
        for metric, kind in metrics.items():
            if not (points := run.curve(metric)):
                continue
            evaluation = kind == EVALUATION  # a mean over many problems already: not smoothed
            hue = colour(number, kind, len(runs))
            line = "dashed" if kind == ROLES[1] else "solid"
            if window > 1 and not evaluation:
                faint.append(Curve(points=points, colour=hue, line="faint"))
            smooth = points if evaluation else running_mean(points, window)
            curves.append(Curve(points=smooth, colour=hue, line="thin" if evaluation else line, dots=evaluation))
            ends.append((number, kind, *points[-1]))
    values = [value for curve in [*faint, *curves] for _, value in curve.points]
    log = panel.log and min(values) > 0 and max(values) > LOG_RATIO * min(values)
    low, high = (None, None) if log else (panel.low, panel.high)
    drawing = plot(panel.title, [*faint, *curves], x_label="step", low=low, high=high, log_y=log)
    return DrawnPanel(panel.title, drawing, ends, log)


def running_mean(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Return at each step the mean of its value and those before it, at most `window` of them."""
    means = [fmean(value for _, value in points[max(0, at + 1 - window) : at + 1]) for at in range(len(points))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def colour(run: int, kind: str, runs: int) -> str:
    """Return the colour class of a line: of several runs the run's, of one alone the role's."""
    if runs > 1:
        return f"run-{run % RUNS}"
    return f"is-{kind}" if kind in ROLES else "run-2" if kind == EVALUATION else "is-plain"
