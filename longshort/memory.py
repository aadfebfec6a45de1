"""How much memory each process of a run takes, estimated from the models' headers before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longshort.config import LongShortConfig
from longshort.doctor import GIB, free_memory
from longshort.model_files import PUBLISHED, ModelFacts, read_facts, shape_facts
from longshort.types import LONG, ROLES, SHORT, LongShortError

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model (measured: torch 2.13, vLLM 0.31)."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's two communication buckets (its default reduce_bucket_size and allgather_bucket_size)."""


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
        if not config.share_engine:
            found.append(_engine(config, role, model))
        elif role == LONG:
            found.append(_shared_engine(config, model))
        found.append(_learner(config, role, model))
    workers = config.grading.workers
    return [*found, Actor(name=f"graders ({workers})", cores=workers, gpus=0, parts={"process": workers * PROCESS_GIB["grader"]})]


def model_facts(config: LongShortConfig, *, published: bool = False) -> dict[str, ModelFacts]:
    """The model of each role that the recipe's protocol lets speak; a miniature one need not exist yet, nor a well-known one if its
    `published` sizes will do."""
    roles = (LONG,) if config.protocol.name == "solo" else ROLES
    return {role: _facts_of(config, role, PUBLISHED if published else {}) for role in roles}


def _facts_of(config: LongShortConfig, role: str, known: Mapping[str, ModelFacts]) -> ModelFacts:
    model = config.role(role).model
    if model in known and not Path(model).is_dir():
        return known[model]
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


def _shared_engine(config: LongShortConfig, model: ModelFacts) -> Actor:
    """The one process that samples for both roles: an engine of the base, and their adapters."""
    alone, engine = _engine(config, LONG, model), config.long.engine
    size, rank = BYTES[engine.dtype], max(config.role(role).lora.r for role in ROLES)
    parts = {"adapters": len(ROLES) * adapter_parameters(model, rank) * size}
    if "(transformers)" in alone.name:
        parts["base beside the merged"] = model.parameters * size
    elif not engine.num_gpus:
        # vLLM's CPU kernels copy a layer's half of an adapter once per token of a step.
        parts["adapters per token"] = max(engine.max_model_len, engine.max_num_seqs) * rank * max(model.hidden, model.intermediate) * size
    extra = {name: amount / GIB for name, amount in parts.items()}
    return replace(alone, name=alone.name.replace(LONG, "+".join(ROLES)), parts=alone.parts | extra)


def _learner(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """The process that learns: float32 training state, one micro-batch, and the weights on their way to the engine."""
    size, tokens = BYTES[config.dtype], config.batch_tokens
    state = _adapter_state(config, role, model) if config.role(role).lora else _full_state(config, model)
    parts = {"process": PROCESS_GIB["learner"]} | {name: amount / GIB for name, amount in state.items()}
    parts["micro-batch"] = activations_gib(model, tokens, size, autocast=size == 2) + logits_gib(model, tokens)
    return Actor(name=f"{role} learner (torch)", cores=1, gpus=config.learner_gpus, parts=parts)


def _full_state(config: LongShortConfig, model: ModelFacts) -> dict[str, float]:
    """Bytes where all weights are trained; publishing takes two copies of them."""
    size = BYTES[config.dtype]
    return {
        "weights + gradient + AdamW": sum(torch_state(model.parameters, size).values()),
        "reference": model.parameters * 4 if config.loss.beta else 0.0,
        "publishing": 2 * model.parameters * size,
    }


def _adapter_state(config: LongShortConfig, role: str, model: ModelFacts) -> dict[str, float]:
    """Bytes where an adapter is trained: the reference is the base itself; what is published or saved is merged in float32 first."""
    size = BYTES[config.dtype]
    adapter = adapter_parameters(model, config.role(role).lora.r)
    return {
        "frozen base": 4 * model.parameters,
        "adapter + gradient + AdamW": sum(torch_state(adapter, size).values()),
        "merging": 4 * model.parameters,
        "publishing": 2 * (4 * adapter if config.share_engine else size * model.parameters),
    }


def adapter_parameters(model: ModelFacts, r: int) -> int:
    """Numbers in an adapter of rank r over all linear layers of a decoder (attention's four, the feed-forward's three); fewer are less."""
    attention = 2 * (model.hidden + model.hidden) + 2 * (model.hidden + model.kv_width)
    return r * model.layers * (attention + 3 * (model.hidden + model.intermediate))


def activations_gib(model: ModelFacts, tokens: int, size: int, *, autocast: bool, checkpointing: bool = False) -> float:
    """What the backward pass of a micro-batch of so many tokens needs, `size` bytes a number.

    A block keeps, per token, about 10 vectors of the hidden size and 4 of the feed-forward's; under autocast about 15, because its norms
    stay in float32 (counted on Qwen2 blocks, tests/test_placement.py: 5 % less in float32, 1 to 2 % more in bfloat16). With gradient
    checkpointing only the input of each block is kept, and one block at a time is whole.
    """
    block = (15 if autocast else 10) * model.hidden + 4 * model.intermediate
    return tokens * (model.layers * model.hidden + block if checkpointing else model.layers * block) * size / GIB


def logits_gib(model: ModelFacts, tokens: int) -> float:
    """Logits, their gradient and the entropy's probabilities of the tokens that learning/step.py treats at once."""
    from longshort.learning.step import LOGITS_HELD

    return 3 * BYTES["float32"] * min(LOGITS_HELD, tokens * model.vocabulary) / GIB


def torch_state(parameters: int, size: int) -> dict[str, float]:
    """Bytes of backends/torch_learner.py: float32 weights, gradients, AdamW; in bfloat16 also autocast's copy of the weights."""
    state = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    return state | ({"bfloat16 copy": 2 * parameters} if size == 2 else {})


def zero_state(parameters: int, stage: int, ranks: int, size: int, *, offload: bool = False) -> dict[str, float]:
    """Bytes per rank under ZeRO: stage 1 shards the optimizer, 2 also the gradients, 3 also the weights.

    bfloat16: weights 2, gradients 2, optimizer 12 (float32 weights and two moments) per parameter; float32: 4, 4, 8. `offload` keeps the
    optimizer in the CPU's memory.
    """
    shard = [ranks if stage >= needed else 1 for needed in (3, 2, 1)]
    return {
        "weights": size * parameters / shard[0],
        "gradients": size * parameters / shard[1],
        "optimizer": 0.0 if offload else optimizer_bytes(size) * parameters / shard[2],
        "buffers": 2 * size * min(BUCKET, parameters),
    }


def optimizer_bytes(size: int) -> int:
    """Per parameter: AdamW's two float32 moments, and a float32 copy of weights of another type."""
    return 8 if size == 4 else 12


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
