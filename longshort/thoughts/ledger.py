"""A step's results on disk: one JSON line per trace, appended as traces are finished, and a manifest that says what they were made from.

    thoughts/chunk.jsonl             {"id": "math-7", "outcome": "ok", …}     in the order of the traces once the step is complete
    thoughts/chunk.manifest.json     settings, hashes of the inputs, counts of outcomes and notes, seconds, complete or not

A step that was interrupted continues with the traces that have no line yet; a line cut in half by a kill is written again. A step made
with other settings or from other inputs is never continued: LongShortError names what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort import __version__
from longshort.types import LongShortError

Row = dict[str, Any]


class Ledger:
    """The lines of one step; `rows` holds those written so far, by trace id."""

    def __init__(self, folder: Path, step: str, settings: Mapping[str, Any], inputs: Mapping[str, str]):
        self.step, self.path, self.manifest_path = step, folder / f"{step}.jsonl", folder / f"{step}.manifest.json"
        self.made_from = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
        self.rows: dict[str, Row] = {}
        self.seconds, self.complete = 0.0, False
        folder.mkdir(parents=True, exist_ok=True)
        if self.manifest_path.is_file():
            self._continue(json.loads(self.manifest_path.read_text()))
        else:
            self.path.unlink(missing_ok=True)
            self._write_manifest({})

    def append(self, row: Row) -> None:
        """Write one trace's line; it survives whatever happens next."""
        with self.path.open("ab") as file:
            file.write(encode(row))
        self.rows[row["id"]] = row

    def finish(self, order: Sequence[str], extra: Mapping[str, Any]) -> None:
        """Every trace has its line: put them in the order of the traces and complete the manifest."""
        self.rows = {trace: self.rows[trace] for trace in order}
        partial = self.path.with_suffix(".tmp")
        partial.write_bytes(b"".join(map(encode, self.rows.values())))
        partial.replace(self.path)
        self.complete = True
        self._write_manifest(extra)

    def pause(self, seconds: float) -> None:
        """Add to the time spent, and write down how far the step has come."""
        self.seconds += seconds
        self._write_manifest({})

    def _continue(self, manifest: Mapping[str, Any]) -> None:
        before = {key: manifest[key] for key in self.made_from}
        if before != self.made_from:
            raise LongShortError(
                f"{self.manifest_path}: this step was made {_difference(before, self.made_from)}; "
                f"make it and what follows again with --redo {self.step}, or choose another output_dir"
            )
        self.seconds, self.complete = manifest["seconds"], manifest["complete"]
        self.rows = {row["id"]: row for row in read(self.path, repair=not self.complete)}
        if self.complete and len(self.rows) != manifest["counts"]["traces"]:
            raise LongShortError(
                f"{self.path} has {len(self.rows)} lines, its manifest says {manifest['counts']['traces']}; make it again with --redo "
                f"{self.step}"
            )

    def _write_manifest(self, extra: Mapping[str, Any]) -> None:
        rows = self.rows.values()
        counts = {
            "traces": len(rows),
            "outcomes": dict(Counter(row["outcome"] for row in rows)),
            "notes": dict(Counter(note for row in rows for note in row.get("notes", ()))),
        }
        manifest = {"step": self.step, "complete": self.complete, "seconds": round(self.seconds, 2), "counts": counts | dict(extra)}
        partial = self.manifest_path.with_suffix(".tmp")
        partial.write_text(json.dumps(manifest | self.made_from | {"longshort": __version__}, indent=1, ensure_ascii=False))
        os.replace(partial, self.manifest_path)


def encode(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read(path: Path, repair: bool = False) -> list[Row]:
    """The lines of a ledger. `repair` cuts off a last line that a kill left half-written; any other damage is a LongShortError."""
    raw = path.read_bytes() if path.is_file() else b""
    whole, newline, rest = raw.rpartition(b"\n")
    if rest and repair:
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    lines = whole.split(b"\n") if whole else []
    if rest and not repair:
        lines.append(rest)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise LongShortError(f"{path}, line {number}: damaged ({error}); make the step again with --redo") from error
    return rows


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forget(folder: Path, steps: Sequence[str]) -> None:
    """Delete what these steps made."""
    for step in steps:
        for path in folder.glob(f"{step}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings and inputs are not what they were, each with both values."""
    told = []
    for section in before:
        for key in sorted({*before[section], *now[section]}):
            old, new = before[section].get(key), now[section].get(key)
            if old != new and section == "inputs":
                told.append(f"from another {key}")
            elif old != new:
                told.append(f"with {key} = {old!r}, now {new!r}")
    return ", ".join(told)
