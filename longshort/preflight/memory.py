"""How much memory each process of a run takes, estimated from the models' headers before anything starts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longshort.backends.devices import check_time_share, engine_backend, shares_gpu
from longshort.backends.weight_transfer import choose
from longshort.dialogue.protocols import make_protocol
from longshort.preflight.memory_formulas import (
    BYTES,
    GIB,
    activations_gib,
    adapter_parameters,
    free_memory,
    logits_gib,
    optimizer_bytes,
    torch_state,
    zero_state,
)
from longshort.recipe.miniature import ModelShape
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import PUBLISHED, ModelFacts, read_facts
from longshort.types import LONG, ROLES, SHORT, LongShortError

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model (measured: torch 2.13, vLLM 0.31)."""


TRAINING, COLD_START = "training", "cold start"
"""Processes of the same time share memory; those of another have it after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One process, or `count` alike: what each runs on, and what fills its memory in GiB (on each GPU, where it has several).

    Actor(name="long engine (vllm)", cores=1, gpus=0, parts={"process": 1.0, "weights": 1.84, "kv cache": 0.5})
    """

    name: str
    cores: float
    gpus: float
    parts: Mapping[str, float]
    count: int = 1
    when: str = TRAINING
    together: str = ""
    """Processes that name the same here are put on the same GPU."""
    returned: frozenset[str] = frozenset()
    """Parts that are given back while it is the others' turn (`time_share`)."""

    @property
    def gib(self) -> float:
        """Of one process."""
        return sum(self.parts.values())

    @property
    def least_gib(self) -> float:
        """Of one process, while it is the others' turn."""
        return sum(gib for part, gib in self.parts.items() if part not in self.returned)


