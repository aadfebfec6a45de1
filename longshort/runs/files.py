"""Writing files so that a reader never meets half of one, and refusing to mix results of different settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from longshort.types import LongShortError


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears under its name only when it is complete; makes its folder."""
    with open_whole(path) as stream:
        stream.write(text)


@contextmanager
def open_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing. It replaces an older one when the block ends, but not if the block raises."""
    partial = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as stream:
                yield stream
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write, such as a full disk, into a LongShortError with the remedy."""
    try:
        yield
    except OSError as error:
        raise LongShortError(
            f"{path} cannot be written ({error.strerror}); make room and start the same command again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(texts: Iterable[str]) -> str:
    """Return the SHA-256 of a sequence of texts, boundaries included."""
    total = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()


def refuse_changes(
    what: object, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str, ignored: Collection[str] = ()
) -> None:
    """Raise LongShortError if a setting of `what` differs from the one it was made with, naming both values."""
    for key in sorted(before.keys() | now.keys()):
        if key not in ignored and before.get(key) != now.get(key):
            raise LongShortError(f"{what} was made with {key} = {before.get(key)!r}, now {now.get(key)!r}; {remedy}")


def move_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move files and folders of `folder` into `replaced-<n>` there; return that folder, or None for no paths."""
    if not paths:
        return None
    target = folder / f"replaced-{1 + sum(1 for _ in folder.glob('replaced-*'))}"
    for path in paths:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return target


def replace_folder(partial: Path, final: Path) -> None:
    """Move a finished folder to its place; an older one there is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
