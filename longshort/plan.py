"""`longshort plan`: what a recipe would run, where, in how much memory; and the checks made before anything starts.

Memory is estimated from the models' headers. What a process needs beside its model was measured (2 cores, torch 2.13, vLLM 0.31).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshort import console
from longshort.config import LongShortConfig, lookup
from longshort.doctor import GIB, free_memory
from longshort.model_files import ModelFacts, read_facts, shape_facts
from longshort.types import LONG, ROLES, SHORT, LongShortError, Problem

PROCESS_GIB = {"driver": 0.6, "ray": 0.6, "vllm": 1.0, "transformers": 0.6, "learner": 0.5, "grader": 0.1}
"""Resident memory of a process before it holds a model."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_BYTES = 16
"""Per parameter while learning in float32: weight 4, gradient 4, AdamW's two moments 8."""
CHECKPOINT_BYTES = 12
"""Per parameter on disk: weight 4, moments 8."""
LONGEST = 32
"""The prompts checked against the context: the longest by characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """One process: what it runs on and what fills its memory, in GiB."""

    name: str
    device: str
    cores: float
    gpus: float
    parts: Mapping[str, float]

    @property
    def gib(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run consists of. `free` is None for memory that this machine cannot know (a Ray cluster's)."""

    stages: Sequence[tuple[str, str, int | None]]
    """(name, what it does, seconds or None if unknown)"""
    actors: Sequence[Actor]
    free: Mapping[str, float | None]
    """GiB by device: "cpu" and "gpu"."""
    episodes_per_step: int

    def needed(self, device: str) -> float:
        """GiB of all actors on that device together."""
        return sum(actor.gib for actor in self.actors if actor.device == device)

    @property
    def too_large(self) -> list[str]:
        """The devices whose memory does not suffice."""
        return [device for device, free in self.free.items() if free is not None and self.needed(device) > free]


def plan(config: LongShortConfig) -> Plan:
    """Work out the plan; raises LongShortError where a model folder cannot be read or a name is unknown."""
    from longshort.stages import STAGES, stage_names

    stages = [(name, STAGES[name].title, STAGES[name].seconds if config.miniature else None) for name in stage_names(config)]
    actors = [Actor(name="driver and ray", device="cpu", cores=1, gpus=0, parts={"process": PROCESS_GIB["driver"] + PROCESS_GIB["ray"]})]
    for role in roles(config):
        facts = model_facts(config, role)
        actors += [engine_actor(config, role, facts), learner_actor(config, role, facts)]
    workers = config.grading.workers
    actors.append(Actor(name=f"graders ({workers})", device="cpu", cores=workers, gpus=0, parts={"process": workers * PROCESS_GIB["grader"]}))
    return Plan(stages=stages, actors=actors, free=free_gib(actors), episodes_per_step=config.num_problems * config.num_generations)


def roles(config: LongShortConfig) -> Sequence[str]:
    """The roles that the recipe's protocol lets speak."""
    return (LONG,) if config.protocol.name == "solo" else ROLES


def model_facts(config: LongShortConfig, role: str) -> ModelFacts:
    """The role's model; one of the miniature need not exist yet."""
    if config.miniature and not config.role(role).model:
        shape = {LONG: config.miniature.long, SHORT: config.miniature.short}[role]
        return shape_facts(f"miniature {role}", shape, config.role(role).engine.max_model_len)
    return read_facts(config.role(role).model, f"{role}.model")


def engine_actor(config: LongShortConfig, role: str, facts: ModelFacts) -> Actor:
    """The process that samples: weights and KV cache."""
    from longshort.backends.ray_cluster import engine_backend

    engine = config.role(role).engine
    backend, size = engine_backend(engine), BYTES[engine.dtype]
    cache = engine.kv_cache_gib
    if backend == "transformers":  # grows with what is sampled; at most every sequence at full length
        cache = engine.max_num_seqs * engine.max_model_len * facts.kv_numbers * size / GIB
    parts = {"process": PROCESS_GIB[backend], "weights": facts.parameters * size / GIB, "kv cache": cache}
    return Actor(name=f"{role} engine ({backend})", device="gpu" if engine.num_gpus else "cpu", cores=1, gpus=engine.num_gpus, parts=parts)


