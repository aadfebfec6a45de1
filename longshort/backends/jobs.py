"""Work for one process per role, side by side, with their progress in one line."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends import ray_cluster

PROGRESS = "progress.json"
"""What a job keeps up to date in its folder: step, steps, loss, and seconds left at the pace since this part of it began or continued."""


class Progress:
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


async def side_by_side(jobs: Mapping[str, tuple[Callable[..., Any], ...]], folders: Mapping[str, Path], gpus: float = 0.0) -> list[Any]:
    """Run each job, (function, *arguments), in a process of its own; `folders` say where each keeps its progress file."""
    for folder in folders.values():
        (folder / PROGRESS).unlink(missing_ok=True)

    def status() -> str:
        parts, left = [], 0.0
        for name, folder in folders.items():
            if (folder / PROGRESS).is_file():
                state = json.loads((folder / PROGRESS).read_text())
                parts.append(f"{name} {state['step']}/{state['steps']} loss {state['loss']:.3f}")
                left = max(left, state["left_s"])
        return "   ".join(parts) + (f"   eta {console.duration(left)}" if left else "") or "making the training data"

    async with console.heartbeat(status):
        results = await asyncio.gather(*(ray_cluster.in_process(*job, gpus=gpus) for job in jobs.values()))
    console.say(f"  {status()}")
    return list(results)
