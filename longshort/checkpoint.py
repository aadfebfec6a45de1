"""A team checkpoint: both models, optimizers, schedulers, RNG and the recipe, committed at once or not at all.

Everything is written into a hidden folder beside the target, each file flushed to disk and listed with its hash in `manifest.json`; one
rename makes it visible. So a crash at any point leaves the previous checkpoint untouched. Nothing is ever unpickled.

    checkpoint-50/{long/, short/}        two folders that `from_pretrained` loads
    checkpoint-50/state/                 optimizer, schedule position and RNG of each role
    checkpoint-50/manifest.json          step, policy versions, recipe, longshort version, sha256 of every file
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from longshort.types import LongShortError

FORMAT = "longshort-checkpoint-1"
MANIFEST = "manifest.json"


def begin(output_dir: Path, step: int) -> Path:
    """An empty hidden folder to write checkpoint `step` into; leftovers of interrupted saves are removed."""
    for leftover in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover)
    folder = output_dir / f".checkpoint-{step}"
    (folder / "state").mkdir(parents=True)
    return folder


def commit(folder: Path, facts: dict[str, Any]) -> Path:
    """Hash, flush and publish what `begin` returned; `facts` (step, versions, …) go into the manifest. Returns the final folder."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": _hash(path), "bytes": path.stat().st_size}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, **facts, "files": files}, indent=1))
    _flush(manifest)
    final = folder.with_name(folder.name.removeprefix("."))
    if final.exists():  # the same step again: the older copy stays whole until the new one is in its place
        old = folder.with_name(f".checkpoint-old-{final.name}")
        final.rename(old)
        folder.rename(final)
        shutil.rmtree(old)
    else:
        folder.rename(final)
    _flush(final.parent)
    return final


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a complete, unaltered checkpoint; raises LongShortError naming the folder, the file and what is wrong with it."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise LongShortError(f"{folder} is not a finished longshort checkpoint: it has no {MANIFEST}")
    try:
        facts = json.loads(manifest.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LongShortError(f"checkpoint {folder}: {MANIFEST} is damaged ({error}); resume from an older checkpoint") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise LongShortError(
            f"{folder} is a foreign checkpoint: format {facts.get('format') if isinstance(facts, dict) else facts!r}, expected {FORMAT!r}"
        )
    for name, entry in facts["files"].items():
        path = folder / name
        if not path.is_file():
            raise LongShortError(f"checkpoint {folder}: {name} is missing; resume from an older checkpoint")
        if path.stat().st_size != entry["bytes"]:
            raise LongShortError(
                f"checkpoint {folder}: {name} is truncated: {path.stat().st_size} bytes, {entry['bytes']} were written; "
                "resume from an older checkpoint"
            )
        if _hash(path) != entry["sha256"]:
            raise LongShortError(f"checkpoint {folder}: {name} is altered (its sha256 differs); resume from an older checkpoint")
    return facts


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """The visible checkpoints, oldest first."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest(output_dir: Path) -> Path:
    """The newest checkpoint of a run, not yet verified; raises LongShortError if there is none."""
    found = steps(output_dir)
    if not found:
        raise LongShortError(f"nothing to resume: {output_dir} holds no checkpoint-<step> folder; start without --resume")
    return found[-1][1]


def prune(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for _, folder in steps(output_dir)[:-keep]:
        shutil.rmtree(folder)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
