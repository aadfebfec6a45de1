"""The engines of an evaluation: one for each distinct model, started when a system needs it and kept for the next one that does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from longshort import console
from longshort.backends import ray_cluster
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.evaluation.systems import Model, System
from longshort.recipe.schema import LongShortConfig
from longshort.runs.model_files import find_folder

Key = tuple[str, str]
"""A model's folder, and the settings that its answers depend on."""


class Engines:
    """`await engines.of(system)` gives the engine of each role that speaks in it; `close` ends all of them.

    Two roles with the same model share one engine, unless the recipe gives them engines that answer differently. At most
    `eval.max_engines` are alive, fewer where the cluster has too few CPUs or GPUs; the one that has waited longest gives way.
    """

    def __init__(self, config: LongShortConfig):
        self._config = config
        self._alive: dict[Key, RemoteEngine] = {}

    async def of(self, system: System) -> Mapping[str, RemoteEngine]:
        keys = {role: self._key(model) for role, model in system.models.items()}
        needed = dict(zip(keys.values(), system.models.values(), strict=True))
        for key in [key for key in needed if key in self._alive]:
            self._alive[key] = self._alive.pop(key)  # used last, so the last to give way
        missing = {key: model for key, model in needed.items() if key not in self._alive}
        self._make_room(needed, missing)
        for key, model in missing.items():
            self._alive[key] = self._make(key[0], model)
        if missing:
            backends = ", ".join(f"{key[0]}: {self._alive[key].backend}" for key in missing)
            async with console.heartbeat(lambda: f"starting engines ({backends})"):
                await asyncio.gather(*(self._alive[key].start() for key in missing))
        return {role: self._alive[key] for role, key in keys.items()}

    def close(self) -> None:
        for engine in self._alive.values():
            engine.close()
        self._alive.clear()

    def _key(self, model: Model) -> Key:
        return str(find_folder(model.folder, model.origin).resolve()), str(model.arithmetic(self._config))

    def _make_room(self, needed: Mapping[Key, Model], missing: Mapping[Key, Model]) -> None:
        """Close what has waited longest and is not needed now, until the missing engines fit."""
        idle = [key for key in self._alive if key not in needed]
        while idle and not self._fit(missing):
            self._alive.pop(idle.pop(0)).close()

    def _fit(self, missing: Mapping[Key, Model]) -> bool:
        """Whether the missing engines can be alive beside those that are."""
        roles = [*(engine.role for engine in self._alive.values()), *(model.origin for model in missing.values())]
        gpus = sum(self._config.role(role).engine.num_gpus for role in roles)
        return len(roles) <= min(self._config.eval.max_engines, ray_cluster.room()) and gpus <= ray_cluster.gpus()

    def _make(self, folder: str, model: Model) -> RemoteEngine:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return ray_cluster.make_engine(model.origin, folder, self._config, tokenizer)
