"""A team checkpoint: both models, optimizers, schedulers, RNG and the recipe, committed at once or not at all (longshort/runs/sealed.py).

checkpoint-50/{long/, short/}        two folders that `from_pretrained` loads
checkpoint-50/state/                 optimizer, schedule position and RNG of each role
checkpoint-50/manifest.json          step, policy versions, recipe, longshort version, sha256 of every file
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshort.runs import sealed
from longshort.runs.sealed import MANIFEST
from longshort.types import LongShortError

__all__ = ["MANIFEST", "begin", "commit", "latest", "prune", "steps", "verify"]


def begin(output_dir: Path, step: int) -> Path:
    """An empty hidden folder to write checkpoint `step` into; leftovers of interrupted saves are removed."""
    for leftover in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover)
    folder = output_dir / f".checkpoint-{step}"
    (folder / "state").mkdir(parents=True)
    return folder


def commit(folder: Path, facts: dict[str, Any]) -> Path:
    """Hash, flush and publish what `begin` returned; `facts` (step, versions, …) go into the manifest. Returns the final folder."""
    return sealed.seal(folder, folder.with_name(folder.name.removeprefix(".")), "checkpoint", facts)


def verify(folder: Path, parts: Sequence[str] = sealed.EVERYTHING) -> dict[str, Any]:
    """The manifest of a complete, unaltered checkpoint, or of these parts of it; LongShortError says what is wrong with it."""
    return sealed.verify(folder, "checkpoint", "resume from an older checkpoint", parts)


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """The visible checkpoints, oldest first."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest(output_dir: Path) -> Path:
    """The newest checkpoint of a run, not yet verified; raises LongShortError if there is none."""
    found = steps(output_dir)
    if not found:
        raise LongShortError(
            f"nothing to resume: {output_dir} holds no checkpoint-<step> folder; start without --resume"
        )
    return found[-1][1]


def prune(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for _, folder in steps(output_dir)[:-keep]:
        shutil.rmtree(folder)
