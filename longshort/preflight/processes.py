"""The processes of a run and the memory of each, estimated from the models' headers before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longshort.backends.devices import engine_backend, shares_gpu
from longshort.backends.weight_transfer import choose
from longshort.dialogue.protocols import make_protocol
from longshort.preflight.memory_formulas import (
    BYTES,
    GIB,
    activations_gib,
    adapter_parameters,
    logits_gib,
    torch_state,
    zero_state,
)
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import ModelFacts, read_facts
from longshort.types import LONG, ROLES, SHORT

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model (measured: torch 2.13, vLLM 0.31)."""

Phase = Literal["training", "cold start"]
"""Peak memory is counted per phase; phases do not overlap."""
PHASES: tuple[Phase, ...] = ("training", "cold start")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedProcess:
    """One process, or `count` alike: the devices it needs and what fills its memory, in GiB (on each of its GPUs).

    PlannedProcess(name="long engine (vllm)", kind="engine", parts={"process": 1.0, "weights": 1.84, "kv cache": 0.5})
    """

    name: str
    kind: Literal["driver", "engine", "learner", "grader", "host memory"]
    parts: Mapping[str, float]
    cores: float = 1
    gpus: float = 0
    count: int = 1
    phase: Phase = "training"
    settings: tuple[str, ...] = ()
    """An engine's sections of the recipe: ("long.engine",), for a shared engine both roles'."""
    group: str = ""
    """Processes that name the same group share one GPU."""
    returned: frozenset[str] = frozenset()
    """Parts that are given back while it is the others' turn (`time_share`)."""

    @property
    def gib(self) -> float:
        """Memory of one process."""
        return sum(self.parts.values())

    @property
    def least_gib(self) -> float:
        """Memory of one process while it is the others' turn."""
        return sum(gib for part, gib in self.parts.items() if part not in self.returned)


class KnownModels(dict[str, ModelFacts]):
    """Facts of models that need not be here; a folder of that name goes first."""

    def facts(self, model: str, key: str) -> ModelFacts:
        """Return a model's facts; raise LongShortError where it is neither known nor readable."""
        return self[model] if model in self and not Path(model).is_dir() else read_facts(model, key)


def model_facts(config: LongShortConfig, known: KnownModels | None = None) -> dict[str, ModelFacts]:
    """Return the facts of each role's model. A miniature model need not exist yet."""
    return {role: _role_facts(config, role, known or KnownModels()) for role in make_protocol(config).roles}


def _role_facts(config: LongShortConfig, role: str, known: KnownModels) -> ModelFacts:
    model = config.role(role).model
    if model or not config.miniature:
        return known.facts(model, f"{role}.model")
    from longshort.miniature.tokenizer import build_tokenizer

    shape = {LONG: config.miniature.long, SHORT: config.miniature.short}[role]
    vocabulary, kv_width = len(build_tokenizer(role)), shape.hidden_size // shape.num_heads * shape.num_kv_heads
    block = 2 * shape.hidden_size * (shape.hidden_size + kv_width) + 3 * shape.hidden_size * shape.intermediate_size
    return ModelFacts(
        name=f"miniature {role}",
        parameters=shape.num_layers * block + 2 * vocabulary * shape.hidden_size,
        layers=shape.num_layers,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        kv_heads=shape.num_kv_heads,
        kv_width=kv_width,
        vocabulary=vocabulary,
        context=config.role(role).engine.max_model_len,
    )


def processes_of(
    config: LongShortConfig, facts: Mapping[str, ModelFacts], known: KnownModels, *, training: bool
) -> list[PlannedProcess]:
    """List every process of the cold start and, where `training`, of the training."""
    workers = config.grading.workers
    driver = {"process": PROCESS_GIB["driver"] + PROCESS_GIB["ray"]}
    graders = {"process": workers * PROCESS_GIB["grader"]}
    first = PlannedProcess(name="driver and ray", kind="driver", parts=driver)
    last = PlannedProcess(name=f"graders ({workers})", kind="grader", cores=workers, parts=graders)
    listed: list[PlannedProcess] = []
    if training:
        for role, model in facts.items():
            if role == LONG or not config.share_engine:
                listed.append(_role_engine(config, role, model))
            listed += _learner(config, role, model)
        listed = [first, *listed, last]
    if config.coldstart:
        cold = [first, *_cold_start_engines(config, facts, known), _fine_tuning(config, facts), last]
        listed += [replace(process, phase="cold start") for process in cold]
    return listed


