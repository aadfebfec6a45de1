"""What the steps of `longshort coldstart` left behind, as far as it can be read: damage becomes a sentence, never an exception."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from longshort.coldstart.records import CONTINUE, DROPPED_BEFORE
from longshort.coldstart.steps import STEPS
from longshort.report.reading import reason
from longshort.runs.ledger import read
from longshort.types import ROLES, LongShortError


class _Shape(BaseModel):
    """Only finite numbers; what the page does not show is left out."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Line(_Shape):
    """One trace's line in any step's file."""

    id: str
    outcome: str
    detail: str = ""


class _Problem(_Shape):
    question: str = ""
    answer: str = ""


class _Thought(_Shape):
    text: str
    kind: str


class Chunk(Line):
    notes: list[str] = []
    problem: _Problem = _Problem()
    splitter: str = ""
    why: str = ""
    tries: int = 0
    thoughts: list[_Thought] = []


class Rollouts(Line):
    n: int = 0
    tokens: list[int] = []
    correct: list[int] = []
    length: list[float] = []


class _Score(_Shape):
    m: float
    delta: float
    p: float
    low: float
    high: float
    bound: float
    loose_bound: float


class Importance(Line):
    tokens: list[int] = []
    p0: float = 0.0
    n: list[int] = []
    scores: list[_Score] = []


class Partition(Line):
    long: list[bool] = []
    messages: list[tuple[str, list[int]]] = []


class Rewrite(Line):
    tries: int = 0
    dialogue: list[tuple[str, str, str]] = []


LINES: dict[str, type[Line]] = {
    "chunk": Chunk,
    "rollouts": Rollouts,
    "importance": Importance,
    "partition": Partition,
    "rewrite": Rewrite,
    "rows": Line,
}
"""What a line of each step looks like; of the training rows (two lists of token ids per trace) only the outcome is kept."""


Shape = TypeVar("Shape", bound=Line)


class Gain(_Shape):
    n: int
    mean: float


class Counts(_Shape):
    """Of a manifest; what a step counts besides is in `model_extra`."""

    model_config = ConfigDict(extra="allow")
    outcomes: dict[str, int] = {}
    notes: dict[str, int] = {}
    gain_by_kind: dict[str, Gain] = {}


class Manifest(_Shape):
    complete: bool
    seconds: float
    counts: Counts
    settings: dict[str, Any]
    longshort: str = ""


class Sft(_Shape):
    """The manifest of one role's fine-tuning."""

    base: str
    complete: bool
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = []
    sft: dict[str, Any] = {}


Made = TypeVar("Made", Manifest, Sft)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFiles:
    """A step's manifest (None: not run, or unreadable) and its lines by trace."""

    name: str
    title: str
    manifest: Manifest | None
    lines: dict[str, Line]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many traces of every outcome: counted from the lines where there are any, else as the manifest says."""
        if self.lines or self.manifest is None:
            return dict(Counter(line.outcome for line in self.lines.values()))
        return self.manifest.counts.outcomes

    @property
    def drops(self) -> dict[str, int]:
        """The outcomes that ended a trace's way in this very step, most frequent first."""
        here = {name: count for name, count in self.outcomes.items() if name not in (*CONTINUE, DROPPED_BEFORE)}
        return dict(sorted(here.items(), key=lambda item: -item[1]))


@dataclass(slots=True, kw_only=True)
class Files:
    """Everything that the page is made from. `remarks` says in whole sentences what is missing or damaged;
    `absent` has the names of the steps that left no file."""

    folder: Path
    steps: dict[str, StepFiles] = field(default_factory=dict)
    sft: dict[str, Sft] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def setting(self, step: str, name: str) -> Any:
        """One setting that a step was made with, or None."""
        manifest = self.steps[step].manifest
        return manifest.settings.get(name) if manifest else None

    def all(self, shape: type[Shape]) -> list[Shape]:
        """The lines of the step that writes such."""
        return [line for step in self.steps.values() for line in step.lines.values() if isinstance(line, shape)]

    def line(self, trace: str, shape: type[Shape]) -> Shape:
        """A trace's line of the step that writes such; without one, an empty line."""
        found = (step.lines.get(trace) for step in self.steps.values())
        return next((line for line in found if isinstance(line, shape)), shape(id=trace, outcome=""))

    def traces(self) -> list[str]:
        """Every trace, in the order of the first file that has it."""
        return list(dict.fromkeys(trace for step in self.steps.values() for trace in step.lines))

    def fate(self, trace: str) -> tuple[str, str]:
        """(step, outcome) where a trace was dropped; ("", "kept", "repaired" or "ok") of one that was not."""
        last = "ok"
        for step in self.steps.values():
            outcome = step.lines[trace].outcome if trace in step.lines else "ok"
            if outcome == DROPPED_BEFORE:
                return "earlier", "dropped"
            if outcome not in CONTINUE:
                return step.name, outcome
            last = outcome if outcome != "ok" else last
        return "", last


