"""The tables of an evaluation: Markdown to paste, and short ones for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longshort import console
from longshort.evaluation.records import ALL, ComparisonRow, DescribedSystem, EvaluationFile, ResultRow, cross_name
from longshort.types import ROLES


def markdown(file: EvaluationFile) -> str:
    """Return all tables of a results file as Markdown."""
    parts = [f"## {file.name}"]
    for title, rows in sections(file, file.results):
        parts.append(f"### {title}\n\n{table(rows, file.systems)}")
    if file.comparisons:
        parts.append(f"### Against {file.comparisons[0].base}, paired bootstrap\n\n{_comparisons(file.comparisons)}")
    if file.cross_play:
        parts.append(f"### Cross-play: accuracy · cost\n\n{_cross_play(file)}")
    parts += [f"- {' '.join(fault.split())}" for fault in file.faults]
    parts.append(
        ", ".join([f"longshort {file.longshort}", *(f"{name} {each}" for name, each in file.versions.items())])
    )
    return "\n\n".join(parts)


def sections(file: EvaluationFile, rows: Sequence[ResultRow]) -> Iterator[tuple[str, list[ResultRow]]]:
    """Yield the rows by benchmark and decoding, each with a heading: "MATH-500, sampled, 500 problems × 4"."""
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((row.benchmark, row.decoding), []).append(row)
    for (benchmark, decoding), group in groups.items():
        first = group[0].measures
        size = "" if benchmark == ALL else f", {first['n']} problems × {first['samples']}"
        yield f"{benchmark_title(file, benchmark)}, {decoding}{size}", group


def benchmark_title(file: EvaluationFile, benchmark: str) -> str:
    """Return what a reader calls the benchmark."""
    return "mean over benchmarks" if benchmark == ALL else file.benchmarks[benchmark].title


def table(rows: Sequence[ResultRow], systems: Mapping[str, DescribedSystem]) -> str:
    """Return the rows of one benchmark in one decoding as Markdown."""
    keys = dict.fromkeys(key for row in rows for key in row.measures)
    passes = [key for key in keys if key.startswith("pass@") and key != "pass@1"]
    scores = [key for key in keys if key == "aes"]
    head = ["system", "accuracy ± s.e. [95 %]", *passes, "tokens", "long + short", "characters", "cost"]
    head += ["messages", "hand-back", "format", "rethinking", *("AES" for _ in scores)]
    names, lines = titles(systems), []
    for row in rows:
        values, (low, high) = row.measures, row.measures["interval"]
        by_role = [figure(values, f"tokens/{role}", ".1f") for role in ROLES if f"tokens/{role}" in values]
        lines.append(
            [
                names[row.system],
                f"{values['accuracy']:.3f} ± {values['stderr']:.3f} [{low:.3f}, {high:.3f}]",
                *(figure(values, key, ".3f") for key in passes),
                figure(values, "tokens", ".1f"),
                " + ".join(by_role) or "–",
                *(figure(values, key, ".1f") for key in ("characters", "cost")),
                *(figure(values, key, ".2f") for key in ("turns", "hand_back_rate", "format", "rethinking")),
                *(figure(values, key, "+.2f") for key in scores),
            ]
        )
    return markdown_table(head, lines)


def _comparisons(rows: Sequence[ComparisonRow]) -> str:
    lines = []
    for row in rows:
        low, high = row.interval
        numbers = [f"{row.difference:+.3f}", f"[{low:+.3f}, {high:+.3f}]", f"{row.p:.4f}"]
        lines.append([row.benchmark, row.decoding, row.system, row.metric, *numbers])
    return markdown_table(["benchmark", "decoding", "system", "metric", "difference", "95 %", "p"], lines)


def _cross_play(file: EvaluationFile) -> str:
    """Return one matrix per benchmark: long models down, short models across; sampled rows before greedy ones."""
    assert file.cross_play
    tables = []
    for benchmark in file.benchmarks:
        played = {row.system: row.measures for row in reversed(file.results) if row.benchmark == benchmark}
        lines = []
        for long in file.cross_play.long:
            cells = [played.get(cross_name(long, short)) for short in file.cross_play.short]
            lines.append([long, *(f"{cell['accuracy']:.3f} · {cell['cost']:.1f}" if cell else "–" for cell in cells)])
        tables.append(markdown_table([f"{benchmark}: long ↓ short →", *file.cross_play.short], lines))
    return "\n\n".join(tables)


def titles(systems: Mapping[str, DescribedSystem]) -> dict[str, str]:
    """Return each system's title, followed by its name if another system has the same title."""
    counts = Counter(system.title for system in systems.values())
    return {
        name: f"{system.title} ({name})" if counts[system.title] > 1 else system.title
        for name, system in systems.items()
    }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: first column left, the others right. No text can end its cell or its row."""
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def results_table(title: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return systems side by side for a terminal; `results` holds the figures of each (results.with_greedy)."""
    scores = ["aes"] if any("aes" in values for values in results.values()) else []
    rows = []
    for name, values in results.items():
        low, high = values["interval"]
        rows.append(
            [
                name,
                f"{values['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
                figure(values, "accuracy_greedy", ".3f"),
                *(figure(values, key, ".1f") for key in ("tokens", "cost")),
                *(figure(values, key, ".2f") for key in ("hand_back_rate", "format")),
                *(figure(values, key, "+.2f") for key in scores),
            ]
        )
    head = [title, "accuracy [95 %]", "greedy", "tokens", "cost", "hand-back", "format", *("AES" for _ in scores)]
    return "\n" + console.table(head, rows)


def figure(values: Mapping[str, Any], key: str, spec: str) -> str:
    """Return a formatted measure, or a dash if it was not taken."""
    return f"{values[key]:{spec}}" if key in values else "–"
