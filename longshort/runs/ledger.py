"""Long work on disk: one JSON line per item, appended as items are finished, and a manifest that says what they were made from.

    thoughts/chunk.jsonl             {"id": "math-7", "outcome": "ok", …}     in the order of the traces once the step is complete
    thoughts/chunk.manifest.json     settings, hashes of the inputs, counts of outcomes and notes, seconds, complete or not

The items are the traces of a cold start's step, or the episodes of an evaluation. Work that was interrupted continues with the items that
have no line yet; a line cut in half by a kill or a full disk is made again. Work begun with other settings or from other inputs is never
continued: LongShortError names what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longshort.types import LongShortError
from longshort.version import __version__

Row = dict[str, Any]


class Ledger:
    """The lines of one step; `rows` holds those written so far, by item id.

    `items` names them, `outcome` is the key of what became of one, `redo` is the option that starts over.
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        items: str = "traces",
        outcome: str = "outcome",
        redo: str = "",
    ):
        self.items, self.outcome, self.redo = items, outcome, redo or f"--redo {step}"
        self.step, self.path, self.manifest_path = step, folder / f"{step}.jsonl", folder / f"{step}.manifest.json"
        self.made_from = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
        self.rows: dict[str, Row] = {}
        self.seconds, self.complete = 0.0, False
        folder.mkdir(parents=True, exist_ok=True)
        written = self.path.is_file() and self.path.stat().st_size > 0
        if written and not self.manifest_path.is_file():
            raise LongShortError(
                f"{self.path} has lines but {self.manifest_path.name} is missing, so nobody knows what made them; put it back, or "
                f"make the step again with {self.redo}"
            )
        if written:
            self._continue(json.loads(self.manifest_path.read_text()))
        else:
            self._write_manifest({})

    def append(self, row: Row) -> None:
        """Write one item's line. What has been written stays, whatever happens next to this process; half a line is taken back."""
        line = encode(row)
        with _writing(self.path), self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                os.truncate(self.path, size)
                raise
        self.rows[row["id"]] = row

    def finish(self, order: Sequence[str], counts: Mapping[str, Any]) -> None:
        """Every item has its line: put them in order and complete the manifest."""
        self.rows = {item: self.rows[item] for item in order}
        partial = self.path.with_suffix(".tmp")
        with _writing(self.path):
            with partial.open("wb") as file:
                file.writelines(map(encode, self.rows.values()))
            partial.replace(self.path)
        self.complete = True
        self._write_manifest(counts)

    def pause(self, seconds: float) -> None:
        """Add to the time spent, and write down how far the step has come."""
        self.seconds += seconds
        self._write_manifest({})

    def _continue(self, manifest: Mapping[str, Any]) -> None:
        before = {key: manifest[key] for key in self.made_from}
        if before != self.made_from:
            raise LongShortError(
                f"{self.manifest_path}: this step was made {_difference(before, self.made_from)}; "
                f"make it and what follows again with {self.redo}, or choose another output_dir"
            )
        self.seconds, self.complete = manifest["seconds"], manifest["complete"]
        self.rows = {row["id"]: row for row in (read(self.path) if self.complete else _repaired(self.path))}
        if self.complete and len(self.rows) != manifest["counts"][self.items]:
            raise LongShortError(
                f"{self.path} has {len(self.rows)} lines, its manifest says {manifest['counts'][self.items]}; make it again with "
                f"{self.redo}"
            )

    def _write_manifest(self, more: Mapping[str, Any]) -> None:
        rows = self.rows.values()
        counts = {
            self.items: len(rows),
            "outcomes": dict(Counter(row[self.outcome] for row in rows)),
            "notes": dict(Counter(note for row in rows for note in row.get("notes", ()))),
        }
        manifest = {
            "step": self.step,
            "complete": self.complete,
            "seconds": round(self.seconds, 2),
            "counts": counts | dict(more),
        }
        partial = self.manifest_path.with_suffix(".tmp")
        with _writing(self.manifest_path):
            partial.write_text(
                json.dumps(manifest | self.made_from | {"longshort": __version__}, indent=1, ensure_ascii=False)
            )
            os.replace(partial, self.manifest_path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that is full is told as such, wherever it is met."""
    try:
        yield
    except OSError as error:
        raise LongShortError(
            f"{path} cannot be written ({error.strerror}); make room and start the same command again"
        ) from error


def encode(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read(path: Path) -> Iterator[Row]:
    """The lines of a finished ledger, one at a time; LongShortError for a damaged one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise LongShortError(
                    f"{path}, line {number}: damaged ({error}); make the step again with --redo"
                ) from error


def _repaired(path: Path) -> list[Row]:
    """The whole lines of an unfinished ledger; a damaged one is left out, so that its item is done again."""
    rows, damaged = [], False
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
            damaged = damaged or not line.endswith(b"\n")
        except ValueError:
            damaged = True
    if damaged:
        partial = path.with_suffix(".tmp")
        partial.write_bytes(b"".join(map(encode, rows)))
        partial.replace(path)
    return rows


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(folder: Path, steps: Sequence[str]) -> Path | None:
    """Move what these steps made into `replaced-<n>`; returns that folder, None where there was nothing."""
    found = [path for step in steps for path in folder.glob(f"{step}.*")]
    if not found:
        return None
    number = 1 + sum(1 for _ in folder.glob("replaced-*"))
    target = folder / f"replaced-{number}"
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target


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
