"""What evaluations found, in tables: every system's measures, differences between systems, and checkpoints playing with each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longshort.evaluation.records import ALL, SAMPLED, TRAINING, cross_name
from longshort.report.cells import COLUMNS, Cell, plain, signed
from longshort.report.run_files import Benchmark, CrossPlay, Difference, Results, Row, RunFiles

KINDS = {"": "", TRAINING: "Checkpoints during training", "cross": "Checkpoints playing with each other"}
"""Which rows stand together, folded but for the first: a page is read for a few systems, not for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of an evaluation with what tells it from all others. A baseline is what others are compared with, or one model only."""

    run: int
    run_name: str
    evaluation: str
    title: str
    kind: str
    baseline: bool
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`groups` by heading: (entry, its cells) in the order of `columns`."""

    decoding: str
    size: str
    columns: list[str]
    groups: dict[str, list[tuple[Entry, list[Cell]]]]
    differences: list[tuple[str, dict[str, Cell]]]
    metrics: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One measure of every long model (rows) with every short model (columns); `shade` is 0 to 1, None where a pair has not played."""

    title: str
    long: list[str]
    short: list[str]
    cells: list[list[tuple[str, float | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkTables:
    name: str
    title: str
    facts: str
    tables: list[Table]
    grids: list[Grid]


def entries(runs: Sequence[RunFiles]) -> list[Entry]:
    """Every row of every evaluation of every run, in their order."""
    found = []
    for number, run in enumerate(runs):
        for results in run.evaluations:
            bases = {one.base for one in results.comparisons}
            crossed = set(_crossed(results).values())
            for row in results.results:
                system = results.systems.get(row.system)
                models = set(system.models.values()) if system else set()
                kind = TRAINING if results.name == TRAINING else "cross" if row.system in crossed else ""
                found.append(
                    Entry(
                        run=number,
                        run_name=run.name,
                        evaluation=results.name,
                        title=results.title(row.system),
                        kind=kind,
                        baseline=not kind and (row.system in bases or len(models) == 1),
                        row=row,
                    )
                )
    return found


def benchmark_tables(runs: Sequence[RunFiles]) -> list[BenchmarkTables]:
    """All tables, by benchmark in the order of the files, the mean over benchmarks first; sampled before greedy."""
    found = entries(runs)
    made = []
    for name in benchmarks(found):
        here = [entry for entry in found if entry.row.benchmark == name]
        decodings = sorted({entry.row.decoding for entry in here}, key=lambda decoding: (decoding != SAMPLED, decoding))
        known = [results.benchmarks[name] for run in runs for results in run.evaluations if name in results.benchmarks]
        made.append(
            BenchmarkTables(
                name=name,
                title=benchmark_title(name, known),
                facts=_facts(known[0]) if known else "",
                tables=[
                    _table(runs, name, decoding, [entry for entry in here if entry.row.decoding == decoding])
                    for decoding in decodings
                ],
                grids=[
                    grid
                    for run in runs
                    for results in run.evaluations
                    for grid in _grids(results, name, run.name if len(runs) > 1 else "")
                ],
            )
        )
    return made


def benchmarks(found: Iterable[Entry]) -> list[str]:
    """The benchmarks' names, `all` first."""
    names = dict.fromkeys(entry.row.benchmark for entry in found)
    return sorted(names, key=lambda name: name != ALL)


def benchmark_title(name: str, known: Sequence[Benchmark]) -> str:
    return "Mean over benchmarks" if name == ALL else next((one.title for one in known if one.title), name)


def _facts(benchmark: Benchmark) -> str:
    """Where the problems come from, and whether the grader takes every gold answer."""
    golds = [
        f"{count:,} golds {done}"
        for count, done in ((benchmark.golds_parsed, "parsed"), (benchmark.golds_verified, "verified"))
        if count is not None
    ]
    problems = [f"{benchmark.problems:,} problems"] if benchmark.problems is not None else []
    return ", ".join([*([benchmark.source] if benchmark.source else []), *problems, *golds])


