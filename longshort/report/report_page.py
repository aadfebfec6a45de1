"""`runs/<name>/report.html`: settings, learning curves, accuracy over cost, tables and episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshort.report import page
from longshort.report.panels import draw_groups, window_of
from longshort.report.pareto import pareto_plots
from longshort.report.plots import RUNS
from longshort.report.run_files import RunFiles, load
from longshort.report.tables import Cell, PageTable, TableLine, benchmark_tables, systems
from longshort.report.viewer import collect
from longshort.types import ROLES, LongShortError

RELOAD = "setTimeout(() => location.reload(), 1000 * %d);\n"
"""Keeps the page's state in the address, which a <meta> refresh would not; that one stands in <noscript>."""
IN_HEADER = ("long.model", "short.model", "protocol.name", "loss.name", "reward.length_weight", "dataset", "seed")
"""Settings that stand in the page's head, where they are the same in all runs."""


def write_report(
    folders: Sequence[Path],
    *,
    output: Path | None = None,
    episodes: int = 5000,
    size_mb: float = 40,
    refresh: int | None = None,
) -> Path:
    """Write one page about the runs to `output` (default: report.html in the first folder); return its path.

    At most `episodes` episodes are embedded, with tokens up to `size_mb` (10^6 bytes). With `refresh` the page reloads
    itself every `refresh` seconds. The page says what is missing or damaged; LongShortError if a folder holds no run.
    """
    if refresh is not None and refresh < 1:
        raise LongShortError(f"refresh is {refresh}: give a number of seconds of at least 1, or None for never")
    runs = load(folders)
    scored = systems(runs)
    remarks = [remark for run in runs for remark in run.remarks]
    viewer = collect(runs, episodes, size_mb, remarks)
    scripts = [page.script("base.js", "episode.js", "viewer.js")] if viewer.index else []
    shared = {name: runs[0].settings[name] for name in IN_HEADER if name in runs[0].settings}
    return page.write(
        output or folders[0] / "report.html",
        "report.html.j2",
        scripts=scripts + ([RELOAD % refresh] if refresh else []),
        runs=runs,
        several=len(runs) > 1,
        colours=RUNS,
        roles=ROLES,
        refresh=refresh,
        differing=_differing(runs),
        settings={
            name: value for name, value in shared.items() if all(run.settings.get(name) == value for run in runs)
        },
        all_settings=_all_settings(runs),
        remarks=remarks,
        groups=draw_groups(runs),
        window=window_of(runs),
        pareto=pareto_plots(scored, runs),
        benchmarks=benchmark_tables(scored, runs),
        viewer=viewer,
    )


def _differing(runs: Sequence[RunFiles]) -> PageTable:
    """Return the settings that are not the same in all runs, one column per run."""
    each = [run.settings for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings if name != "output_dir")
    lines = [
        TableLine(name, [Cell(page.readable(settings.get(name))) for settings in each])
        for name in names
        if len({repr(settings.get(name)) for settings in each if settings}) > 1
    ]
    return PageTable("Settings that differ", [run.name for run in runs], lines)


def _all_settings(runs: Sequence[RunFiles]) -> dict[str, dict[str, Any]]:
    """Return every recipe, and what every evaluation was made with, under a heading."""
    headings = {}
    for run in runs:
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        headings[f"All settings{of_run}"] = run.settings
        for name, results in run.evaluations.items():
            made = results.made[:16].replace("T", " ")
            headings[f"Evaluation {name}{of_run}, {made}"] = results.settings | results.versions
    return {heading: settings for heading, settings in headings.items() if settings}
