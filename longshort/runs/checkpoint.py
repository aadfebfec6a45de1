"""A team checkpoint: both models, optimizers, schedulers, RNG and the recipe, committed together or not at all
(runs/sealed.py).

checkpoint-50/{long/, short/}        two folders that `from_pretrained` loads
checkpoint-50/state/                 optimizer, schedule position and RNG of each role
checkpoint-50/manifest.json          step, policy versions, recipe, longshort version, sha256 of every file
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.runs import sealed
from longshort.runs.sealed import MANIFEST as MANIFEST
from longshort.types import LongShortError


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint whose files are all unaltered, and its manifest. Pass it on instead of hashing again."""

    folder: Path
    facts: dict[str, Any]


def begin(output_dir: Path, step: int) -> Path:
    """Make an empty hidden folder to write checkpoint `step` into; remove leftovers of interrupted saves."""
    for leftover in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover)
    folder = output_dir / f".checkpoint-{step}"
    (folder / "state").mkdir(parents=True)
    return folder


def commit(folder: Path, facts: dict[str, Any]) -> Path:
    """Hash, flush and publish what `begin` returned; `facts` go into the manifest. Return the final folder."""
    return sealed.seal(folder, folder.with_name(folder.name.removeprefix(".")), "checkpoint", facts)


def verify(folder: Path, parts: Sequence[str] = sealed.EVERYTHING) -> dict[str, Any]:
    """Return the manifest if these parts are complete and unaltered; LongShortError names the damage."""
    return sealed.verify(folder, "checkpoint", "resume from an older checkpoint", parts)


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """List the visible checkpoints, oldest first."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def latest(output_dir: Path) -> Path:
    """Return the newest checkpoint of a run, not yet verified; raise LongShortError if there is none."""
    if not (saved := steps(output_dir)):
        raise LongShortError(
            f"nothing to resume: {output_dir} holds no checkpoint-<step> folder; start without --resume"
        )
    return saved[-1][1]


def prune(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for _, folder in steps(output_dir)[:-keep]:
        shutil.rmtree(folder)
