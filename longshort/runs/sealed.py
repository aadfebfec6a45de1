"""A sealed folder: written under a hidden name, listed file by file in `manifest.json`, published by one rename.
Nothing is unpickled.

Checkpoints and team folders are sealed. A crash at any point leaves what was there before, whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort.runs.files import file_digest
from longshort.types import LongShortError

MANIFEST = "manifest.json"
EVERYTHING = ("",)


def seal(partial: Path, final: Path, kind: str, facts: Mapping[str, Any], parts: Sequence[str] = EVERYTHING) -> Path:
    """Hash, flush and publish the hidden folder `partial` as `final`, in place of an older one.

    The manifest holds the format `longshort-<kind>-1`, `facts`, and the hash and size of every file whose path begins
    with one of `parts`.
    """
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        _flush(path)
        if (name := path.relative_to(partial).as_posix()).startswith(tuple(parts)):
            files[name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"format": _format_of(kind), **facts, "files": files}, indent=1))
    _flush(manifest)
    old = final.with_name(f".{final.name}-old")
    if final.exists():  # it stays whole until the new one replaces it
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _flush(final.parent)
    return final


def verify(folder: Path, kind: str, remedy: str, parts: Sequence[str] = EVERYTHING) -> dict[str, Any]:
    """Return the manifest of a complete, unaltered folder; raise LongShortError naming the folder, the file and the
    damage.

    Only files whose path begins with one of `parts` are checked: ("long/", "short/") leaves out what only training
    needs.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise LongShortError(f"{folder} is not a finished longshort {kind}: it has no {MANIFEST}")
    try:
        facts = json.loads(manifest.read_text())
    except (ValueError, RecursionError) as error:
        raise LongShortError(f"{kind} {folder}: {MANIFEST} is damaged ({error}); {remedy}") from error
    form = facts.get("format") if isinstance(facts, dict) else facts
    if form != _format_of(kind):
        raise LongShortError(f"{folder} is a foreign {kind}: format {form!r}, expected {_format_of(kind)!r}")
    files = facts.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise LongShortError(f"{kind} {folder}: {MANIFEST} is damaged (it lists no files); {remedy}")
    for name, entry in files.items():
        if name.startswith(tuple(parts)) and (damage := _damage(folder / name, entry)):
            raise LongShortError(f"{kind} {folder}: {name} is {damage}; {remedy}")
    return facts


def _format_of(kind: str) -> str:
    return f"longshort-{kind}-1"


def _damage(path: Path, entry: Mapping[str, Any]) -> str:
    """Return how a file differs from its manifest entry; empty if it does not."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != entry.get("bytes"):
        return f"truncated: {path.stat().st_size} bytes, {entry.get('bytes')} were written"
    return "" if file_digest(path) == entry.get("sha256") else "altered (its sha256 differs)"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
