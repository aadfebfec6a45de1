"""The tables of a report: every system's measures, and differences between systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from longshort.evaluation.records import ALL, SAMPLED, TRAINING, ResultRow, cross_name
from longshort.report.run_files import RunFiles
from longshort.types import ROLES

FOLDED = {TRAINING: "Checkpoints during training", "cross-play": "Checkpoints playing with each other"}
"""Kinds of systems whose tables are folded: a page is read for a few systems, not for all."""
COLUMNS = {
    "Tokens": ("tokens", 1),
    "Characters": ("characters", 0),
    "Cost": ("cost", 1),
    "Messages": ("turns", 2),
    "Hand-back": ("hand_back_rate", 2),
    "Format": ("format", 2),
    "Answered": ("stop/answered", 2),
    "Rethinking": ("rethinking", 2),
    "AES": ("aes", 2),
    "AES, characters": ("aes_characters", 2),
    "AES, cost": ("aes_cost", 2),
}
"""The measure of a column and its digits."""


class Cell(NamedTuple):
    """A number for people, and what stands small below it."""

    main: str = "–"
    below: str = ""


class TableLine(NamedTuple):
    """A line of a table. `run` gives the colour of its dot, `below` stands small under its title."""

    title: str
    cells: list[Cell]
    run: int | None = None
    below: str = ""


class PageTable(NamedTuple):
    """A table as pages show it. One with a `fold` is closed until it is asked for."""

    title: str
    columns: list[str]
    lines: list[TableLine]
    fold: str = ""


class ScoredSystem(NamedTuple):
    """A row of an evaluation. `kind` is "" or one of FOLDED; `run_name` is empty on a page about one run.

    A baseline is what others are compared with, or one model alone.
    """

    run: int
    run_name: str
    evaluation: str
    title: str
    kind: str
    baseline: bool
    row: ResultRow


def systems(runs: Sequence[RunFiles]) -> list[ScoredSystem]:
    """Return every row of every evaluation of every run, in their order."""
    scored = []
    for number, run in enumerate(runs):
        for name, results in run.evaluations.items():
            bases, played = {one.base for one in results.comparisons}, results.cross_play
            crossed = {cross_name(long, short) for long in played.long for short in played.short} if played else set()
            for row in run.rows(name):
                described = results.systems.get(row.system)
                alone = described is not None and len(set(described.models.values())) == 1
                kind = TRAINING if name == TRAINING else "cross-play" if row.system in crossed else ""
                baseline = not kind and (row.system in bases or alone)
                run_name, title = run.name if len(runs) > 1 else "", results.title(row.system)
                scored.append(ScoredSystem(number, run_name, name, title, kind, baseline, row))
    return scored


def benchmarks(scored: Sequence[ScoredSystem], runs: Sequence[RunFiles]) -> dict[str, str]:
    """Return the benchmarks' titles by name, the mean over all of them first."""
    described = [one for run in runs for file in run.evaluations.values() for one in file.benchmarks.items()]
    known = {name: one.title for name, one in reversed(described) if one.title} | {ALL: "Mean over benchmarks"}
    names = sorted(dict.fromkeys(one.row.benchmark for one in scored), key=lambda name: name != ALL)
    return {name: known.get(name, name) for name in names}


def benchmark_tables(scored: Sequence[ScoredSystem], runs: Sequence[RunFiles]) -> dict[str, list[PageTable]]:
    """Return all tables by the benchmark's title, sampled before greedy decoding."""
    made = {}
    for name, title in benchmarks(scored, runs).items():
        tables = []
        here = [one for one in scored if one.row.benchmark == name]
        for decoding in sorted(
            {one.row.decoding for one in here}, key=lambda decoding: (decoding != SAMPLED, decoding)
        ):
            decoded = [one for one in here if one.row.decoding == decoding]
            tables += [_measures(decoding, [one for one in decoded if one.kind == kind]) for kind in ("", *FOLDED)]
            tables.append(_differences(runs, name, decoding))
        made[title] = [table for table in tables if table.lines]
    return made


def _measures(decoding: str, here: Sequence[ScoredSystem]) -> PageTable:
    """Return the table of all measures; a column needs a system that has it."""
    cells = [_cells(one.row) for one in here]
    columns = list(dict.fromkeys(name for each in cells for name in each))
    sizes = sorted({(n, one.row.get("samples") or 1) for one in here if (n := one.row.get("n")) is not None})
    size = " or ".join(f"{n:,.0f} problems × {samples:.0f}" for n, samples in sizes)
    lines = [
        TableLine(
            one.title,
            [each.get(name, Cell()) for name in columns],
            one.run if one.run_name else None,
            " · ".join(filter(None, (one.run_name, one.evaluation))),
        )
        for one, each in zip(here, cells, strict=True)
    ]
    fold = f"{FOLDED[here[0].kind]}, {decoding}: {len(here)}" if here and here[0].kind else ""
    return PageTable(f"{decoding}, {size}" if size else decoding, columns, lines, fold)


def _cells(row: ResultRow) -> dict[str, Cell]:
    """Return a system's measures by column, with each role's part below; what was not measured is absent."""
    passes = {f"pass@{k}": (f"pass@{k}", 3) for k in row.named("pass@") if k != "1"}
    cells = {}
    for column, (name, digits) in ({"Accuracy": ("accuracy", 3)} | passes | COLUMNS).items():
        value, parts = row.get(name), [row.get(f"{name}/{role}") for role in ROLES]
        below = "" if None in parts else " + ".join(f"{part:,.{digits}f}" for part in parts)
        if value is not None:
            cells[column] = Cell(f"{value:,.{digits}f}".replace("-", "−"), below)
    stops = {name: share for name, share in row.named("stop/").items() if share >= 0.005 and name != "answered"}
    if "Answered" in cells:
        others = "\n".join(f"{name.replace('_', ' ')} {share:.2f}" for name, share in stops.items())
        cells["Answered"] = cells["Answered"]._replace(below=others)
    if row.interval:
        cells["Accuracy"] = cells["Accuracy"]._replace(below="[{:.3f}, {:.3f}]".format(*row.interval))
    return cells


def _differences(runs: Sequence[RunFiles], benchmark: str, decoding: str) -> PageTable:
    """Return a line per compared pair of systems, with the difference of each metric, its interval and p."""
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    for run, results in [(one, results) for one in runs for results in one.evaluations.values()]:
        for one in results.comparisons:
            if (one.benchmark, one.decoding) == (benchmark, decoding):
                form = "{:+,.3f}" if one.metric == "accuracy" else "{:+,.1f}"
                main, low, high = (form.format(value).replace("-", "−") for value in (one.difference, *one.interval))
                p = "p < 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
                title = f"{results.title(one.system)} − {results.title(one.base)}"
                pair = pairs.setdefault((title, run.name if len(runs) > 1 else ""), {})
                pair[one.metric.capitalize()] = Cell(main, f"[{low}, {high}], {p}")
    columns = list(dict.fromkeys(metric for pair in pairs.values() for metric in pair))
    lines = [
        TableLine(title, [pair.get(column, Cell()) for column in columns], below=run)
        for (title, run), pair in pairs.items()
    ]
    return PageTable("Differences, paired bootstrap over problems", columns, lines)
