"""The learning curves of a report: which metrics are drawn, together with which, and the last values beside each drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from longshort.report.plots import RUNS, Line, Series, curves, running_mean
from longshort.report.run_files import RunFiles
from longshort.types import ROLES

TRAINING, EVALUATION = "training", "evaluation"
WINDOWS, WIDEST = 20, 50
"""A running mean goes over this part of a run, over so many steps at most."""
STEEP = 100
"""A metric that may be drawn on a logarithmic axis is, where its largest value is more than so many times its smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot: `metrics` by what their lines stand for (a role, training, an evaluation); `instead` where no run has any of them.

    `low` and `high` bound what the metric can be and are the ends of the y axis; `steep`: the axis may be logarithmic.
    """

    title: str
    metrics: Mapping[str, str]
    instead: Mapping[str, str] | None = None
    low: float | None = None
    high: float | None = None
    steep: bool = False

    def drawn(self, logged: set[str]) -> Mapping[str, str]:
        """The metrics to draw: those that a run has logged, or what stands in their place."""
        first = {metric: kind for metric, kind in self.metrics.items() if metric in logged}
        return first or {metric: kind for metric, kind in (self.instead or {}).items() if metric in logged}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A line in numbers: the last value, the step it was logged at, and the mean over the window that ends there."""

    run: int
    kind: str
    step: int
    last: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    title: str
    drawing: Markup
    ends: list[End]
    log: bool

    @property
    def kinds(self) -> set[str]:
        return {end.kind for end in self.ends}


def _team(name: str) -> dict[str, str]:
    return {f"team/{name}": TRAINING, f"eval/{name}": EVALUATION}


def _roles(pattern: str) -> dict[str, str]:
    return {pattern.format(role): role for role in ROLES}


MISMATCH, RATIO = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
EARNS = "What it earns"
KL = Panel(title="KL to the starting model", metrics=_roles("{}/kl"), low=0, steep=True)
GROUPS: dict[str, tuple[Panel, ...]] = {
    "What the pair does": (
        Panel(title="Accuracy", metrics=_team("accuracy"), low=0, high=1),
        Panel(title="Tokens per dialogue", metrics=_team("tokens"), low=0),
        Panel(title="Cost, price-weighted tokens", metrics=_team("cost"), low=0),
        Panel(title="Tokens of each role", metrics=_roles("team/tokens/{}"), low=0),
        Panel(title="Messages per dialogue", metrics={"team/turns": TRAINING}, low=0),
        Panel(title="Dialogues with a hand-back", metrics={"team/hand_back_rate": TRAINING}, low=0, high=1),
    ),
    EARNS: (
        Panel(title="Reward", metrics=_roles("team/reward/{}"), instead={"team/reward": TRAINING}),
        Panel(title="Format kept", metrics=_roles("team/format/{}"), instead={"team/format": TRAINING}, low=0, high=1),
    ),
    "How the policies move": (
        KL,
        Panel(title="Entropy, nats per token", metrics=_roles("{}/entropy"), low=0),
        Panel(title="Gradient norm", metrics=_roles("{}/grad_norm"), low=0, steep=True),
        Panel(title="Tokens clipped below", metrics=_roles("{}/clip_ratio/low_mean"), low=0),
        Panel(title="Tokens clipped above", metrics=_roles("{}/clip_ratio/high_mean"), low=0),
        Panel(title="Learning rate", metrics=_roles("{}/learning_rate"), low=0),
    ),
    "Engine against learner, and where the time goes": (
        Panel(title="Difference in log-prob, mean", metrics=_roles(f"{{}}/{MISMATCH}/mean"), low=0, steep=True),
        Panel(title="Difference in log-prob, largest", metrics=_roles(f"{{}}/{MISMATCH}/max"), low=0, steep=True),
        Panel(title="Importance ratio, mean", metrics=_roles(f"{{}}/{RATIO}/mean")),
        Panel(title="Importance ratio, largest", metrics=_roles(f"{{}}/{RATIO}/max")),
        Panel(title="Engine idle, share of the time", metrics=_roles("rollout/idle_frac/{}"), low=0, high=1),
        Panel(title="Seconds per step", metrics={"perf/step_s": TRAINING}, low=0),
    ),
}
ELSEWHERE = ("cost", "format", "mu")
"""What stands among the terms of the reward and is shown by other panels, or (mu, the length's weight) follows from the recipe."""


