"""What training and evaluations left in a run's folder, as far as it can be read: damage becomes a sentence, never an exception."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from longshort.recipe.strict_yaml import leaves, read_yaml
from longshort.report.reading import reason
from longshort.types import LongShortError

PARTS = ("recipe.yaml", "metrics.jsonl", "episodes", "eval")
"""What a run's folder has at least one of."""
FEW = 8
"""Stretches of steps or lines that a remark names one by one."""
LATEST = 2**53
"""Steps beyond this cannot be told apart as numbers of a drawing."""


class _Shape(BaseModel):
    """Only finite numbers; what the page does not show is left out."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class System(_Shape):
    title: str = ""
    models: dict[str, str] = {}
    protocol: str = ""


class Benchmark(_Shape):
    title: str = ""
    source: str = ""
    problems: int | None = None
    golds_parsed: int | None = None
    golds_verified: int | None = None


class Row(BaseModel):
    """One system on one benchmark; the measures (longshort/evaluation/measures.py) are in `model_extra`, whatever they are."""

    model_config = ConfigDict(extra="allow")
    system: str
    benchmark: str
    decoding: str
    interval: list[Any] = []

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy, or None where there is none."""
        match [_number(value) for value in self.interval]:
            case [float() as low, float() as high] if low <= high:
                return low, high
        return None

    def get(self, name: str) -> float | None:
        """A measure, or None where it was not taken or is not a finite number."""
        return _number((self.model_extra or {}).get(name))

    def named(self, prefix: str) -> dict[str, float]:
        """The measures whose names begin with `prefix`, without it: `stop/` -> {"answered": 0.98, …}."""
        names = [name for name in self.model_extra or {} if name.startswith(prefix)]
        return {name.removeprefix(prefix): value for name in names if (value := self.get(name)) is not None}


class Difference(_Shape):
    benchmark: str
    decoding: str
    system: str
    base: str
    metric: str
    difference: float
    interval: tuple[float, float]
    p: float


class CrossPlay(_Shape):
    long: list[str]
    short: list[str]


class Results(_Shape):
    """An `eval/<name>.json`."""

    name: str = ""
    made: str = ""
    longshort: str = ""
    versions: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    faults: list[str] = []
    benchmarks: dict[str, Benchmark] = {}
    systems: dict[str, System]
    results: list[Row]
    comparisons: list[Difference] = []
    cross_play: CrossPlay | None = None

    def title(self, system: str) -> str:
        """The system's title, or its name where it has none."""
        return (self.systems.get(system) or System()).title or system


@dataclass(slots=True, kw_only=True)
class RunFiles:
    """A run's folder. `metrics` has one row per step, finite numbers only; `remarks` says in whole sentences what is missing or damaged."""

    name: str
    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: list[Results] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def setting(self, name: str) -> Any:
        """The recipe's `long.model` or `loss.beta`; None where it has none."""
        return next((value for key, value in leaves(self.recipe) if key == name), None)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """The steps at which the metric was logged, in order, and its values."""
        found = [(step, row[metric]) for step, row in sorted(self.metrics.items()) if metric in row]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def version(self) -> str:
        """Of longshort, as its newest evaluation says."""
        return next((results.longshort for results in reversed(self.evaluations) if results.longshort), "")

    @property
    def when(self) -> str:
        """When something was last written that the page shows, in UTC."""
        paths = [self.folder / "metrics.jsonl", *self.folder.glob("eval/*.json"), *self.folder.glob("episodes/*.jsonl")]
        times = [path.stat().st_mtime for path in paths if path.is_file()]
        return f"{datetime.fromtimestamp(max(times), UTC):%-d %B %Y, %H:%M} UTC" if times else ""


