"""`longshort report`: the page of one or several runs, once or again whenever they have gone on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from longshort import console
from longshort.report.report_page import write_report
from longshort.types import LongShortError

WATCHED = ("recipe.yaml", "metrics.jsonl", "episodes/*.jsonl", "eval/*.json", "eval/*/*.jsonl")
"""What of a run's folder makes the page another one."""


def report(folders: Sequence[Path], *, output: Path | None, episodes: int, size_mb: float, watch: int | None) -> Path:
    """Write the page and say where it is. With `watch`, look every so many seconds whether a run has gone on, until Ctrl-C.

    Raises LongShortError for a folder that holds no run, and for numbers that make no sense.
    """
    if episodes < 0 or size_mb <= 0 or (watch is not None and watch < 1):
        raise LongShortError(
            f"--episodes {episodes}, --size {size_mb:g}, --watch {watch}: give at least 0, more than 0, and at least 1"
        )
    began, stamp = time.monotonic(), state(folders)
    path = write_report(folders, output=output, episodes=episodes, size_mb=size_mb, refresh=watch)
    console.say(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {console.duration(time.monotonic() - began)})")
    if watch:
        console.say(
            f"written again when a run goes on, looked at every {watch} s; the page reloads itself; Ctrl-C ends this"
        )
    while watch:
        time.sleep(watch)
        if (now := state(folders)) != stamp:
            stamp = now
            write_report(folders, output=output, episodes=episodes, size_mb=size_mb, refresh=watch)
            console.say(f"{time.strftime('%H:%M:%S')} {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def state(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of everything that the page is made from."""
    found = sorted(path for folder in folders for pattern in WATCHED for path in folder.glob(pattern))
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path in found for stat in [path.stat()])
