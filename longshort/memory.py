"""How much memory each process of a run takes, estimated from the models' headers before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longshort.config import LongShortConfig
from longshort.doctor import GIB, free_memory
from longshort.model_files import ModelFacts, read_facts, shape_facts
from longshort.types import LONG, ROLES, SHORT, LongShortError

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model (measured: torch 2.13, vLLM 0.31)."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_BYTES = 16
"""Per parameter while learning in float32: weight 4, gradient 4, AdamW's two moments 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One process: what it runs on, and what fills its memory in GiB.

    Actor(name="long engine (vllm)", cores=1, gpus=0, parts={"process": 1.0, "weights": 1.84, "kv cache": 0.5})
    """

    name: str
    cores: float
    gpus: float
    parts: Mapping[str, float]

    @property
    def device(self) -> str:
        return "gpu" if self.gpus else "cpu"

    @property
    def gib(self) -> float:
        return sum(self.parts.values())


def actors(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> list[Actor]:
    """Every process of a training run: driver, engines, learners, graders."""
    found = [Actor(name="driver and ray", cores=1, gpus=0, parts={"process": PROCESS_GIB["driver"] + PROCESS_GIB["ray"]})]
    for role, model in facts.items():
        found += [_engine(config, role, model), _learner(config, role, model)]
    workers = config.grading.workers
    return [*found, Actor(name=f"graders ({workers})", cores=workers, gpus=0, parts={"process": workers * PROCESS_GIB["grader"]})]


def model_facts(config: LongShortConfig) -> dict[str, ModelFacts]:
    """The model of each role that the recipe's protocol lets speak; a miniature one need not exist yet."""
    roles = (LONG,) if config.protocol.name == "solo" else ROLES
    return {role: _facts_of(config, role) for role in roles}


def _facts_of(config: LongShortConfig, role: str) -> ModelFacts:
    model = config.role(role).model
    if model or not config.miniature:
        return read_facts(model, f"{role}.model")
    from longshort.miniature.tokenizer import build_tokenizer

    shape = {LONG: config.miniature.long, SHORT: config.miniature.short}[role]
    return shape_facts(f"miniature {role}", shape, len(build_tokenizer(role)), config.role(role).engine.max_model_len)


def _engine(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """The process that samples: weights and KV cache."""
    from longshort.backends.ray_cluster import engine_backend

    engine = config.role(role).engine
    backend, size = engine_backend(engine), BYTES[engine.dtype]
    cache = engine.kv_cache_gib
    if backend == "transformers":  # grows with what is sampled: at most every sequence at full length
        cache = engine.max_num_seqs * engine.max_model_len * model.kv_numbers * size / GIB
    parts = {"process": PROCESS_GIB[backend], "weights": model.parameters * size / GIB, "kv cache": cache}
    return Actor(name=f"{role} engine ({backend})", cores=1, gpus=engine.num_gpus, parts=parts)


def _learner(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """The process that learns: float32 training state, one micro-batch, and two copies of the weights on their way to the engine."""
    from longshort.learning.step import LOGITS_HELD

    size = BYTES[config.dtype]
    # For the backward pass a block keeps, per token, about 10 vectors of the hidden size and 4 of the feed-forward's.
    activations = config.batch_tokens * model.layers * (10 * model.hidden + 4 * model.intermediate) * size
    logits = 3 * BYTES["float32"] * min(LOGITS_HELD, config.batch_tokens * model.vocabulary)
    parts = {
        "process": PROCESS_GIB["learner"],
        "weights + gradient + AdamW": model.parameters * ADAM_BYTES / GIB,
        "reference": model.parameters * 4 / GIB if config.loss.beta else 0.0,
        "micro-batch": (activations + logits) / GIB,
        "publishing": 2 * model.parameters * size / GIB,
    }
    return Actor(name=f"{role} learner (torch)", cores=1, gpus=config.learner_gpus, parts=parts)


def free_gib(processes: Sequence[Actor]) -> dict[str, float | None]:
    """Free memory of the devices used; None for a Ray cluster's, which is elsewhere. LongShortError for GPUs that are not there."""
    gpus = sum(actor.gpus for actor in processes)
    if os.environ.get("RAY_ADDRESS"):
        return {"cpu": None} | ({"gpu": None} if gpus else {})
    free: dict[str, float | None] = {"cpu": free_memory() / GIB}
    if gpus:
        import torch

        if not torch.cuda.is_available():
            raise LongShortError(
                f"the recipe asks for {gpus:g} GPUs but torch sees none here; set num_gpus and learner_gpus to 0, install a CUDA build of "
                "torch (longshort doctor), or set RAY_ADDRESS to a cluster that has GPUs"
            )
        free["gpu"] = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())) / GIB
    return free
