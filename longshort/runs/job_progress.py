"""The progress file that a job keeps up to date in its folder, for the process that waits for it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

PROGRESS = "progress.json"
"""What a job keeps up to date in its folder: step, steps, loss, and seconds left at the pace since this part of it began or continued."""


class JobProgress:
    """Writes a job's progress file, at most once a second."""

    def __init__(self, folder: str | Path):
        self.path, self._shown = Path(folder) / PROGRESS, 0.0
        self._began, self._before = time.monotonic(), -1
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, done: int, steps: int, loss: float) -> None:
        if self._before < 0:
            self._before = done - 1
        if time.monotonic() - self._shown < 1.0 and done < steps:
            return
        self._shown = time.monotonic()
        left = (self._shown - self._began) / (done - self._before) * (steps - done)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps({"step": done, "steps": steps, "loss": loss, "left_s": left}))
        os.replace(partial, self.path)
