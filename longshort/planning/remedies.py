"""The smallest change under which a recipe fits, by trying changes through the formula that refused it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product

from longshort.preflight.memory import Plan
from longshort.preflight.processes import PHASES
from longshort.recipe.schema import LongShortConfig, parse
from longshort.recipe.strict_yaml import leaves, override
from longshort.types import LongShortError

Planner = Callable[[LongShortConfig], Plan]
Settings = Mapping[str, str]
"""Values of a recipe by dotted key, as a user would write them."""


def smallest_change(config: LongShortConfig, planned: Plan, planner: Planner) -> str:
    """Name the first of the known changes, the smallest first, that makes a recipe fit."""
    before = {key: _text(value) for key, value in leaves(config.model_dump(mode="json"))}
    for settings in _changes(config, planned):
        if _fits(config, settings, planner):
            settings = {key: value for key, value in settings.items() if value != before[key]}
            change = " ".join(f"{key}={value}" for key, value in settings.items())
            now = ", ".join(before[key] for key in settings)
            return f"the smallest change that makes it fit: {change} (now {now})"
    return "none of the changes tried makes it fit: take smaller models, larger GPUs or more of them"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _fits(config: LongShortConfig, settings: Settings, planner: Planner) -> bool:
    """Plan the changed recipe; a change that the recipe's own rules forbid does not help."""
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        override(tree, f"{key}={value}", LongShortConfig)
    try:
        return not planner(parse(tree)).too_small
    except LongShortError:
        return False


def _changes(config: LongShortConfig, planned: Plan) -> Iterator[Settings]:
    """Yield changes by what they cost: memory that is only useful, then time, then other processes."""
    if caches := _smaller_caches(planned):
        yield caches
    roles = [config.role(role) for role in planned.routes]
    longest = max(min(role.engine.max_model_len, config.protocol.episode_tokens) for role in roles)
    for halvings in range(1, 20):
        if (tokens := config.batch_tokens >> halvings) >= longest:  # a longer sample is a micro-batch by itself
            yield {"batch_tokens": str(tokens)}
    checkpointing = {"learner.gradient_checkpointing": "true"}
    yield checkpointing
    for change in _other_processes(config, planned):
        yield change
        yield change | checkpointing


def _smaller_caches(planned: Plan) -> Settings:
    """Lower the KV caches on every device that is too small to one size, the largest with which it suffices."""
    sizes: dict[str, float] = {}
    for device, phase in product(planned.too_small, PHASES):
        excess = planned.needed_in(device, phase) - (planned.free[device] or 0)
        engines = [process for process in planned.on(device, phase) if process.kind == "engine"]
        size = max((process.parts["kv cache"] for process in engines), default=0.0)
        while size > 0 and sum(max(0.0, process.parts["kv cache"] - size) for process in engines) < excess:
            size = math.floor(10 * size - 0.001) / 10
        for process in engines:
            if process.parts["kv cache"] > size:
                sizes |= {section: min(size, sizes.get(section, size)) for section in process.settings}
    return {f"{section}.kv_cache_gib": f"{size:g}" for section, size in sizes.items()}


def _other_processes(config: LongShortConfig, planned: Plan) -> Iterator[dict[str, str]]:
    """Yield changes of how engines and learners share their devices."""
    yield {"time_share": "true"}
    deepspeed, offload = {"learner.backend": "deepspeed", "learner.zero_stage": "3"}, {"learner.offload": "true"}
    if config.learner.backend == "deepspeed":
        yield from ({"learner.zero_stage": str(stage)} for stage in range(config.learner.zero_stage + 1, 4))
    else:
        gpus = sum(device != "cpu" for device in planned.free)
        engines = [process for process in planned.processes if process.kind == "engine" and process.phase == "training"]
        ranks = (gpus - math.ceil(sum(process.gpus for process in engines))) // len(planned.routes)
        if config.learner_gpus and ranks > 1:
            deepspeed |= {"learner.ranks": str(ranks), "learner_gpus": "1"}
            yield deepspeed
    yield deepspeed | offload
