"""`runs/<name>/report.html`: settings, learning curves, accuracy over cost, tables of results and every episode, in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longshort.evaluation import names
from longshort.recipe.strict_yaml import leaves
from longshort.report import page, pareto, run_files
from longshort.report.panels import TRAINING, colour, draw_groups, window_of
from longshort.report.plots import RUNS
from longshort.report.run_files import RunFiles
from longshort.report.tables import Entry, benchmark_tables, benchmark_title, benchmarks, entries
from longshort.report.viewer import viewer_parts
from longshort.types import ROLES, LongShortError

FEW = 6
"""Remarks that are not folded."""
SIZES = {"wide": (900, 420), "narrow": (360, 340)}
"""Of the scatter plots: one for screens, one for phones."""
RELOAD = "setTimeout(() => location.reload(), 1000 * %d);\n"
"""A refresh by <meta> would forget the address's #state or, where there is one, only go to it; it stands in <noscript>."""
COSTS = {"cost": "price-weighted tokens per dialogue", "tokens": "tokens per dialogue"}


def write_report(
    folders: Sequence[Path],
    *,
    output: Path | None = None,
    episodes: int = 5000,
    size_mb: float = 40,
    refresh: int | None = None,
) -> Path:
    """Write one page about the runs in `folders` to `output` (default: report.html in the first folder); returns its path.

    At most `episodes` episodes are embedded, in `size_mb` (10^6 bytes) packed; `refresh`: seconds after which the page loads itself again.
    What is missing or damaged in a folder is said on the page. Raises LongShortError for a folder that holds nothing of a run.
    """
    if refresh is not None and refresh < 1:
        raise LongShortError(
            f"refresh is {refresh}; a page can load itself again every second at most: give 1 or more, or None for never"
        )
    runs = run_files.load(folders)
    groups, undrawn = draw_groups(runs)
    found = entries(runs)
    viewer = viewer_parts(runs, episodes=episodes, size_mb=size_mb)
    differing = _differing(runs)
    return page.write(
        output or folders[0] / "report.html",
        "report.html.j2",
        styles=[page.asset("base.css"), page.asset("report.css"), viewer.style],
        scripts=[script for script in (viewer.script, RELOAD % refresh if refresh else "") if script],
        runs=runs,
        several=len(runs) > 1,
        colours=RUNS,
        refresh=refresh,
        differing=differing,
        settings=_settings(runs),
        all_settings=_all_settings(runs),
        remarks=[remark for run in runs for remark in run.remarks] + viewer.remarks,
        few=FEW,
        groups=groups,
        undrawn=undrawn,
        window=window_of(runs),
        roles=ROLES,
        scatters=[
            plot for number, name in enumerate(benchmarks(found)) for plot in _scatter(number, name, found, runs)
        ],
        several_evaluations=len({entry.evaluation for entry in found}) > 1,
        benchmarks=benchmark_tables(runs),
        has_aes=any(entry.row.get("aes") is not None for entry in found),
        viewer=viewer.html,
    )


