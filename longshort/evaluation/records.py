"""What an evaluation writes, as records: evaluations make them, and the report and the team card read them back.

eval/<name>.json                     an EvaluationFile
eval/<name>/*.jsonl                  one GradedLine per attempt
eval/<name>/*.manifest.json          says under "about" which system, benchmark and decoding the lines belong to
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longshort.runs.episodes import EpisodeLine
from longshort.types import LongShortError

SAMPLED, GREEDY = "sampled", "greedy"
"""Decodings."""
STAGES, TRAINING = "stages", "training"
"""The evaluations that `longshort run` makes of its stages, and that training makes every `eval_steps`."""
ALL = "all"
"""Stands in place of a benchmark's name in rows that average over benchmarks."""


def cross_name(long: str, short: str) -> str:
    """Return the name of the cross-play system that these two checkpoints make."""
    return f"long@{last_part(long)}+short@{last_part(short)}"


def last_part(reference: str) -> str:
    """Return a checkpoint's last folder, fit for a file name: `runs/x/checkpoint-40` -> "checkpoint-40"."""
    return re.sub(r"[^\w@+.-]+", "-", Path(reference).name)


class EvaluationRecord(BaseModel):
    """Base of the records of a results file. Keys that this version does not know are left out."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class DescribedSystem(EvaluationRecord):
    """A system as a results file describes it; `models` holds the folder or hub name of each role's model."""

    title: str = ""
    models: dict[str, str] = {}
    protocol: str = ""


class DescribedBenchmark(EvaluationRecord):
    """A benchmark as a results file describes it: its source, and how many reference answers the grader can use."""

    title: str = ""
    source: str = ""
    problems: int | None = None
    golds_parsed: int | None = None
    golds_verified: int | None = None


class ResultRow(BaseModel):
    """The measures (evaluation/measures.py) of one system on one benchmark in one decoding, by name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    system: str
    benchmark: str
    decoding: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the row: system, benchmark and decoding."""
        return self.system, self.benchmark, self.decoding

    @property
    def measures(self) -> dict[str, Any]:
        """Every measure of the row, in the order of the file."""
        return self.model_extra or {}

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy, or None if the row has none."""
        match self.measures.get("interval"):
            case [low, high]:
                bounds = _finite(low), _finite(high)
                if bounds[0] is not None and bounds[1] is not None and bounds[0] <= bounds[1]:
                    return bounds[0], bounds[1]
        return None

    def get(self, name: str) -> float | None:
        """Return a measure, or None if it was not taken or is not a finite number."""
        return _finite(self.measures.get(name))

    def named(self, prefix: str) -> dict[str, float]:
        """Return the measures whose names begin with `prefix`, without it: `stop/` -> {"answered": 0.98, …}."""
        names = [name for name in self.measures if name.startswith(prefix)]
        return {name.removeprefix(prefix): value for name in names if (value := self.get(name)) is not None}


class ComparisonRow(EvaluationRecord):
    """A system's mean of a metric minus the base system's, with its 95 % interval and p-value, on one benchmark."""

    benchmark: str
    decoding: str
    system: str
    base: str
    metric: str
    difference: float
    interval: tuple[float, float]
    p: float


class CrossPlay(EvaluationRecord):
    """The checkpoints whose long models were played with every short model."""

    long: list[str]
    short: list[str]

    @property
    def systems(self) -> set[str]:
        """The names of the systems in the matrix."""
        return {cross_name(long, short) for long in self.long for short in self.short}


class EvaluationFile(EvaluationRecord):
    """The content of `eval/<name>.json`: every row, with everything needed to repeat it. It grows while it is made."""

    model_config = ConfigDict(frozen=False)

    name: str = ""
    made: str = ""
    longshort: str = ""
    versions: dict[str, str] = {}
    settings: dict[str, Any] = {}
    faults: list[str] = []
    benchmarks: dict[str, DescribedBenchmark] = {}
    systems: dict[str, DescribedSystem]
    results: list[ResultRow]
    comparisons: list[ComparisonRow] = []
    cross_play: CrossPlay | None = None

    @classmethod
    def read(cls, path: Path) -> EvaluationFile:
        """Read a results file; raise LongShortError if it is damaged or of an older longshort."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
            raise LongShortError(f"{path} cannot be read ({reason}); remove it and evaluate again") from error

    def title(self, system: str) -> str:
        """Return the system's title, or its name if it has none."""
        described = self.systems.get(system)
        return (described.title if described else "") or system

    def add(self, system: DescribedSystem, benchmark: DescribedBenchmark, row: ResultRow) -> None:
        """Add a row; it replaces an older one of the same system, benchmark and decoding."""
        self.systems[row.system], self.benchmarks[row.benchmark] = system, benchmark
        self.results[:] = [old for old in self.results if old.key != row.key] + [row]


class GradedLine(EpisodeLine):
    """One attempt at a problem: its episode, whether the answer is correct, and the reason of the verdict."""

    id: str
    reason: str
    correct: bool
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedFile:
    """A file of graded episodes and what it holds.

    GradedFile(path=Path("eval/results/pair.gsm8k.greedy.jsonl"), system="pair", benchmark="gsm8k", decoding="greedy")
    """

    path: Path
    system: str
    benchmark: str
    decoding: str


def graded_files(folder: Path) -> tuple[list[GradedFile], list[Path]]:
    """List the episode files of `eval/<name>/`, and those whose manifest does not say what they hold."""
    files, unknown = [], []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            about = json.loads(path.with_suffix(".manifest.json").read_bytes())["about"]
            names = {key: str(about[key]) for key in ("system", "benchmark", "decoding")}
            files.append(GradedFile(path=path, **names))
        except (OSError, ValueError, KeyError, TypeError):
            unknown.append(path)
    return files, unknown


def _finite(value: Any) -> float | None:
    """Return a JSON value as a finite float, or None if it is not one."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond floats
        return None
    return number if math.isfinite(number) else None
