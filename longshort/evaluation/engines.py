"""The engines of an evaluation: one per distinct model, started when a system needs it and kept for the next system
that does."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import AutoTokenizer

from longshort import console
from longshort.backends import ray_cluster
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.evaluation.systems import Model, System
from longshort.recipe.schema import LongShortConfig
from longshort.runs.model_files import find_folder
from longshort.waiting import gather_or_cancel

Key = tuple[str, str]
"""A model's folder, and the settings that its answers depend on."""


class Engines:
    """`await engines.of(system)` returns the engine of each role in the system; `close` ends all engines.

    Two roles with the same model share one engine, unless the recipe gives them engines that answer differently. At
    most `eval.max_engines` are alive, fewer if the cluster has too few CPUs or GPUs; the least recently used one is
    closed first.
    """

    def __init__(self, config: LongShortConfig):
        self._config = config
        self._alive: dict[Key, RemoteEngine] = {}
        """The least recently used engine comes first."""

    async def of(self, system: System) -> Mapping[str, RemoteEngine]:
        """Return the system's engines by role; start those that are missing."""
        keys = {role: self._key(model) for role, model in system.models.items()}
        needed = dict(zip(keys.values(), system.models.values(), strict=True))
        missing = {key: model for key, model in needed.items() if key not in self._alive}
        for key in [key for key in needed if key in self._alive]:
            self._alive[key] = self._alive.pop(key)
        idle = [key for key in self._alive if key not in needed]
        while idle and not self._fit(missing):
            self._alive.pop(idle.pop(0)).close()
        for (folder, settings), model in missing.items():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            engine = ray_cluster.make_engine(model.origin, folder, self._config, tokenizer)
            self._alive[folder, settings] = engine
        if missing:
            backends = ", ".join(f"{key[0]}: {self._alive[key].backend}" for key in missing)
            async with console.heartbeat(lambda: f"starting engines ({backends})"):
                await gather_or_cancel(*(self._alive[key].start() for key in missing))
        return {role: self._alive[key] for role, key in keys.items()}

    def close(self) -> None:
        """Close every engine."""
        for engine in self._alive.values():
            engine.close()
        self._alive.clear()

    def _key(self, model: Model) -> Key:
        return str(find_folder(model.folder, model.origin).resolve()), str(model.arithmetic(self._config))

    def _fit(self, missing: Mapping[Key, Model]) -> bool:
        """Return whether the missing engines can be alive beside those that are."""
        roles = [*(engine.role for engine in self._alive.values()), *(model.origin for model in missing.values())]
        gpus = sum(self._config.role(role).engine.num_gpus for role in roles)
        return len(roles) <= min(self._config.eval.max_engines, ray_cluster.room()) and gpus <= ray_cluster.gpus()
