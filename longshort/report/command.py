"""`longshort report`: the page of one or several runs, written once or whenever the runs have gone on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from longshort import console
from longshort.report.report_page import write_report
from longshort.types import LongShortError

WATCHED = ("recipe.yaml", "metrics.jsonl", "episodes/*.jsonl", "eval/*.json", "eval/*/*.jsonl")
"""The files of a run's folder that the page is made from."""


def report(folders: Sequence[Path], *, output: Path | None, episodes: int, size_mb: float, watch: int | None) -> Path:
    """Write the page and print its path. With `watch`, look for changes every `watch` seconds until Ctrl-C.

    Raises LongShortError for a folder that holds no run and for numbers out of range.
    """
    if episodes < 0 or size_mb <= 0 or (watch is not None and watch < 1):
        raise LongShortError(
            f"--episodes {episodes}, --size {size_mb:g}, --watch {watch}: give at least 0, more than 0, and at least 1"
        )
    began, before = time.monotonic(), state(folders)
    path = write_report(folders, output=output, episodes=episodes, size_mb=size_mb, refresh=watch)
    console.say(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {console.duration(time.monotonic() - began)})")
    if watch:
        console.say(f"checking every {watch} s for new results; the page reloads itself; Ctrl-C ends this")
    while watch:
        time.sleep(watch)
        if (now := state(folders)) != before:
            before = now
            write_report(folders, output=output, episodes=episodes, size_mb=size_mb, refresh=watch)
            console.say(f"{time.strftime('%H:%M:%S')} {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def state(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return name, size and time of every file that the page is made from."""
    paths = sorted(path for folder in folders for pattern in WATCHED for path in folder.glob(pattern))
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