def load(folder: Path) -> Files:
    """Read what is there. LongShortError only for a folder that does not exist."""
    if not folder.is_dir():
        raise LongShortError(f"{folder}: no such folder; `longshort coldstart` makes it")
    files = Files(folder=folder)
    for name, step in STEPS.items():
        manifest = _manifest(folder / f"{name}.manifest.json", Manifest, files.remarks)
        lines = _lines(folder / f"{name}.jsonl", LINES[name], manifest is None or not manifest.complete, files.remarks)
        files.steps[name] = StepFiles(name=name, title=step.title, manifest=manifest, lines=lines)
    for role in ROLES:
        found = _manifest(folder / f"sft.{role}" / "manifest.json", Sft, files.remarks)
        if found is not None:
            files.sft[role] = found
    files.absent = [name for name in STEPS if not any(folder.glob(f"{name}.*"))]
    files.remarks[:0] = _missing(files)
    return files


def _manifest(path: Path, shape: type[Made], remarks: list[str]) -> Made | None:
    """The manifest as `shape`, or None; damage is remarked."""
    if not path.is_file():
        return None
    try:
        return shape.model_validate(json.loads(path.read_bytes()))
    except ValueError as error:
        remarks.append(f"{_short(path)} cannot be read ({reason(error)}), so its counts and settings are not shown.")
        return None


def _lines(path: Path, shape: type[Line], unfinished: bool, remarks: list[str]) -> dict[str, Line]:
    """The readable lines by trace; what is not readable is remarked."""
    if not path.is_file():
        return {}
    try:
        rows = list(read(path))
    except LongShortError as error:
        rows, damaged = _salvaged(path.read_bytes().rstrip(b"\n").split(b"\n"))
        if (
            damaged != [len(rows) + 1] or not unfinished
        ):  # else a line that is being written, or was cut in half by a kill
            remarks.append(
                f"{str(error).replace(str(path), path.name)}. Shown is what can be read: {len(rows)} lines of {len(rows) + len(damaged)}."
            )
    lines, wrong = {}, []
    for row in rows:
        try:
            line = shape.model_validate(row)
            lines[line.id] = line
        except ValidationError as error:
            wrong.append(reason(error))
    if wrong:
        remarks.append(
            f"{len(wrong)} of {len(rows)} lines of {path.name} are left out, as the step does not write such ({wrong[0]})."
        )
    return lines


def _salvaged(raw: list[bytes]) -> tuple[list[Any], list[int]]:
    """What the undamaged lines hold, and the numbers of the others."""
    rows, damaged = [], []
    for number, line in enumerate(raw, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            damaged.append(number)
    return rows, damaged


def _missing(files: Files) -> Iterator[str]:
    """A sentence for the steps that have not run, and one for each that is unfinished."""
    untrained = [
        f"sft of the {role} model" for role in ROLES if not (files.folder / f"sft.{role}" / "manifest.json").is_file()
    ]
    if files.absent or untrained:
        yield f"Not run yet: {', '.join(files.absent + untrained)}."
    for name, step in files.steps.items():
        if step.manifest is not None and not step.manifest.complete:
            yield f"The step {name} is not finished: {len(step.lines)} traces so far."
    for role, sft in files.sft.items():
        if not sft.complete:
            yield f"Fine-tuning of the {role} model is not finished."


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.name == "manifest.json" else path.name