def _engine(name: str, section: str, engine: EngineConfig, model: ModelFacts) -> PlannedProcess:
    """Return a process that samples: weights and KV cache, split over its GPUs."""
    backend, size, gpus = engine_backend(engine), BYTES[engine.dtype], max(1, round(engine.num_gpus))
    cache = engine.kv_cache_gib
    if backend == "transformers":  # grows with what is sampled: at most every sequence at full length
        cache = engine.max_num_seqs * engine.max_model_len * model.kv_numbers * size / GIB
    parts = {"process": PROCESS_GIB[backend], "weights": model.parameters * size / gpus / GIB, "kv cache": cache}
    return PlannedProcess(
        name=f"{name} ({backend})", kind="engine", gpus=engine.num_gpus, parts=parts, settings=(section,)
    )


def _role_engine(config: LongShortConfig, role: str, model: ModelFacts) -> PlannedProcess:
    """Return the process that samples a role's turns, or with `share_engine` those of both roles."""
    engine = config.role(role).engine
    backend = engine_backend(engine)
    roles = ROLES if config.share_engine else (role,)
    process = _engine(f"{'+'.join(roles)} engine", "", engine, model)
    parts = dict(process.parts)
    if choose(config, role, backend)[0] == "nccl":
        parts["transfer"] = 2 * _transfer_gib(config, model)
    if config.share_engine:
        parts |= _adapter_parts(config, backend, model)
    return replace(
        process,
        parts=parts,
        settings=tuple(f"{name}.engine" for name in roles),
        group=role if shares_gpu(config, role) else "",
        returned=frozenset({"weights", "kv cache"}) if engine.num_gpus else frozenset(),
    )


def _adapter_parts(config: LongShortConfig, backend: str, model: ModelFacts) -> dict[str, float]:
    """Return the GiB that both roles' adapters add to an engine of their base."""
    engine = config.long.engine
    size, rank = BYTES[engine.dtype], max(lora.r for role in ROLES if (lora := config.role(role).lora))
    parts = {"adapters": len(ROLES) * adapter_parameters(model, rank) * size}
    if backend == "transformers":
        parts["base beside the merged"] = model.parameters * size
    elif not engine.num_gpus:  # vLLM's CPU kernels copy a layer's half of an adapter for every token of a step
        tokens = max(engine.max_model_len, engine.max_num_seqs)
        parts["adapters per token"] = tokens * rank * max(model.hidden, model.intermediate) * size
    return {name: amount / GIB for name, amount in parts.items()}


def _learner(config: LongShortConfig, role: str, model: ModelFacts) -> list[PlannedProcess]:
    """Return a role's learner: training state, one micro-batch, and the weights on their way to the engine.

    Through the object store two copies of them are in host memory; from GPU to GPU, one or two buffers in the GPU's.
    """
    learner, size, gpus = config.learner, BYTES[config.dtype], config.learner_gpus
    checkpointing = learner.gradient_checkpointing
    route, _ = choose(config, role, engine_backend(config.role(role).engine))
    name = "torch"
    if learner.backend == "deepspeed":
        ranks = f", {learner.ranks} ranks" if learner.ranks > 1 else ""
        name = f"deepspeed, ZeRO-{learner.zero_stage}{ranks}"
    parts = {
        "process": PROCESS_GIB["learner"],
        **learner_state(config, role, model),
        "activations": activations_gib(model, config.batch_tokens, size, checkpointing=checkpointing),
        "logits": logits_gib(model, config.batch_tokens),
    }
    host = {}
    if route == "object_store":
        host = _published(config, role, model)
    else:
        parts["transfer"] = {"ipc": 1, "nccl": 2}[route] * _transfer_gib(config, model)
    if learner.offload:
        host["offloaded optimizer"] = 8 * model.parameters / GIB
    process = PlannedProcess(
        name=f"{role} learner ({name})",
        kind="learner",
        gpus=gpus,
        parts=parts if gpus else parts | host,
        count=learner.ranks,
        group=role if shares_gpu(config, role) else "",
        returned=frozenset({"activations", "logits", "transfer"}) if gpus else frozenset(),
    )
    beside = PlannedProcess(name=f"{role} learner, host memory", kind="host memory", cores=0, parts=host)
    return [process, beside] if gpus and host else [process]