def learner_actor(config: LongShortConfig, role: str, facts: ModelFacts) -> Actor:
    """The process that learns: float32 weights, gradient and AdamW, the reference, one micro-batch, and two copies of the weights to publish."""
    from longshort.learning.step import LOGITS_HELD

    # Per token and layer a Qwen2 block keeps about 10 vectors of the hidden size and 4 of the feed-forward's for the backward pass.
    per_token = facts.layers * (10 * facts.hidden + 4 * facts.intermediate) * BYTES[config.dtype]
    logits = 3 * 4 * min(LOGITS_HELD, config.batch_tokens * facts.vocabulary)
    parts = {
        "process": PROCESS_GIB["learner"],
        "weights, gradient, AdamW": facts.parameters * ADAM_BYTES / GIB,
        "reference": facts.parameters * 4 / GIB if config.loss.beta else 0.0,
        "micro-batch": (config.batch_tokens * per_token + logits) / GIB,
        "publishing": 2 * facts.parameters * BYTES[config.dtype] / GIB,
    }
    device = "gpu" if config.learner_gpus else "cpu"
    return Actor(name=f"{role} learner (torch)", device=device, cores=1, gpus=config.learner_gpus, parts=parts)


def free_gib(actors: Sequence[Actor]) -> dict[str, float | None]:
    """Free memory by device; None for a Ray cluster's, which is elsewhere."""
    wants_gpu = any(actor.gpus for actor in actors)
    if os.environ.get("RAY_ADDRESS"):
        return {"cpu": None} | ({"gpu": None} if wants_gpu else {})
    free: dict[str, float | None] = {"cpu": free_memory() / GIB}
    if wants_gpu:
        import torch

        if not torch.cuda.is_available():
            raise LongShortError(
                f"the recipe asks for {sum(actor.gpus for actor in actors):g} GPUs but torch sees none here; set num_gpus and learner_gpus to 0, "
                "install a CUDA build of torch (longshort doctor), or set RAY_ADDRESS to a cluster that has GPUs"
            )
        free["gpu"] = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())) / GIB
    return free


def render(planned: Plan) -> str:
    """The plan as text."""
    lines = ["stages"]
    for number, (name, title, seconds) in enumerate(planned.stages, 1):
        lines.append(f"  {number}. {name:<10} {title}" + (f" (about {console.duration(seconds)})" if seconds else ""))
    rows = []
    for actor in planned.actors:
        where = f"gpu × {actor.gpus:g}" if actor.gpus else f"cpu × {actor.cores:g}"
        parts = ", ".join(f"{name} {gib:.2f}" for name, gib in actor.parts.items() if gib >= 0.005)
        rows.append([actor.name, where, f"{actor.gib:.2f}", parts])
    lines += ["", *_left_last(console.table(["process", "runs on", "GiB", "of which"], rows)), ""]
    for device, free in planned.free.items():
        known = "the cluster's memory is not known here" if free is None else f"{free:.1f} GiB free"
        lines.append(f"memory ({device}): {planned.needed(device):.1f} GiB needed, {known}" + (" - DOES NOT FIT" if device in planned.too_large else ""))
    lines.append(f"episodes per step: {planned.episodes_per_step}")
    return "\n".join(lines)


def check(config: LongShortConfig, *, problems: Sequence[Problem] | None = None, protocol=None) -> None:
    """Refuse, before anything starts, what cannot work: names, memory, models, tokenizers, data, context, output folder.

    `problems` and `protocol` are those handed to the trainer class, where they replace the recipe's. Raises LongShortError.
    """
    from longshort.data import load_problems
    from longshort.pair import make_protocol
    from longshort.team.grading import GradingPool

    check_names(config)
    check_output(config)
    check_memory(plan(config))
    facts = {role: model_facts(config, role) for role in roles(config)}
    check_contexts(config, facts)
    check_disk(config, facts)
    protocol = protocol or make_protocol(config)
    tokenizers = {role: load_tokenizer(config, role) for role in protocol.roles}
    for source in [config.dataset, config.eval.dataset] if problems is None else []:
        if source:
            found = load_problems(source, limit=config.eval.num_problems if source == config.eval.dataset else None)
            check_prompts(config, found, protocol, tokenizers)
            with GradingPool(config.grading.workers, config.grading.timeout_s, config.grading.memory_mb) as pool:
                pool.check_golds(found)
    if problems is not None:
        check_prompts(config, problems, protocol, tokenizers)


