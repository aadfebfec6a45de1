"""Which devices a recipe's engines and learners take, and what is refused because the cluster lacks them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from longshort.dialogue.protocols import make_protocol
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import LongShortError


def another_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster to join, whose machines are not known here; `local` is one of our own."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def engine_backend(config: EngineConfig) -> str:
    """Return the engine's backend; `auto` is vllm where it is installed, else transformers."""
    if config.backend != "auto":
        return config.backend
    return "vllm" if find_spec("vllm") else "transformers"


def shares_gpu(config: LongShortConfig, role: str) -> bool:
    """Whether a role's engine and learner each have a share of the same GPU (see `ray_cluster.shared_place`)."""
    engine, learner = config.role(role).engine.num_gpus, config.learner_gpus
    return engine > 0 and learner > 0 and engine + learner <= 1 and config.learner.ranks == 1


def check_time_share(config: LongShortConfig, role: str) -> None:
    """Refuse `time_share` where the learner gains nothing from a sleeping engine."""
    engine, learner = config.role(role).engine.num_gpus, config.learner_gpus
    if config.time_share and (engine or learner) and not shares_gpu(config, role):
        raise LongShortError(
            f"time_share is true, but the {role} engine ({engine:g} GPUs) and its learner ({config.learner.ranks} "
            f"ranks of {learner:g}) do not share one: give both shares of it that add up to 1 or less, or set "
            "time_share: false"
        )


def check_devices(config: LongShortConfig, resources: Mapping[str, float]) -> None:
    """Refuse more DeepSpeed ranks than the cluster has devices; they would wait forever."""
    if not find_spec("deepspeed"):
        raise LongShortError(
            "learner.backend is deepspeed, which is not installed; "
            "pip install -e '.[gpu]', or set learner.backend: torch"
        )
    ranks, gpus_each = config.learner.ranks, config.learner_gpus
    available = resources.get("GPU" if gpus_each else "CPU", 0.0)
    if not gpus_each and ranks > available:
        raise LongShortError(f"learner.ranks is {ranks} but the cluster has {available:g} CPUs; lower it")
    roles = make_protocol(config).roles
    engines = sum(config.role(role).engine.num_gpus for role in roles)
    needed = len(roles) * ranks * gpus_each + engines
    if gpus_each and needed > available:
        raise LongShortError(
            f"{len(roles)} learners of {ranks} ranks with {gpus_each:g} GPU each and engines with {engines:g} take "
            f"{needed:g} GPUs but the cluster has {available:g}; lower learner.ranks or engine.num_gpus, or add GPUs"
        )
