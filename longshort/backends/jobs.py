"""Jobs side by side, each in a process of its own, with their progress in one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends import ray_cluster
from longshort.runs.job_progress import PROGRESS


async def side_by_side(
    jobs: Mapping[str, tuple[Any, ...]], folders: Mapping[str, Path], gpus: float = 0.0, report: bool = True
) -> list[Any]:
    """Run each job, (function, recipe, *arguments), in its own process; each writes a progress file into its folder.

    `report`: print how they ended, besides the line that shows their progress.
    """
    files = {name: folder / PROGRESS for name, folder in folders.items()}
    for file in files.values():
        file.unlink(missing_ok=True)

    def status() -> str:
        states = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
        parts = [f"{name} {state['step']}/{state['steps']} loss {state['loss']:.3f}" for name, state in states.items()]
        if left := max((state["left_s"] for state in states.values()), default=0.0):
            parts.append(f"eta {console.duration(left)}")
        return "   ".join(parts) or "making the training data"

    async with console.heartbeat(status):
        results = await asyncio.gather(*(ray_cluster.in_process(*job, gpus=gpus) for job in jobs.values()))
    if report:
        console.say(f"  {status()}")
    return list(results)
