"""What the steps of `longshort coldstart` left behind, as far as it can be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from longshort.coldstart.records import CONTINUE, DROPPED_BEFORE, LINES, OK, SftManifest, StepManifest, TraceLine
from longshort.report.reading import parse_record, read_json, read_lines
from longshort.types import ROLES, LongShortError

Shape = TypeVar("Shape", bound=TraceLine)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFiles:
    """A step's manifest (None: not run, or unreadable) and its lines by trace."""

    name: str
    manifest: StepManifest | None
    lines: dict[str, TraceLine]

    @property
    def outcomes(self) -> Counter[str]:
        """Count the outcomes of the traces that reached this step."""
        return Counter(line.outcome for line in self.lines.values() if line.outcome != DROPPED_BEFORE)

    @property
    def dropped(self) -> list[tuple[str, list[TraceLine]]]:
        """Return the traces that this step dropped, by reason, the most frequent first."""
        reasons = [outcome for outcome, _ in self.outcomes.most_common() if outcome not in CONTINUE]
        return [(reason, [line for line in self.lines.values() if line.outcome == reason]) for reason in reasons]


@dataclass(slots=True, kw_only=True)
class ColdStartFiles:
    """Everything that the page is made from; `remarks` says what is missing or damaged."""

    steps: dict[str, StepFiles] = field(default_factory=dict)
    sft: dict[str, SftManifest] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def line(self, trace: str, shape: type[Shape]) -> Shape:
        """Return a trace's line of the step with this line class, or an empty one."""
        line = self.steps[shape.step].lines.get(trace)
        return line if isinstance(line, shape) else shape(id=trace, outcome="")

    @property
    def traces(self) -> list[str]:
        """Every trace, in the order of the first file that has it."""
        return list(dict.fromkeys(trace for step in self.steps.values() for trace in step.lines))

    def fate(self, trace: str) -> tuple[str, str]:
        """Return (step, reason) of a trace that was dropped; of others ("", "ok", "kept" or "repaired")."""
        last = OK
        for step in self.steps.values():
            outcome = step.lines[trace].outcome if trace in step.lines else OK
            if outcome not in CONTINUE:
                return ("earlier", "dropped") if outcome == DROPPED_BEFORE else (step.name, outcome)
            last = outcome if outcome != OK else last
        return "", last


def load(folder: Path) -> ColdStartFiles:
    """Read the files of every step. Raises LongShortError only for a folder that does not exist."""
    if not folder.is_dir():
        raise LongShortError(f"{folder}: no such folder; `longshort coldstart` makes it")
    files, missing, unfinished = ColdStartFiles(), [], []
    for name, shape in LINES.items():
        path, where = folder / f"{name}.jsonl", f"{name}.manifest.json"
        manifest = read_json(folder / where, StepManifest, where, files.remarks)
        read = read_lines(path, partial(parse_record, shape), path.name, files.remarks) if path.is_file() else []
        files.steps[name] = StepFiles(name=name, manifest=manifest, lines={line.id: line for _, line in read})
        missing += [name] if manifest is None and not read else []
        unfinished += [f"{name} ({len(read)} traces so far)"] if manifest and not manifest.complete else []
    for role in ROLES:
        where = f"sft.{role}/manifest.json"
        manifest = read_json(folder / where, SftManifest, where, files.remarks)
        if manifest is None:
            missing.append(f"sft of the {role} model")
        else:
            files.sft[role] = manifest
            unfinished += [] if manifest.complete else [f"sft of the {role} model"]
    files.remarks += [f"Not run yet: {', '.join(missing)}."] if missing else []
    files.remarks += [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    return files
