"""The tables of an evaluation: Markdown to paste, and a short one for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from longshort import console
from longshort.evaluation.records import ALL, cross_name

Row = Mapping[str, Any]
HEAD = (
    "system",
    "accuracy ± s.e. [95 %]",
    "tokens",
    "long + short",
    "characters",
    "cost",
    "messages",
    "hand-back",
    "format",
    "rethinking",
)


def markdown(content: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"## {content['name']}"]
    for benchmark, decoding in dict.fromkeys((row["benchmark"], row["decoding"]) for row in content["results"]):
        rows = [row for row in content["results"] if (row["benchmark"], row["decoding"]) == (benchmark, decoding)]
        title = "mean over benchmarks" if benchmark == ALL else content["benchmarks"][benchmark]["title"]
        size = "" if benchmark == ALL else f", {rows[0]['n']} problems × {rows[0]['samples']}"
        parts.append(f"### {title}, {decoding}{size}\n\n{table(rows, content['systems'])}")
    if content["comparisons"]:
        parts.append(
            f"### Against {content['comparisons'][0]['base']}, paired bootstrap\n\n{_comparisons(content['comparisons'])}"
        )
    if content["cross_play"]:
        parts.append(f"### Cross-play: accuracy · cost\n\n{_cross_play(content)}")
    parts += [f"- {' '.join(fault.split())}" for fault in content["faults"]]
    parts.append(
        f"longshort {content['longshort']}, "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    )
    return "\n\n".join(parts)


def table(rows: Sequence[Row], systems: Mapping[str, Mapping[str, Any]]) -> str:
    """One benchmark's rows in one decoding, as Markdown."""
    passes = list(dict.fromkeys(key for row in rows for key in row if key.startswith("pass@") and key != "pass@1"))
    named = titles(systems)
    with_aes = any("aes" in row for row in rows)
    head = [*HEAD[:2], *passes, *HEAD[2:], *(["AES"] if with_aes else [])]
    lines = []
    for row in rows:
        low, high = row["interval"]
        each = " + ".join(f"{row[f'tokens/{role}']:.1f}" for role in ("long", "short") if f"tokens/{role}" in row)
        numbers = [f"{row[key]:.1f}" if key in row else "–" for key in ("characters", "cost")]
        shares = [
            f"{row[key]:.2f}" if key in row else "–" for key in ("turns", "hand_back_rate", "format", "rethinking")
        ]
        lines.append(
            [
                _cell(named[row["system"]]),
                f"{row['accuracy']:.3f} ± {row['stderr']:.3f} [{low:.3f}, {high:.3f}]",
                *(f"{row[key]:.3f}" if key in row else "–" for key in passes),
                f"{row['tokens']:.1f}",
                each or "–",
                *numbers,
                *shares,
                *([f"{row['aes']:+.2f}" if "aes" in row else "–"] if with_aes else []),
            ]
        )
    return tabulate(
        lines, headers=head, tablefmt="pipe", disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1))
    )


def _comparisons(rows: Sequence[Row]) -> str:
    lines = [
        [_cell(row["benchmark"]), row["decoding"], row["system"], row["metric"], f"{row['difference']:+.3f}"]
        + [f"[{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]", f"{row['p']:.4f}"]
        for row in rows
    ]
    head = ("benchmark", "decoding", "system", "metric", "difference", "95 %", "p")
    return tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True)


def _cross_play(content: Mapping[str, Any]) -> str:
    """Long models down, short models across, per benchmark (sampled where it was)."""
    tables = []
    for benchmark in content["benchmarks"]:
        found = {row["system"]: row for row in reversed(content["results"]) if row["benchmark"] == benchmark}
        lines = []
        for long in content["cross_play"]["long"]:
            cells = (found.get(cross_name(long, short)) for short in content["cross_play"]["short"])
            lines.append(
                [_cell(long), *(f"{cell['accuracy']:.3f} · {cell['cost']:.1f}" if cell else "–" for cell in cells)]
            )
        head = [f"{_cell(benchmark)}: long ↓ short →", *map(_cell, content["cross_play"]["short"])]
        tables.append(tabulate(lines, headers=head, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join(tables)


def titles(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each system's title, with its name behind it where another one has the same title."""
    counts = Counter(system["title"] for system in systems.values())
    return {
        name: f"{system['title']} ({name})" if counts[system["title"]] > 1 else system["title"]
        for name, system in systems.items()
    }


def _cell(text: str) -> str:
    """A title that cannot end its cell or its row."""
    return " ".join(text.replace("|", "\\|").split())


def results_table(title: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Systems side by side, for a terminal: accuracy with its 95 % interval, greedy accuracy, tokens, cost, hand-backs, format, AES."""
    rows = []
    for name, block in results.items():
        low, high = block["interval"]
        greedy = f"{block['accuracy_greedy']:.3f}" if "accuracy_greedy" in block else "–"
        numbers = [f"{block[key]:.1f}" for key in ("tokens", "cost")]
        shares = [f"{block[key]:.2f}" if key in block else "–" for key in ("hand_back_rate", "format")]
        score = (
            [f"{block['aes']:+.2f}"]
            if "aes" in block
            else ["–"]
            if any("aes" in each for each in results.values())
            else []
        )
        rows.append([name, f"{block['accuracy']:.3f} [{low:.3f}, {high:.3f}]", greedy, *numbers, *shares, *score])
    head = [title, "accuracy [95 %]", "greedy", "tokens", "cost", "hand-back", "format"]
    return "\n" + console.table([*head, *(["AES"] if rows and len(rows[0]) > len(head) else [])], rows)