def check_names(config: LongShortConfig) -> None:
    """Every plug-in that the recipe names exists."""
    from longshort.learning import losses
    from longshort.learning.advantages import ADVANTAGES
    from longshort.team.protocols import PROTOCOLS

    lookup(PROTOCOLS, config.protocol.name, "protocol.name")
    lookup(ADVANTAGES, config.advantage, "advantage")
    lookup(losses.LOSSES, config.loss.name, "loss.name")
    losses.check(config.loss)


def check_memory(planned: Plan) -> None:
    """The sum of all processes fits into what is free."""
    for device in planned.too_large:
        largest = sorted((actor for actor in planned.actors if actor.device == device), key=lambda actor: -actor.gib)
        listed = ", ".join(f"{actor.name} {actor.gib:.1f}" for actor in largest)
        raise LongShortError(
            f"this recipe needs {planned.needed(device):.1f} GiB of {device} memory but {planned.free[device]:.1f} GiB are free ({listed}); "
            "lower engine.kv_cache_gib or batch_tokens, take smaller models, or free memory"
        )


def check_contexts(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """The engine's context is one the model knows, and its KV cache holds one dialogue at least."""
    for role, model in facts.items():
        engine = config.role(role).engine
        if engine.max_model_len > model.context:
            raise LongShortError(
                f"{role}.engine.max_model_len is {engine.max_model_len} but {model.name} knows positions up to {model.context} "
                "(max_position_embeddings); lower the one or take another model"
            )
        held = int(engine.kv_cache_gib * GIB / (model.kv_numbers * BYTES[engine.dtype]))
        if held < engine.max_model_len:
            raise LongShortError(
                f"{role}.engine.kv_cache_gib is {engine.kv_cache_gib:g}, which holds {held:,} tokens of {model.name}, but max_model_len is "
                f"{engine.max_model_len:,}; raise kv_cache_gib to {engine.kv_cache_gib * engine.max_model_len / max(held, 1) * 1.1:.2g} or lower max_model_len"
            )


def check_output(config: LongShortConfig) -> None:
    """The output folder can be made and written."""
    folder = Path(config.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise LongShortError(f"output_dir {config.output_dir}: {existing} is a file; choose another folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise LongShortError(f"output_dir {config.output_dir}: {existing} cannot be written ({error.strerror}); choose another folder") from error


def check_disk(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """The checkpoints fit: those kept, and the one being written."""
    folder = Path(config.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    copies = config.save_total_limit + 1
    needed = copies * CHECKPOINT_BYTES * sum(model.parameters for model in facts.values()) / GIB
    free = shutil.disk_usage(existing).free / GIB
    if needed > free:
        raise LongShortError(
            f"output_dir {config.output_dir}: {copies} checkpoints take {needed:.1f} GiB but {free:.1f} GiB are free on that disk; choose "
            f"another disk or lower save_total_limit ({config.save_total_limit})"
        )


def load_tokenizer(config: LongShortConfig, role: str):
    """The role's tokenizer, with the special tokens that `protocol.tags: special` needs."""
    from longshort.team.protocols import ROLE_TAGS, special_ids

    model = config.role(role).model
    if config.miniature and not model:
        from longshort.miniature.tokenizer import build_tokenizer

        tokenizer = build_tokenizer(role)
    else:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LongShortError(f"{role}.model: {model!r} has no tokenizer that loads ({error}); copy its tokenizer files there") from error
    if config.protocol.tags == "special":
        special_ids(tokenizer, ROLE_TAGS)
    return tokenizer


def check_prompts(config: LongShortConfig, problems: Sequence[Problem], protocol, tokenizers: Mapping[str, object]) -> None:
    """The longest problems leave room for a turn in the context of the role that speaks first."""
    speaker = protocol.next(())
    context = config.role(speaker).engine.max_model_len
    for problem in sorted(problems, key=lambda problem: -len(problem.question))[:LONGEST]:
        tokens = len(protocol.render(problem, (), speaker, tokenizers[speaker]))
        if tokens >= context:
            raise LongShortError(
                f"problem {problem.id}: its prompt has {tokens:,} tokens, the {speaker} model's context is {context:,} "
                f"({speaker}.engine.max_model_len); raise it, or drop the problem"
            )


def _left_last(table: str) -> Iterator[str]:
    """console.table right-aligns; free text reads better on the left."""
    for line in table.splitlines():
        head, gap, last = line.rpartition("   ")
        yield f"  {head}  {last}" if gap and head.strip() else f"  {line}"
