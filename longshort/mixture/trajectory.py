"""The plot of a mixture run: trajectory.png and trajectory.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longshort.mixture.reweighting import EVEN, Bounds, Measurement


def draw_trajectory(rows: Sequence[Measurement], bounds: Bounds, chosen: Measurement, folder: Path) -> None:
    """Plot sampling ratio and signals above, dev accuracy and tokens with their bounds below."""
    from matplotlib.figure import Figure

    figure, steps = Figure(figsize=(8, 6), layout="constrained"), [row.step for row in rows]
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.step([0, *steps], [EVEN[0], *(min(row.alpha_short, 1 - 1e-9) for row in rows)], "k", where="post")
    upper.set_yscale("logit")
    upper.set_ylabel("α short, sampling ratio")
    right = upper.twinx()
    right.plot(steps, [row.u_short for row in rows], "C3s:", label="u short: too many tokens")
    right.plot(steps, [row.u_long for row in rows], "C2o:", label="u long: too little accuracy")
    right.set_ylabel("signals")
    right.legend(loc="center right")
    for axis, color, name, style, low, high in (
        (lower, "C2", "accuracy", "o-", bounds.accuracy_short, bounds.accuracy_long),
        (lower.twinx(), "C3", "tokens", "s-", bounds.tokens_short, bounds.tokens_long),
    ):
        axis.plot(steps, [getattr(row, f"dev_{name}") for row in rows], color + style)
        axis.set_ylabel(f"dev {name}", color=color)
        axis.axhline(low, color=color, linestyle=":", linewidth=0.8)
        axis.axhline(high, color=color, linestyle="--", linewidth=0.8)
    lower.axvline(chosen.step, color="0.6", linewidth=0.8)
    lower.set_xlabel("optimizer step (vertical: chosen; dashed: long bound; dotted: short bound)")
    for kind in ("png", "svg"):
        figure.savefig(folder / f"trajectory.{kind}")
