"""Long work on disk: one JSON line per finished item, and a manifest that says what the lines were made from.

    thoughts/chunk.jsonl             {"id": "math-7", "outcome": "ok", …}    in the order of the traces once complete
    thoughts/chunk.manifest.json     settings, hashes of the inputs, counts of outcomes and notes, seconds, "complete"

The items are the traces of a cold-start step, or the episodes of an evaluation. Interrupted work continues with the
items that have no line yet; a line cut in half by a kill or a full disk is made again. Work begun with other settings
or from other inputs is never continued.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort.runs.files import move_aside, open_whole, refuse_changes, write_json, writing
from longshort.types import LongShortError
from longshort.version import __version__

Row = dict[str, Any]


class Ledger:
    """The lines of one step; `rows` holds those written so far, by item id.

    `items` says what the items are called, `outcome` is the key of an item's outcome, `redo` the option that starts
    over. `about` goes into the manifest unchecked: it tells readers what the lines are.
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
        about: Mapping[str, str] | None = None,
    ):
        self.items, self.outcome, self.redo = items, outcome, redo or f"--redo {step}"
        self.step, self.path, self.manifest_path = step, folder / f"{step}.jsonl", folder / f"{step}.manifest.json"
        self.made_from = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
        self.about = {"about": dict(about)} if about else {}
        self.rows: dict[str, Row] = {}
        self.seconds, self.complete = 0.0, False
        if not self.path.is_file() or not self.path.stat().st_size:
            self._write_manifest({})
        elif self.manifest_path.is_file():
            self._continue(json.loads(self.manifest_path.read_text(encoding="utf-8")))
        else:
            raise LongShortError(
                f"{self.path} has lines but {self.manifest_path.name}, which says what made them, is missing; "
                f"put it back, or make the step again with {self.redo}"
            )

    def append(self, row: Row) -> None:
        """Write one item's line. Written lines survive whatever happens to this process; half a line is taken back."""
        line = encode(row)
        with writing(self.path), self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                os.truncate(self.path, size)
                raise
        self.rows[row["id"]] = row

    def finish(self, order: Sequence[str], counts: Mapping[str, Any]) -> None:
        """Put the lines of all items in order and complete the manifest, with `counts` beside its own."""
        self.rows = {item: self.rows[item] for item in order}
        _rewrite(self.path, self.rows.values())
        self.complete = True
        self._write_manifest(counts)

    def pause(self, seconds: float) -> None:
        """Add to the time spent, and record how far the step has come."""
        self.seconds += seconds
        self._write_manifest({})

    def _continue(self, manifest: Mapping[str, Any]) -> None:
        remedy = f"make it and what follows again with {self.redo}, or choose another output_dir"
        for section in ("settings", "inputs"):
            refuse_changes(self.manifest_path, manifest[section], self.made_from[section], remedy)
        self.seconds, self.complete = manifest["seconds"], manifest["complete"]
        self.rows = {row["id"]: row for row in (read(self.path) if self.complete else _repaired(self.path))}
        if self.complete and len(self.rows) != manifest["counts"][self.items]:
            raise LongShortError(
                f"{self.path} has {len(self.rows)} lines, its manifest says {manifest['counts'][self.items]}; "
                f"make it again with {self.redo}"
            )

    def _write_manifest(self, more: Mapping[str, Any]) -> None:
        rows = self.rows.values()
        counts = {
            self.items: len(rows),
            "outcomes": dict(Counter(row[self.outcome] for row in rows)),
            "notes": dict(Counter(note for row in rows for note in row.get("notes", ()))),
        }
        state = {"step": self.step, "complete": self.complete, "seconds": round(self.seconds, 2)}
        write_json(
            self.manifest_path,
            state | {"counts": counts | dict(more)} | self.about | self.made_from | {"longshort": __version__},
        )


def encode(row: Row) -> bytes:
    """Return the line of a row."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read(path: Path) -> Iterator[Row]:
    """Yield the lines of a finished ledger; raise LongShortError at a damaged one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise LongShortError(
                    f"{path}, line {number}: damaged ({error}); make the step again with --redo"
                ) from error


def _repaired(path: Path) -> list[Row]:
    """Return the whole lines of an unfinished ledger and remove damaged ones, so that their items are done again."""
    rows, damaged = [], False
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
            damaged = damaged or not line.endswith(b"\n")
        except ValueError:
            damaged = True
    if damaged:
        _rewrite(path, rows)
    return rows


def _rewrite(path: Path, rows: Iterable[Row]) -> None:
    with open_whole(path) as stream:
        stream.writelines(encode(row).decode() for row in rows)


def set_aside(folder: Path, steps: Sequence[str]) -> Path | None:
    """Move the files of these steps into `replaced-<n>`; return that folder, or None if there were no files."""
    return move_aside(folder, [path for step in steps for path in folder.glob(f"{step}.*")])
