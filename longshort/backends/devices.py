"""What a recipe's engines and learners are and share, and what of it cannot be had. Nothing here touches a device."""

from __future__ import annotations

from collections.abc import Mapping

from longshort.dialogue.protocols import make_protocol
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import LongShortError


def engine_backend(config: EngineConfig) -> str:
    """`vllm` or `transformers` for `auto`, by what is installed."""
    from importlib.util import find_spec

    if config.backend != "auto":
        return config.backend
    return "vllm" if find_spec("vllm") else "transformers"


def shares_gpu(config: LongShortConfig, role: str) -> bool:
    """Whether a role's engine and its learner have their shares of the same GPU (`ray_cluster.shared_place` sees to it)."""
    engine, learner = config.role(role).engine.num_gpus, config.learner_gpus
    return engine > 0 and learner > 0 and engine + learner <= 1 and config.learner.ranks == 1


def check_time_share(config: LongShortConfig, role: str) -> None:
    """Refuse to let an engine sleep for a learner that gains nothing by it."""
    engine, learner = config.role(role).engine.num_gpus, config.learner_gpus
    if config.time_share and (engine or learner) and not shares_gpu(config, role):
        raise LongShortError(
            f"time_share is true, but the {role} engine ({engine:g} GPUs) and its learner ({config.learner.ranks} ranks of {learner:g}) do "
            "not share one: give both shares of it that add up to 1 or less, or set time_share: false"
        )


def check_devices(config: LongShortConfig, resources: Mapping[str, float]) -> None:
    """Refuse more ranks than devices, which would wait for ever for their place."""
    from importlib.util import find_spec

    if not find_spec("deepspeed"):
        raise LongShortError(
            "learner.backend is deepspeed, which is not installed; pip install -e '.[gpu]', or set learner.backend: torch"
        )
    ranks, there = config.learner.ranks, resources.get("GPU" if config.learner_gpus else "CPU", 0.0)
    if not config.learner_gpus:
        if ranks > there:
            raise LongShortError(f"learner.ranks is {ranks} but the cluster has {there:g} CPUs; lower it")
        return
    roles = make_protocol(config).roles
    engines = sum(config.role(role).engine.num_gpus for role in roles)
    wanted = len(roles) * ranks * config.learner_gpus + engines
    if wanted > there:
        raise LongShortError(
            f"{len(roles)} learners of {ranks} ranks with {config.learner_gpus:g} GPU each and engines with {engines:g} take {wanted:g} "
            f"GPUs but the cluster has {there:g}; lower learner.ranks or engine.num_gpus, or add GPUs"
        )
