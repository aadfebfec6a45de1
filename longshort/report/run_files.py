"""A run's recipe, metrics and evaluations, as far as they can be read; `remarks` says what is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshort.evaluation.records import EvaluationFile, ResultRow
from longshort.recipe.strict_yaml import leaves, read_yaml
from longshort.report.reading import read_json, read_lines
from longshort.runs.layout import RunFolder
from longshort.types import LongShortError

LARGEST = 1e300  # a larger number, an infinite one included, cannot be drawn


@dataclass(slots=True, kw_only=True)
class RunFiles:
    """A run's folder. `metrics` has the finite numbers of every step, `evaluations` the results by the file's name."""

    name: str
    folder: RunFolder
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[str, EvaluationFile] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) wherever the metric was logged, in order."""
        return [(step, row[metric]) for step, row in sorted(self.metrics.items()) if metric in row]

    def rows(self, evaluation: str) -> list[ResultRow]:
        """Return the rows that have an accuracy."""
        return [row for row in self.evaluations[evaluation].results if row.get("accuracy") is not None]


def load(folders: Sequence[Path]) -> list[RunFiles]:
    """Read the runs. LongShortError for a folder that is missing, holds no run or is named twice."""
    if not folders:
        raise LongShortError("a report needs at least one run's folder, e.g. runs/quickstart")
    resolved = [folder.resolve() for folder in folders]
    for folder, whole in zip(folders, resolved, strict=True):
        if not folder.is_dir():
            raise LongShortError(f"{folder}: no such folder; a run's folder is the output_dir of its recipe")
        run = RunFolder(folder)
        if not any(path.exists() for path in (run.recipe, run.metrics, run.episodes, run.evaluations)):
            raise LongShortError(
                f"{folder} has no recipe.yaml, metrics.jsonl, episodes or eval, so it is not a run's folder: "
                "name the recipe's output_dir"
            )
        if resolved.count(whole) > 1:
            raise LongShortError(f"{folder} is named {resolved.count(whole)} times; name each run once")
    return [_load(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' last parts, with parents where two would be the same: a/run, b/run."""
    parts = 1
    while len({folder.parts[-parts:] for folder in folders}) < len(folders):
        parts += 1
    return ["/".join(folder.parts[-parts:]) for folder in folders]


def _load(folder: Path, name: str) -> RunFiles:
    run = RunFiles(name=name, folder=RunFolder(folder))
    _read_recipe(run)
    if run.folder.metrics.is_file():
        for _, (step, row) in read_lines(run.folder.metrics, _metrics_row, f"{name}/metrics.jsonl", run.remarks):
            run.metrics[step] = row  # a resumed run writes a step again; the last line counts
    else:
        run.remarks.append(f"{name} has no metrics.jsonl: not trained here, or not yet.")
    for path in sorted(run.folder.evaluations.glob("*.json")):
        where = f"{name}/eval/{path.name}"
        results = read_json(path, EvaluationFile, where, run.remarks)
        if results is not None:
            run.evaluations[path.stem] = results
            run.remarks += [f"{where}: {fault.rstrip('.')}." for fault in results.faults]
            if unmeasured := len(results.results) - len(run.rows(path.stem)):
                run.remarks.append(f"{where}: {unmeasured} rows without a finite accuracy are left out.")
    if not run.evaluations:
        run.remarks.append(f"{name} has no evaluation yet (`longshort eval`).")
    return run


def _read_recipe(run: RunFiles) -> None:
    where = f"{run.name}/recipe.yaml"
    try:
        tree = read_yaml(run.folder.recipe.read_bytes(), where)
        run.settings = {str(name): value for name, value in leaves(tree)} if isinstance(tree, dict) else {}
    except (LongShortError, OSError, ValueError, RecursionError, TypeError) as error:
        reason = str(error).removeprefix(where).lstrip(":, ")
        run.remarks.append(f"{where} cannot be read ({reason}), so its settings are not shown.")


def _metrics_row(raw: bytes) -> tuple[int, dict[str, float]]:
    """Parse a line of metrics.jsonl and leave out what is not a finite number."""
    row = json.loads(raw)
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < LARGEST:
        raise ValueError("not a row of metrics")
    numbers = {name: value for name, value in row.items() if type(value) in (int, float) and name != "step"}
    return row["step"], {name: float(value) for name, value in numbers.items() if abs(value) < LARGEST}