def actors(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> list[Actor]:
    """Every process of a training run (driver, engines, learners, graders), and before it of the cold start."""
    found = [
        Actor(name="driver and ray", cores=1, gpus=0, parts={"process": PROCESS_GIB["driver"] + PROCESS_GIB["ray"]})
    ]
    for role, model in facts.items():
        if not config.share_engine:
            found.append(_role_engine(config, role, model))
        elif role == LONG:
            found.append(_shared_engine(config, model))
        found += _learner(config, role, model)
    workers = config.grading.workers
    graders = Actor(
        name=f"graders ({workers})", cores=workers, gpus=0, parts={"process": workers * PROCESS_GIB["grader"]}
    )
    found.append(graders)
    if config.coldstart is None:
        return found
    return [*found, *(replace(actor, when=COLD_START) for actor in (found[0], graders)), *_cold_start(config, facts)]


def model_facts(config: LongShortConfig, *, published: bool = False) -> dict[str, ModelFacts]:
    """The model of each role that the recipe's protocol lets speak; a miniature one need not exist yet, nor a well-known one if its
    `published` sizes will do."""
    return {role: _facts_of(config, role, PUBLISHED if published else {}) for role in make_protocol(config).roles}


def _facts_of(config: LongShortConfig, role: str, known: Mapping[str, ModelFacts]) -> ModelFacts:
    model = config.role(role).model
    if model in known and not Path(model).is_dir():
        return known[model]
    if model or not config.miniature:
        return read_facts(model, f"{role}.model")
    from longshort.miniature.tokenizer import build_tokenizer

    shape = {LONG: config.miniature.long, SHORT: config.miniature.short}[role]
    return shape_facts(f"miniature {role}", shape, len(build_tokenizer(role)), config.role(role).engine.max_model_len)


def _role_engine(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """The process that samples a role's turns; a GPU that receives by NCCL holds two buffers beside its model."""
    engine = config.role(role).engine
    way, _ = choose(config, role, engine_backend(engine))
    found = _engine(f"{role} engine", engine, model)
    parts = dict(found.parts) | ({"transfer": 2 * transfer_gib(config, model)} if way == "nccl" else {})
    together = role if shares_gpu(config, role) else ""
    return replace(
        found,
        parts=parts,
        together=together,
        returned=frozenset({"weights", "kv cache"}) if engine.num_gpus else frozenset(),
    )


def _engine(name: str, engine: EngineConfig, model: ModelFacts) -> Actor:
    """A process that samples: weights and KV cache, cut over its GPUs."""
    backend, size, gpus = engine_backend(engine), BYTES[engine.dtype], max(1, round(engine.num_gpus))
    cache = engine.kv_cache_gib
    if backend == "transformers":  # grows with what is sampled: at most every sequence at full length
        cache = engine.max_num_seqs * engine.max_model_len * model.kv_numbers * size / GIB
    parts = {"process": PROCESS_GIB[backend], "weights": model.parameters * size / gpus / GIB, "kv cache": cache}
    return Actor(name=f"{name} ({backend})", cores=1, gpus=engine.num_gpus, parts=parts)


def _shared_engine(config: LongShortConfig, model: ModelFacts) -> Actor:
    """The one process that samples for both roles: an engine of the base, and their adapters."""
    alone, engine = _role_engine(config, LONG, model), config.long.engine
    size, rank = BYTES[engine.dtype], max(config.role(role).lora.r for role in ROLES)
    parts = {"adapters": len(ROLES) * adapter_parameters(model, rank) * size}
    if "(transformers)" in alone.name:
        parts["base beside the merged"] = model.parameters * size
    elif not engine.num_gpus:
        # vLLM's CPU kernels copy a layer's half of an adapter once per token of a step.
        parts["adapters per token"] = (
            max(engine.max_model_len, engine.max_num_seqs) * rank * max(model.hidden, model.intermediate) * size
        )
    extra = {name: amount / GIB for name, amount in parts.items()}
    return replace(alone, name=alone.name.replace(LONG, "+".join(ROLES)), parts=alone.parts | extra)


def _learner(config: LongShortConfig, role: str, model: ModelFacts) -> list[Actor]:
    """The processes that learn: training state, one micro-batch, and the weights on their way to the engine.

    By the object store two copies of them stand in host memory, from GPU to GPU one or two buffers in the GPU's.
    """
    learner, size, tokens = config.learner, BYTES[config.dtype], config.batch_tokens
    way, _ = choose(config, role, engine_backend(config.role(role).engine))
    name, state = _training_state(config, role, model)
    activations = activations_gib(model, tokens, size, autocast=size == 2, checkpointing=learner.gradient_checkpointing)
    parts = {"process": PROCESS_GIB["learner"], **state, "micro-batch": activations + logits_gib(model, tokens)}
    host = _published(config, role, model) if way == "object_store" else {}
    if learner.offload:
        host["AdamW, offloaded"] = optimizer_bytes(4) * model.parameters / GIB
    if way != "object_store":
        parts["transfer"] = {"ipc": 1, "nccl": 2}[way] * transfer_gib(config, model)
    gpus = config.learner_gpus
    found = Actor(
        name=f"{role} learner ({name})",
        cores=1,
        gpus=gpus,
        parts=parts if gpus else parts | host,
        count=learner.ranks,
        together=role if shares_gpu(config, role) else "",
        returned=frozenset({"micro-batch", "transfer"}) if gpus else frozenset(),
    )
    if gpus and host:
        return [found, Actor(name=f"{role} learner, host memory", cores=0, gpus=0, parts=host)]
    return [found]


def transfer_gib(config: LongShortConfig, model: ModelFacts) -> float:
    """A buffer of weight_outbox.py: of its usual size, or of the largest tensor (the embedding)."""
    from longshort.backends.weights.weight_outbox import BUFFER_BYTES

    return max(BUFFER_BYTES, model.vocabulary * model.hidden * BYTES[config.dtype]) / GIB


def _cold_start(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> list[Actor]:
    """The engines that make the data, as if all ran at once, and the larger of the two fine-tunings, which come one after the other."""
    section, found = config.coldstart, []
    if "instruct" in (section.chunk.splitter, section.rewrite.rewriter) and section.instruct.model:
        model = read_facts(section.instruct.model, "coldstart.instruct.model")
        found.append(_engine("coldstart.instruct", section.instruct.engine, model))
    rollout, engine, model = section.rollout, config.short.engine, facts.get(SHORT)
    if rollout:
        engine, model = rollout.engine, read_facts(rollout.model, "coldstart.rollout.model")
    if model:
        found.append(replace(_engine("coldstart.rollout", engine, model), count=section.importance.num_engines))
    tunings = [_tuning(config, role, model) for role, model in facts.items()]
    return [replace(actor, when=COLD_START) for actor in [*found, max(tunings, key=lambda actor: actor.gib)]]


def _tuning(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """Supervised fine-tuning by TRL, in float32 or under autocast; with LoRA only the frozen weights count."""
    settings, size = config.role(role).sft, BYTES[config.dtype]
    state = 4 * model.parameters if settings.lora else sum(torch_state(model.parameters, size).values())
    tokens = settings.micro_batch_size * settings.max_length
    activations = activations_gib(
        model, tokens, size, autocast=size == 2, checkpointing=settings.gradient_checkpointing
    )
    parts = {"process": PROCESS_GIB["learner"], "weights + gradient + AdamW": state / GIB, "micro-batch": activations}
    return Actor(name=f"{role} fine-tuning (trl)", cores=1, gpus=config.learner_gpus, parts=parts)


def _training_state(config: LongShortConfig, role: str, model: ModelFacts) -> tuple[str, dict[str, float]]:
    """What a learner is called, and GiB of what each of its ranks keeps from step to step."""
    learner, size, reference = config.learner, BYTES[config.dtype], 4 * model.parameters
    name, state = "torch", torch_state(model.parameters, size)
    if lora := config.role(role).lora:  # the reference is the base itself, with the adapter switched off
        adapter = sum(torch_state(adapter_parameters(model, lora.r), size).values())
        return name, {"frozen base": 4 * model.parameters / GIB, "adapter + gradient + AdamW": adapter / GIB}
    if learner.backend == "deepspeed":
        # The learner's parameters are float32 whatever the arithmetic (backends/learners/deepspeed_learner.py).
        name = f"deepspeed, ZeRO-{learner.zero_stage}" + (f", {learner.ranks} ranks" if learner.ranks > 1 else "")
        state = zero_state(model.parameters, learner.zero_stage, learner.ranks, 4, offload=learner.offload)
        reference /= learner.ranks if learner.zero_stage == 3 else 1
    return name, {
        "weights + gradient + AdamW": sum(state.values()) / GIB,
        "reference": reference / GIB if config.loss.beta else 0.0,
    }


def _published(config: LongShortConfig, role: str, model: ModelFacts) -> dict[str, float]:
    """GiB of host memory while new weights are in it: two copies, and before them an adapter's base with it merged, in float32."""
    numbers, size, merging = model.parameters, BYTES[config.dtype], {}
    if lora := config.role(role).lora:
        merging = {"merging": 4 * model.parameters / GIB}
        if config.share_engine:
            numbers, size = adapter_parameters(model, lora.r), 4
    return merging | {"publishing": 2 * numbers * size / GIB}


def free_gib(processes: Sequence[Actor]) -> dict[str, float | None]:
    """Free memory of the devices used, each GPU by itself; None for a Ray cluster's, which is elsewhere. LongShortError for GPUs that are
    not there."""
    gpus = max(
        sum(actor.gpus * actor.count for actor in processes if actor.when == when) for when in (TRAINING, COLD_START)
    )
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
        free |= {f"gpu {i}": torch.cuda.mem_get_info(i)[0] / GIB for i in range(torch.cuda.device_count())}
    return free


def places(processes: Sequence[Actor], devices: Sequence[str]) -> dict[str, list[str]]:
    """On which of the devices each actor's processes run: whole GPUs one each, shares of one side by side, each on the first GPU with room.

    LongShortError where there is none: then Ray would wait for ever.
    """
    gpus = [device for device in devices if device != "cpu"]
    found: dict[str, list[str]] = {actor.name: ["cpu"] * actor.count for actor in processes if not actor.gpus}
    for when in (TRAINING, COLD_START):
        room = dict.fromkeys(gpus, 1.0)
        chosen: dict[str, str] = {}
        shares: dict[str, float] = defaultdict(float)
        mine = [actor for actor in processes if actor.gpus and actor.when == when]
        for actor in mine:
            shares[actor.together or actor.name] += actor.gpus
        for actor in mine:
            wanted = [1.0] * round(actor.gpus) if actor.gpus > 1 else [shares[actor.together or actor.name]]
            if actor.together in chosen:
                found[actor.name] = [chosen[actor.together]]
                continue
            found[actor.name] = [_take(share, room, gpus, mine) for share in wanted * actor.count]
            if actor.together:
                chosen[actor.together] = found[actor.name][0]
    return found


def _take(share: float, room: dict[str, float], gpus: Sequence[str], wanting: Sequence[Actor]) -> str:
    """The first GPU with so much of it left; a cluster's, of which nothing is known, is one name for all."""
    device = next((gpu for gpu in gpus if gpus == ["gpu"] or room[gpu] > share - 1e-6), None)
    if device is None:
        listed = ", ".join(f"{actor.name} {actor.count} × {actor.gpus:g}" for actor in wanting)
        raise LongShortError(
            f"the recipe asks for {sum(actor.gpus * actor.count for actor in wanting):g} GPUs at once ({listed}) but {len(gpus)} are here; "
            "lower engine.num_gpus, learner_gpus or learner.ranks"
        )
    room[device] -= share
    return device


def shape_facts(name: str, shape: ModelShape, vocabulary: int, context: int) -> ModelFacts:
    """The facts of a miniature model before it is made (Qwen2 architecture, untied head)."""
    kv_width = shape.hidden_size // shape.num_heads * shape.num_kv_heads
    attention = 2 * shape.hidden_size * (shape.hidden_size + kv_width)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return ModelFacts(
        name=name,
        parameters=shape.num_layers * layer + 2 * vocabulary * shape.hidden_size,
        layers=shape.num_layers,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        kv_heads=shape.num_kv_heads,
        kv_width=kv_width,
        vocabulary=vocabulary,
        context=context,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes of a run, the devices of each by its name, free GiB by device, how each role's new weights travel and why, and whether
    engines and learners take turns."""

    actors: Sequence[Actor]
    places: Mapping[str, Sequence[str]]
    free: Mapping[str, float | None]
    ways: Mapping[str, tuple[str, str]]
    time_share: bool
    episodes_per_step: int

    def needed(self, device: str) -> float:
        """GiB of all processes that are on that device at the same time."""
        return max(self._needed(device, when) for when in (TRAINING, COLD_START))

    def _needed(self, device: str, when: str) -> float:
        there = [
            actor for actor in self.actors if actor.when == when for place in self.places[actor.name] if place == device
        ]
        whole, least = sum(actor.gib for actor in there), sum(actor.least_gib for actor in there)
        if not self.time_share:
            return whole
        learning = sum(actor.gib - actor.least_gib for actor in there if "micro-batch" in actor.returned)
        return least + max(learning, whole - least - learning)

    @property
    def too_small(self) -> list[str]:
        """The devices whose free memory does not suffice."""
        return [device for device, free in self.free.items() if free is not None and self.needed(device) > free]


def plan(config: LongShortConfig) -> Plan:
    """Work out the plan; LongShortError where a model folder cannot be read or a GPU is not there."""
    facts = model_facts(config)
    processes = actors(config, facts)
    free = free_gib(processes)
    for role in facts:
        check_time_share(config, role)
    return Plan(
        actors=processes,
        places=places(processes, list(free)),
        free=free,
        ways={role: choose(config, role, engine_backend(config.role(role).engine)) for role in facts},
        time_share=config.time_share,
        episodes_per_step=config.num_problems * config.num_generations,
    )
