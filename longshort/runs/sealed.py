"""A sealed folder: written in hiding, listed file by file with its hash in `manifest.json`, made visible by one rename. Never unpickled.

Checkpoints and team folders are such folders. A crash at any point leaves what was there before, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort.types import LongShortError

MANIFEST = "manifest.json"
EVERYTHING = ("",)


def seal(partial: Path, final: Path, kind: str, facts: Mapping[str, Any], parts: Sequence[str] = EVERYTHING) -> Path:
    """Hash, flush and publish the hidden folder `partial` as `final`, in place of an older one.

    The manifest holds the format `longshort-<kind>-1`, `facts`, and the hash and size of every file whose path begins with one of `parts`.
    """
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        _flush(path)
        if (name := path.relative_to(partial).as_posix()).startswith(tuple(parts)):
            files[name] = {"sha256": _hash(path), "bytes": path.stat().st_size}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"format": format_of(kind), **facts, "files": files}, indent=1))
    _flush(manifest)
    old = final.with_name(f".{final.name}-old")
    if final.exists():  # it stays whole until the new one is in its place
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _flush(final.parent)
    return final


def verify(folder: Path, kind: str, remedy: str, parts: Sequence[str] = EVERYTHING) -> dict[str, Any]:
    """The manifest of a complete, unaltered folder; LongShortError naming the folder, the file and what is wrong with it.

    Only files whose path begins with one of `parts` are looked at: ("long/", "short/") leaves out what only training needs.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise LongShortError(f"{folder} is not a finished longshort {kind}: it has no {MANIFEST}")
    try:
        facts = json.loads(manifest.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LongShortError(f"{kind} {folder}: {MANIFEST} is damaged ({error}); {remedy}") from error
    found = facts.get("format") if isinstance(facts, dict) else facts
    if found != format_of(kind):
        raise LongShortError(f"{folder} is a foreign {kind}: format {found!r}, expected {format_of(kind)!r}")
    for name, entry in facts["files"].items():
        if name.startswith(tuple(parts)):
            _check(folder / name, entry, f"{kind} {folder}: {name}", remedy)
    return facts


def format_of(kind: str) -> str:
    return f"longshort-{kind}-1"


def _check(path: Path, entry: Mapping[str, Any], where: str, remedy: str) -> None:
    if not path.is_file():
        raise LongShortError(f"{where} is missing; {remedy}")
    if path.stat().st_size != entry["bytes"]:
        raise LongShortError(
            f"{where} is truncated: {path.stat().st_size} bytes, {entry['bytes']} were written; {remedy}"
        )
    if _hash(path) != entry["sha256"]:
        raise LongShortError(f"{where} is altered (its sha256 differs); {remedy}")


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