def window_of(runs: Sequence[RunFiles]) -> int:
    """Over how many steps the running means go: the same for all runs, so that they can be compared."""
    longest = max((len(run.metrics) for run in runs), default=0)
    return max(1, min(WIDEST, longest // WINDOWS))


def draw_groups(runs: Sequence[RunFiles]) -> tuple[dict[str, list[Drawn]], list[str]]:
    """The drawings by group, and what could not be drawn since no run has logged it, in words."""
    logged = {metric for run in runs for row in run.metrics.values() for metric in row}
    window, drawn, missing = window_of(runs), {}, []
    for group, panels in GROUPS.items():
        drawn[group] = []
        for panel in (*panels, *(_terms(logged) if group == EARNS else ())):
            metrics = panel.drawn(logged)
            if metrics:
                drawn[group].append(_draw(f"curve-{sum(map(len, drawn.values()))}", panel, metrics, runs, window))
            else:
                missing.append(
                    panel.title
                    + (" (loss.beta is 0, so there is no reference model)" if panel is KL and _no_beta(runs) else "")
                )
    return {group: found for group, found in drawn.items() if found}, missing


def _terms(logged: set[str]) -> list[Panel]:
    """A panel for each term of the reward that a run has logged: length, and whatever a reward of one's own has."""
    names = sorted(name.removeprefix("reward/") for name in logged if name.startswith("reward/"))
    by_role = tuple(f"/{role}" for role in ROLES)
    terms = dict.fromkeys(name.rpartition("/")[0] if name.endswith(by_role) else name for name in names)
    metrics = {
        term: {f"reward/{term}": TRAINING} | {f"reward/{term}/{role}": role for role in ROLES}
        for term in terms
        if term not in ELSEWHERE
    }
    return [Panel(title=f"Reward term: {term.replace('_', ' ')}", metrics=of_term) for term, of_term in metrics.items()]


def _no_beta(runs: Sequence[RunFiles]) -> bool:
    """Whether every run's recipe says that there is no KL term."""
    return all(run.setting("loss.beta") in (0, 0.0) for run in runs)


def _draw(name: str, panel: Panel, metrics: Mapping[str, str], runs: Sequence[RunFiles], window: int) -> Drawn:
    lines, ends, values = [], [], []
    for number, run in enumerate(runs):
        for metric, kind in metrics.items():
            steps, logged = run.curve(metric)
            if not steps:
                continue
            marks = kind == EVALUATION  # an evaluation is a mean over many problems already
            smooth = logged if marks else running_mean(logged, window)
            raw = None if marks or window == 1 else Series(steps, logged)
            lines.append(
                Line(
                    smooth=Series(steps, smooth),
                    raw=raw,
                    colour=colour(number, kind, len(runs)),
                    dashed=kind == ROLES[1],
                    marks=marks,
                )
            )
            ends.append(End(run=number, kind=kind, step=steps[-1], last=logged[-1], mean=smooth[-1]))
            values += logged
    lowest, highest = min(values), max(values)
    log = panel.steep and lowest > 0 and highest > STEEP * lowest
    low = panel.low if panel.low is not None and lowest >= panel.low else None
    high = panel.high if panel.high is not None and highest <= panel.high else None
    drawing = curves(name, lines, title=panel.title, low=low, high=high, log=log)
    return Drawn(title=panel.title, drawing=drawing, ends=ends, log=log)


def colour(run: int, kind: str, runs: int) -> str:
    """The page's variable for a line: of several runs the run's, of one alone the role's."""
    if runs > 1:
        return f"run-{run % RUNS}"
    return kind if kind in ROLES else "run-2" if kind == EVALUATION else "plain"