def learner_state(config: LongShortConfig, role: str, model: ModelFacts) -> dict[str, float]:
    """Return the GiB that each rank of a role's learner keeps from step to step, by part."""
    learner, size = config.learner, BYTES[config.dtype]
    reference = 4 * model.parameters
    if lora := config.role(role).lora:  # the reference is the base itself, with the adapter switched off
        adapter = sum(torch_state(adapter_parameters(model, lora.r), size).values())
        return {"frozen base": 4 * model.parameters / GIB, "adapter + gradient + AdamW": adapter / GIB}
    if learner.backend == "deepspeed":
        state = zero_state(model.parameters, learner.zero_stage, learner.ranks, offload=learner.offload)
        reference /= learner.ranks if learner.zero_stage == 3 else 1
    else:
        state = torch_state(model.parameters, size)
    if config.loss.beta:
        state["reference"] = reference
    return {name: amount / GIB for name, amount in state.items()}


def _transfer_gib(config: LongShortConfig, model: ModelFacts) -> float:
    """Return the size of a buffer of weight_outbox.py: the usual one, or the largest tensor (the embedding)."""
    from longshort.backends.weights.weight_outbox import BUFFER_BYTES

    return max(BUFFER_BYTES, model.vocabulary * model.hidden * BYTES[config.dtype]) / GIB


def _published(config: LongShortConfig, role: str, model: ModelFacts) -> dict[str, float]:
    """Return the GiB of host memory that new weights take: two copies, with LoRA also the merged float32 model."""
    numbers, size, merging = model.parameters, BYTES[config.dtype], {}
    if lora := config.role(role).lora:
        merging = {"merging": 4 * model.parameters / GIB}
        if config.share_engine:
            numbers, size = adapter_parameters(model, lora.r), 4
    return merging | {"publishing": 2 * numbers * size / GIB}


def _cold_start_engines(
    config: LongShortConfig, facts: Mapping[str, ModelFacts], known: KnownModels
) -> list[PlannedProcess]:
    """Return the engines that make the cold start's data, as if all ran at once."""
    section, engines = config.coldstart, []
    assert section is not None
    if "instruct" in (section.chunk.splitter, section.rewrite.rewriter) and section.instruct.model:
        model = known.facts(section.instruct.model, "coldstart.instruct.model")
        engines.append(_engine("coldstart.instruct", "coldstart.instruct.engine", section.instruct.engine, model))
    key, engine, model = "short.engine", config.short.engine, facts.get(SHORT)
    if section.rollout:
        key, engine = "coldstart.rollout.engine", section.rollout.engine
        model = known.facts(section.rollout.model, "coldstart.rollout.model")
    if model:
        rollout = _engine("coldstart.rollout", key, engine, model)
        engines.append(replace(rollout, count=section.importance.num_engines))
    return engines


def _fine_tuning(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> PlannedProcess:
    """Return the larger of the fine-tunings, which run one after the other; with LoRA only the frozen weights count."""
    tunings = []
    for role, model in facts.items():
        settings, size = config.role(role).sft, BYTES[config.dtype]
        state = {"weights": 4 * model.parameters} if settings.lora else torch_state(model.parameters, size)
        tokens, checkpointing = settings.micro_batch_size * settings.max_length, settings.gradient_checkpointing
        parts = {"process": PROCESS_GIB["learner"]} | {name: amount / GIB for name, amount in state.items()}
        parts["activations"] = activations_gib(model, tokens, size, checkpointing=checkpointing)
        name = f"{role} fine-tuning (trl)"
        tunings.append(PlannedProcess(name=name, kind="learner", gpus=config.learner_gpus, parts=parts))
    return max(tunings, key=lambda process: process.gib)
