"""The files of episodes that runs left behind: where every episode stands, and one line read back, whatever state it is in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from longshort.report.reading import reason

TRAINING, EVALUATION = "training", "evaluation"


class Run(Protocol):
    """A run folder and the name that the page gives it."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path: ...


class _Shape(BaseModel):
    """What the viewer does not show is left out. Numbers may be NaN or infinite here; the page says of those that there is none."""

    model_config = ConfigDict(extra="ignore")


class LineProblem(_Shape):
    id: str
    question: str = ""
    answer: str = ""


class LineTurn(_Shape):
    """`context_ids` is None in lines of the time before they were kept."""

    role: str
    text: str = ""
    stop: str = ""
    version: int | None = None
    context_ids: list[int] | None = None
    token_ids: list[int] = []
    logprobs: list[float | None] = []


class Line(_Shape):
    """One episode as longshort/runs/episodes.py writes it, with what training or an evaluation added."""

    problem: LineProblem
    turns: list[LineTurn]
    stop: str = "unknown"
    step: int | None = None
    correct: bool | None = None
    reason: str = ""
    reward: dict[str, float | None] = {}
    terms: dict[str, float | None] = {}
    advantages: dict[str, float | None] = {}
    gaps: dict[str, list[float | None]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where episodes come from: a run's training, or one file of one of its evaluations. `run` counts the runs given; `step` is that of
    the weights evaluated, for evaluations made during training."""

    run: int
    kind: str
    evaluation: str = ""
    system: str = ""
    benchmark: str = ""
    decoding: str = ""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one episode stands: `source` counts Found.sources, `ordinal` the episodes of this problem, source and step."""

    source: int
    step: int | None
    problem: str
    ordinal: int
    path: Path
    offset: int
    size: int


@dataclass(slots=True, kw_only=True)
class Found:
    """Every readable episode of the runs; `remarks` says in whole sentences what could not be read."""

    sources: list[Source] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find(runs: Sequence[Run]) -> Found:
    """Read all episode files of the runs once, line by line; only the places of the episodes stay in memory."""
    found = Found()
    for number, run in enumerate(runs):
        training = sorted(run.folder.glob("episodes/step-*.jsonl"))
        if training:
            found.sources.append(Source(run=number, kind=TRAINING))
            source, seen = len(found.sources) - 1, Counter()
            for path in training:
                found.places += _places(path, source, seen, f"{run.name}/{path.relative_to(run.folder)}", found)
        for path in sorted(run.folder.glob("eval/*/*.jsonl"), key=_steps_as_numbers):
            found.sources.append(evaluation_source(number, path))
            found.places += _places(
                path, len(found.sources) - 1, Counter(), f"{run.name}/{path.relative_to(run.folder)}", found
            )
    return found


def evaluation_source(run: int, path: Path) -> Source:
    """eval/training/step-40.miniature:test.sampled.jsonl -> evaluation "training" of the system "step-40", and so on."""
    system, _, rest = path.name.removesuffix(".jsonl").partition(".")
    benchmark, _, decoding = rest.rpartition(".")
    step = re.fullmatch(r"step-(\d+)", system)
    return Source(
        run=run,
        kind=EVALUATION,
        evaluation=path.parent.name,
        system=system,
        benchmark=benchmark,
        decoding=decoding,
        step=int(step[1]) if step else None,
    )


def _steps_as_numbers(path: Path) -> tuple[str, list[str | int]]:
    """step-20 stands before step-100."""
    return path.parent.name, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _places(path: Path, source: int, seen: Counter, told: str, found: Found) -> Iterator[Place]:
    """The readable lines of a file; one remark about the others, naming the first."""
    damaged, step = [], found.sources[source].step
    try:
        for number, offset, raw in _lines(path):
            try:
                line = read_line(raw)
            except (ValueError, RecursionError) as error:
                damaged.append((number, reason(error)))
                continue
            key = (line.step, line.problem.id)
            yield Place(
                source=source,
                step=step if line.step is None else line.step,
                problem=line.problem.id,
                ordinal=seen[key],
                path=path,
                offset=offset,
                size=len(raw),
            )
            seen[key] += 1
    except OSError as error:
        found.remarks.append(f"{told} cannot be read ({error.strerror}), so its episodes are not shown.")
    if damaged:
        more = f", and so are {len(damaged) - 1} more of its lines" if len(damaged) > 1 else ""
        found.remarks.append(
            f"{told}, line {damaged[0][0]}: no episode ({damaged[0][1]}){more}; the rest of the file is shown."
        )


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset, bytes) of every line that is not blank."""
    offset = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if raw.strip():
                yield number, offset, raw
            offset += len(raw)


def read_line(raw: bytes) -> Line:
    """Raises ValueError or RecursionError for bytes that are no episode. A lone surrogate, which UTF-8 cannot write, becomes �."""
    try:
        return Line.model_validate_json(raw)
    except ValidationError:
        text = json.dumps(json.loads(raw), ensure_ascii=False)
        return Line.model_validate_json(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def reread(place: Place) -> Line:
    """The episode at a place. Raises ValueError, RecursionError or OSError if the file has changed since."""
    with place.path.open("rb") as stream:
        stream.seek(place.offset)
        return read_line(stream.read(place.size))
