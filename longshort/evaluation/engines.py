"""The engines of an evaluation: one for each distinct model, started when a system needs it and kept for the next one that does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from longshort import console
from longshort.backends import ray_cluster
from longshort.backends.remote_engine import RemoteEngine
from longshort.config import LongShortConfig
from longshort.evaluation.systems import Model, System
from longshort.model_files import find_folder


class Engines:
    """`await engines.of(system)` gives the engine of each role that speaks in it; `close` ends all of them.

    Two roles with the same model share one engine. At most `eval.max_engines` are alive, fewer where the cluster's GPUs do not suffice;
    the one that has waited longest gives way. `started` counts the starts by folder: 1 each unless one had to give way.
    """

    def __init__(self, config: LongShortConfig):
        self._config, self._alive = config, {}
        self.started: dict[str, int] = {}

    async def of(self, system: System) -> Mapping[str, RemoteEngine]:
        folders = {role: str(find_folder(model.folder, role)) for role, model in system.models.items()}
        needed = dict(zip(folders.values(), system.models.values(), strict=True))
        for folder in needed.keys() & self._alive.keys():
            self._alive[folder] = self._alive.pop(folder)  # used last, so the last to give way
        missing = {folder: model for folder, model in needed.items() if folder not in self._alive}
        self._make_room(needed, missing)
        for folder, model in missing.items():
            self._alive[folder] = self._make(folder, model)
            self.started[folder] = self.started.get(folder, 0) + 1
        if missing:
            backends = ", ".join(f"{folder}: {self._alive[folder].backend}" for folder in missing)
            async with console.heartbeat(lambda: f"starting engines ({backends})"):
                await asyncio.gather(*(self._alive[folder].start() for folder in missing))
        return {role: self._alive[folder] for role, folder in folders.items()}

    def close(self) -> None:
        for engine in self._alive.values():
            engine.close()
        self._alive.clear()

    def _make_room(self, needed: Mapping[str, Model], missing: Mapping[str, Model]) -> None:
        """Close what has waited longest and is not needed now, until the missing engines fit."""
        idle = [folder for folder in self._alive if folder not in needed]
        gpus = {folder: self._config.role(model.origin).engine.num_gpus for folder, model in needed.items()}
        there = ray_cluster.gpus()
        while idle and (len(self._alive) + len(missing) > self._config.eval.max_engines or sum(gpus.values()) + self._held(idle) > there):
            self._alive.pop(idle.pop(0)).close()

    def _held(self, folders) -> float:
        """GPUs of these engines."""
        return sum(self._config.role(self._alive[folder].role).engine.num_gpus for folder in folders)

    def _make(self, folder: str, model: Model) -> RemoteEngine:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return ray_cluster.make_engine(model.origin, folder, self._config, tokenizer)