def load(folders: Sequence[Path]) -> list[RunFiles]:
    """Read what is there. LongShortError for a folder that does not exist or has nothing of a run, and for one given twice."""
    resolved = [folder.resolve() for folder in folders]
    if not resolved:
        raise LongShortError("a report needs at least one run's folder, e.g. runs/quickstart")
    for folder, whole in zip(folders, resolved, strict=True):
        if not folder.is_dir():
            raise LongShortError(
                f"{folder}: no such folder; `longshort train` or `longshort run` makes it (output_dir)"
            )
        if not any((folder / part).exists() for part in PARTS):
            raise LongShortError(
                f"{folder} has none of {', '.join(PARTS)}, so it is no run's folder: name the recipe's output_dir"
            )
        if resolved.count(whole) > 1:
            raise LongShortError(f"{folder} is named {resolved.count(whole)} times; name each run once")
    return [_load(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' last parts, with those before where two are the same: a/run, b/run."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _load(folder: Path, name: str) -> RunFiles:
    run = RunFiles(name=name, folder=folder)
    _read_recipe(run)
    _read_metrics(run)
    if not any(folder.glob("episodes/*.jsonl")):
        run.remarks.append(f"{name} has no episodes/: trained with an older version, or not trained here.")
    _read_evaluations(run)
    return run


def _read_recipe(run: RunFiles) -> None:
    path = run.folder / "recipe.yaml"
    if not path.is_file():
        run.remarks.append(f"{run.name} has no recipe.yaml: its settings are not known.")
        return
    where = f"{run.name}/recipe.yaml"
    try:
        tree = read_yaml(path.read_bytes(), where)
        if not isinstance(tree, dict):
            raise LongShortError("it is no mapping of settings")
        run.recipe = {name: value for name, value in tree.items() if isinstance(name, str)}
        list(leaves(run.recipe))
    except (
        LongShortError,
        ValueError,
        RecursionError,
    ) as error:  # a number of 5,000 digits, an alias that holds itself
        run.recipe = {}
        run.remarks.append(
            f"{where} cannot be read ({str(error).removeprefix(where).lstrip(':, ')}), so its settings are not shown."
        )


def _read_metrics(run: RunFiles) -> None:
    """One row per step: where a resumed run has written a step again, the last one counts."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        run.remarks.append(f"{run.name} has no metrics.jsonl: not trained here, or not yet.")
        return
    odd: dict[str, set[int]] = {}
    with path.open("rb") as stream:
        damaged = [
            number for number, line in enumerate(stream, 1) if line.strip() and not _take(line, run.metrics, odd)
        ]
    if damaged:
        run.remarks.append(
            f"{run.name}/metrics.jsonl, {_ranges('line', damaged)}: half-written or damaged; the other lines are shown."
        )
    for name, steps in sorted(odd.items()):
        run.remarks.append(
            f"{run.name}: {name} is no finite number at {_ranges('step', sorted(steps))}; left out of its line."
        )


def _take(line: bytes, metrics: dict[int, dict[str, float]], odd: dict[str, set[int]]) -> bool:
    """Put a line's finite numbers into `metrics` and the steps of its other values into `odd`; False for what is no row of metrics."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    step = row.get("step") if isinstance(row, dict) else None
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= LATEST:
        return False
    metrics[step] = {}
    for name in list(odd):
        odd[name].discard(step)
        if not odd[name]:
            del odd[name]
    for name, value in row.items():
        number = _number(value)
        if number is None:
            odd.setdefault(name, set()).add(step)
        elif name != "step":
            metrics[step][name] = number
    return True


def _read_evaluations(run: RunFiles) -> None:
    paths = sorted(run.folder.glob("eval/*.json"))
    if not paths:
        run.remarks.append(f"{run.name} has no eval/: not evaluated yet (`longshort eval`).")
    for path in paths:
        where = f"{run.name}/eval/{path.name}"
        try:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and "accuracy" in content and "systems" not in content:
                run.remarks.append(f"{where} was made by an older version; evaluate again to see it here.")
                continue
            results = Results.model_validate(content).model_copy(update={"name": path.stem})
        except (ValueError, RecursionError) as error:
            run.remarks.append(f"{where} cannot be read ({reason(error)}), so its results are not shown.")
            continue
        run.evaluations.append(results)
        run.remarks += [f"{where}: {fault.rstrip('.')}." for fault in results.faults]
        unmeasured = [row for row in results.results if row.get("accuracy") is None]
        run.remarks += [
            f"{where}: {row.system} on {row.benchmark} has no finite accuracy; not shown." for row in unmeasured
        ]
        results.results[:] = [row for row in results.results if row.get("accuracy") is not None]


def _number(value: Any) -> float | None:
    """A finite float, or None: of a JSON value that is none, of NaN and Infinity, of an integer beyond floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _ranges(noun: str, numbers: Sequence[int]) -> str:
    """("step", [3]) -> `step 3`; ("step", [3, 4, 5, 9]) -> `steps 3 to 5, 9`"""
    runs = [[number for _, number in group] for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    more = f" and {sum(map(len, runs[FEW:]))} more" if len(runs) > FEW else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(parts[:FEW])}{more}"