def _differing(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """The settings that are not the same in all recipes that can be read, by dotted name: one value per run, None where it has none."""
    each = [dict(leaves(run.recipe)) for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings if name != "output_dir")
    return {
        name: [settings.get(name) for settings in each]
        for name in names
        if len({repr(s.get(name)) for s in each if s}) > 1
    }


def _settings(runs: Sequence[RunFiles]) -> dict[str, str]:
    """The settings that matter, as far as they are the same for all runs: those that differ stand in a table of their own."""
    each = [_told_settings(run.setting) for run in runs if run.recipe]
    return (
        {label: value for label, value in each[0].items() if value and all(other[label] == value for other in each)}
        if each
        else {}
    )


def _told_settings(of: Callable[[str], Any]) -> dict[str, str]:
    """One run's settings that matter, in words; "" for what its recipe does not say."""

    def joined(template: str, *names: str) -> str:
        values = [of(name) for name in names]
        return "" if None in values or "" in values else template.format(*map(page.told, values))

    return {
        "Long model": joined("{}", "long.model"),
        "Short model": joined("{}", "short.model"),
        "Protocol": joined(
            "{}, {} exchanges at most, {} tokens", "protocol.name", "protocol.max_exchanges", "protocol.episode_tokens"
        ),
        "Loss": joined(
            "{}, clipped at −{} and +{}, β = {}", "loss.name", "loss.epsilon", "loss.epsilon_high", "loss.beta"
        ),
        "Learning rates": ", ".join(
            filter(
                None,
                (
                    joined(f"{role} {{}}", f"{role}.learning_rate") or joined(f"{role} {{}}", "learning_rate")
                    for role in ROLES
                ),
            )
        ),
        "Reward": joined(
            "{} · correct + {} · format + {} · length ({})",
            "reward.correct_weight",
            "reward.format_weight",
            "reward.length_weight",
            "reward.length.kind",
        ),
        "Price of a token": joined("long {}, short {}", "long.price", "short.price"),
        "A step": joined("{} problems × {} dialogues", "num_problems", "num_generations"),
        "Dataset": joined("{}", "dataset"),
        "Seed": joined("{}", "seed"),
    }


def _all_settings(runs: Sequence[RunFiles]) -> dict[str, list[tuple[str, Any]]]:
    """Recipes, and what evaluations were made with, by the heading they are folded under."""
    of = " of {}" if len(runs) > 1 else ""
    made = {f"All settings{of.format(run.name)}": list(leaves(run.recipe)) for run in runs if run.recipe}
    for run in runs:
        for results in run.evaluations:
            settings = [
                *leaves(results.settings),
                *((f"{package} version", version) for package, version in results.versions.items()),
            ]
            made[
                ", ".join(
                    filter(
                        None,
                        (
                            f"Evaluation {results.name}{of.format(run.name)}",
                            results.made.replace("T", " ").replace("+00:00", " UTC"),
                        ),
                    )
                )
            ] = settings
    return made


def _scatter(number: int, benchmark: str, found: Sequence[Entry], runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """The plot of a benchmark's sampled dialogues, drawn twice; [] where nothing can be placed."""
    here = [entry for entry in found if entry.row.benchmark == benchmark and entry.row.decoding == names.SAMPLED]
    measure = "cost" if all(entry.row.get("cost") is not None for entry in here) else "tokens"
    points = [_point(entry, here, measure, len(runs)) for entry in here if entry.row.get(measure) is not None]
    if not points:
        return []
    known = [
        results.benchmarks[benchmark] for run in runs for results in run.evaluations if benchmark in results.benchmarks
    ]
    title = f"{benchmark_title(benchmark, known)}: accuracy over {measure}"
    drawings = {
        size: pareto.draw(
            f"scatter-{number}-{size}", points, title=title, x_label=COSTS[measure], width=width, height=height
        )
        for size, (width, height) in SIZES.items()
    }
    return [{"title": title, "front": pareto.front(points), **drawings}]


def _point(entry: Entry, here: Sequence[Entry], measure: str, runs: int) -> pareto.Point:
    """Systems are labelled; of a training's checkpoints only the last is, of those that play with each other none."""
    same = [
        other
        for other in here
        if (other.run, other.evaluation, other.kind) == (entry.run, entry.evaluation, entry.kind)
    ]
    twice = any(other.title == entry.title and other.run == entry.run and other is not entry for other in here)
    name = f"{entry.title} ({entry.evaluation})" if twice else entry.title
    accuracy, x = entry.row.get("accuracy"), entry.row.get(measure)
    low, high = entry.row.bounds or (accuracy, accuracy)
    interval = f" [{low:.3f}, {high:.3f}]" if high > low else ""
    return pareto.Point(
        x=x,
        y=accuracy,
        low=low,
        high=high,
        title=f"{name}{f' of {entry.run_name}' if runs > 1 else ''}: {accuracy:.3f}{interval} at {x:,.1f}",
        label=name if not entry.kind or (entry.kind == names.TRAINING and entry is same[-1]) else "",
        colour=colour(entry.run, TRAINING, runs),
        baseline=entry.baseline,
        chain=f"{entry.run} {entry.evaluation}" if entry.kind == names.TRAINING else "",
    )
