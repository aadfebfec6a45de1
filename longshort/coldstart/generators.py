"""The models that help to make cold-start data, each on its own engines: instruct model and rollout model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from longshort import console
from longshort.backends import ray_cluster
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.coldstart.pipeline import section_of
from longshort.recipe.coldstart import GeneratorConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.layout import base_model
from longshort.runs.model_files import find_folder, identity
from longshort.types import SHORT, LongShortError


def rollout_generator(config: LongShortConfig) -> GeneratorConfig:
    """Return the model that continues prefixes: `coldstart.rollout`, else the short role's before its cold start."""
    named = section_of(config).rollout
    return named or GeneratorConfig(model=base_model(config, SHORT), engine=config.short.engine)


def described(generator: GeneratorConfig, key: str) -> dict[str, Any]:
    """Return what the model's answers depend on: its files but not their place, the arithmetic but not the memory."""
    engine = generator.engine.model_dump(include={"backend", "dtype", "max_model_len"})
    return {"model": identity(generator.model, f"{key}.model"), **engine}


@asynccontextmanager
async def engines(
    config: LongShortConfig, name: str, generator: GeneratorConfig, count: int = 1
) -> AsyncIterator[list[RemoteEngine]]:
    """Start `count` engines with the same model side by side; `name` is the recipe's key, for errors."""
    from transformers import AutoTokenizer

    if not generator.model:
        raise LongShortError(f"{name}.model is empty: name a model folder or a hub name")
    folder = str(find_folder(generator.model, f"{name}.model"))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with ExitStack() as undo:
        undo.callback(ray_cluster.start(config))
        started = []
        for _ in range(count):
            started.append(ray_cluster.make_engine(name, folder, config, tokenizer, engine=generator.engine))
            undo.callback(started[-1].close)
        async with console.heartbeat(lambda: f"starting {count} engine(s) for {name} ({started[0].backend})"):
            await asyncio.gather(*(engine.start() for engine in started))
        yield started


@asynccontextmanager
async def instruct_engine(config: LongShortConfig, needed: bool) -> AsyncIterator[RemoteEngine | None]:
    """Start the instruct model's engine; yield None where it is not needed."""
    if not needed:
        yield None
        return
    async with engines(config, "coldstart.instruct", section_of(config).instruct) as (engine,):
        yield engine
