"""Work for one process per role, side by side, with their progress in one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends import ray_cluster
from longshort.runs.job_progress import PROGRESS


async def side_by_side(
    jobs: Mapping[str, tuple[Callable[..., Any], ...]], folders: Mapping[str, Path], gpus: float = 0.0
) -> list[Any]:
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