def _table(runs: Sequence[RunFiles], benchmark: str, decoding: str, here: list[Entry]) -> Table:
    passes = {name: None for entry in here for name in entry.row.named("pass@") if name != "1"}
    columns = COLUMNS | {f"pass@{k}": plain(f"pass@{k}", 3) for k in sorted(passes, key=lambda k: (len(k), k))}
    order = [
        "Accuracy",
        *(name for name in columns if name.startswith("pass@")),
        *(name for name in COLUMNS if name != "Accuracy"),
    ]
    made = {id(entry): {name: columns[name](entry.row) for name in order} for entry in here}
    order = [name for name in order if any(cells[name].main != "–" for cells in made.values())]
    if best := _best([entry for entry in here if not entry.kind]):
        made[id(best)]["Accuracy"] = made[id(best)]["Accuracy"]._replace(best=True)
    sizes = {(n, entry.row.get("samples") or 1) for entry in here if (n := entry.row.get("n")) is not None}
    ours = [
        (run.name, results, one)
        for run in runs
        for results in run.evaluations
        for one in results.comparisons
        if (one.benchmark, one.decoding) == (benchmark, decoding)
    ]
    return Table(
        decoding=decoding,
        size=" or ".join(f"{n:,.0f} problems × {samples:.0f}" for n, samples in sorted(sizes)),
        columns=order,
        groups={
            heading: [(entry, [made[id(entry)][name] for name in order]) for entry in here if entry.kind == kind]
            for kind, heading in KINDS.items()
            if any(entry.kind == kind for entry in here)
        },
        differences=_differences(ours, several=len(runs) > 1),
        metrics=list(dict.fromkeys(one.metric for _, _, one in ours)),
    )


def _best(here: Sequence[Entry]) -> Entry | None:
    """The system whose accuracy interval lies above all others' intervals; None where the intervals do not say so."""
    if len(here) < 2 or not all(entry.row.bounds for entry in here):
        return None
    first = max(here, key=lambda entry: entry.row.bounds[0])
    above = max(entry.row.bounds[1] for entry in here if entry is not first)
    return first if first.row.bounds[0] > above else None


def _differences(
    ours: Sequence[tuple[str, Results, Difference]], *, several: bool
) -> list[tuple[str, dict[str, Cell]]]:
    """One line per pair of systems: what is compared, and by metric the difference with its interval and p."""
    lines: dict[str, dict[str, Cell]] = {}
    for run, results, one in ours:
        title = f"{results.title(one.system)} − {results.title(one.base)}" + (f" ({run})" if several else "")
        digits = 3 if one.metric == "accuracy" else 1
        low, high = (signed(value, digits) for value in one.interval)
        told = "p < 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
        lines.setdefault(title, {})[one.metric] = Cell(signed(one.difference, digits), f"[{low}, {high}], {told}")
    return list(lines.items())


def _crossed(results: Results) -> dict[tuple[str, str], str]:
    """The systems of the cross-play matrix by (long, short) model."""
    if not results.cross_play:
        return {}
    return {
        (long, short): cross_name(long, short) for long in results.cross_play.long for short in results.cross_play.short
    }


def _grids(results: Results, benchmark: str, run: str) -> list[Grid]:
    """Accuracy and cost of every long with every short model, of the sampled dialogues where there are such."""
    names = _crossed(results)
    rows = [row for row in results.results if row.benchmark == benchmark and row.system in names.values()]
    decoding = SAMPLED if any(row.decoding == SAMPLED for row in rows) else next((row.decoding for row in rows), "")
    by_system = {row.system: row for row in rows if row.decoding == decoding}
    grids = []
    for measure, digits in (("accuracy", 3), ("cost", 1)):
        values = {
            pair: value
            for pair, name in names.items()
            if name in by_system and (value := by_system[name].get(measure)) is not None
        }
        if values:
            title = ", ".join(part for part in (measure.capitalize(), decoding, run) if part)
            grids.append(_grid(title, results.cross_play, values, digits))
    return grids


def _grid(title: str, played: CrossPlay, values: Mapping[tuple[str, str], float], digits: int) -> Grid:
    low, high = min(values.values()), max(values.values())

    def cell(pair: tuple[str, str]) -> tuple[str, float | None]:
        if pair not in values:
            return "–", None
        return f"{values[pair]:,.{digits}f}", (values[pair] - low) / (high - low) if high > low else 0.5

    cells = [[cell((long, short)) for short in played.short] for long in played.long]
    return Grid(title=title, long=played.long, short=played.short, cells=cells)
