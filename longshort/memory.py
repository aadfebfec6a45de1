"""How much memory each process of a run takes, estimated from the models' headers before anything starts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longshort.backends.devices import engine_backend, shares_gpu
from longshort.backends.weight_transfer import choose
from longshort.config import LongShortConfig
from longshort.doctor import GIB, free_memory
from longshort.model_files import PUBLISHED, ModelFacts, read_facts, shape_facts
from longshort.sections import EngineConfig
from longshort.types import LONG, ROLES, SHORT, LongShortError

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model (measured: torch 2.13, vLLM 0.31)."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's two communication buckets (its default reduce_bucket_size and allgather_bucket_size)."""


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
    found = [Actor(name="driver and ray", cores=1, gpus=0, parts={"process": PROCESS_GIB["driver"] + PROCESS_GIB["ray"]})]
    for role, model in facts.items():
        found += [_role_engine(config, role, model), *_learner(config, role, model)]
    workers = config.grading.workers
    graders = Actor(name=f"graders ({workers})", cores=workers, gpus=0, parts={"process": workers * PROCESS_GIB["grader"]})
    found.append(graders)
    if config.coldstart is None:
        return found
    return [*found, *(replace(actor, when=COLD_START) for actor in (found[0], graders)), *_cold_start(config, facts)]


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


def _role_engine(config: LongShortConfig, role: str, model: ModelFacts) -> Actor:
    """The process that samples a role's turns; a GPU that receives by NCCL holds two buffers beside its model."""
    engine = config.role(role).engine
    way, _ = choose(config, role, engine_backend(engine))
    found = _engine(f"{role} engine", engine, model)
    parts = dict(found.parts) | ({"transfer": 2 * transfer_gib(config, model)} if way == "nccl" else {})
    together = role if shares_gpu(config, role) else ""
    return replace(found, parts=parts, together=together, returned=frozenset({"weights", "kv cache"}) if engine.num_gpus else frozenset())


def _engine(name: str, engine: EngineConfig, model: ModelFacts) -> Actor:
    """A process that samples: weights and KV cache, cut over its GPUs."""
    backend, size, gpus = engine_backend(engine), BYTES[engine.dtype], max(1, round(engine.num_gpus))
    cache = engine.kv_cache_gib
    if backend == "transformers":  # grows with what is sampled: at most every sequence at full length
        cache = engine.max_num_seqs * engine.max_model_len * model.kv_numbers * size / GIB
    parts = {"process": PROCESS_GIB[backend], "weights": model.parameters * size / gpus / GIB, "kv cache": cache}
    return Actor(name=f"{name} ({backend})", cores=1, gpus=engine.num_gpus, parts=parts)


def _learner(config: LongShortConfig, role: str, model: ModelFacts) -> list[Actor]:
    """The processes that learn: training state, one micro-batch, and the weights on their way to the engine.

    By the object store two copies of them stand in host memory, from GPU to GPU one or two buffers in the GPU's.
    """
    learner, size, tokens = config.learner, BYTES[config.dtype], config.batch_tokens
    way, _ = choose(config, role, engine_backend(config.role(role).engine))
    autocast = size == 2
    name, state, reference = "torch", torch_state(model.parameters, size), 4 * model.parameters
    if learner.backend == "deepspeed":
        # The learner's parameters are float32 whatever the arithmetic (backends/deepspeed_learner.py).
        name = f"deepspeed, ZeRO-{learner.zero_stage}" + (f", {learner.ranks} ranks" if learner.ranks > 1 else "")
        state = zero_state(model.parameters, learner.zero_stage, learner.ranks, 4, offload=learner.offload)
        reference = 4 * model.parameters / (learner.ranks if learner.zero_stage == 3 else 1)
    activations = activations_gib(model, tokens, size, autocast=autocast, checkpointing=learner.gradient_checkpointing)
    parts = {
        "process": PROCESS_GIB["learner"],
        "weights + gradient + AdamW": sum(state.values()) / GIB,
        "reference": reference / GIB if config.loss.beta else 0.0,
        "micro-batch": activations + logits_gib(model, tokens),
    }
    host = {"publishing": 2 * model.parameters * size / GIB} if way == "object_store" else {}
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
    from longshort.backends.weight_outbox import BUFFER_BYTES

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
    activations = activations_gib(model, tokens, size, autocast=size == 2, checkpointing=settings.gradient_checkpointing)
    parts = {"process": PROCESS_GIB["learner"], "weights + gradient + AdamW": state / GIB, "micro-batch": activations}
    return Actor(name=f"{role} fine-tuning (trl)", cores=1, gpus=config.learner_gpus, parts=parts)


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
    """Free memory of the devices used, each GPU by itself; None for a Ray cluster's, which is elsewhere. LongShortError for GPUs that are
    not there."""
    gpus = max(sum(actor.gpus * actor.count for actor in processes if actor.when == when) for when in (TRAINING, COLD_START))
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
