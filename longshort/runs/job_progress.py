"""The progress file of a job in its folder: the job keeps it up to date, the process that waits for it reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from longshort.runs.files import write_whole

PROGRESS = "progress.json"
"""Holds `step`, `steps`, `loss`, and `left_s`: the seconds left, at the pace since this process began or continued."""


class JobProgress:
    """Writes a job's progress file, at most once a second."""

    def __init__(self, folder: str | Path):
        self.path, self._written_at = Path(folder) / PROGRESS, 0.0
        self._began, self._done_before = time.monotonic(), -1

    def __call__(self, done: int, steps: int, loss: float) -> None:
        if self._done_before < 0:
            self._done_before = done - 1
        if time.monotonic() - self._written_at < 1.0 and done < steps:
            return
        self._written_at = time.monotonic()
        left = (self._written_at - self._began) / (done - self._done_before) * (steps - done)
        write_whole(self.path, json.dumps({"step": done, "steps": steps, "loss": loss, "left_s": left}))
