"""`longshort plan`: what a recipe would run, where, in how much memory; and the checks made before anything starts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshort import console
from longshort.backends.devices import check_time_share, engine_backend
from longshort.backends.weights import adapters
from longshort.backends.weights.weight_sync import expected_weights
from longshort.backends.weights.weight_transfer import choose
from longshort.planning.doctor import GIB
from longshort.preflight.memory import COLD_START, TRAINING, Actor, actors, free_gib, model_facts, places
from longshort.preflight.memory_formulas import BYTES, adapter_parameters
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.model_files import ModelFacts, find_folder
from longshort.types import ROLES, LongShortError, Problem

WEIGHT_BYTES, MOMENTS_BYTES = 4, 8
"""Per parameter on disk: the weight, and AdamW's moments of one that is trained."""
LONGEST = 32
"""How many prompts are checked against the context: the longest by characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run consists of: stages as (name, what it does, seconds or None where unknown), processes, the device of each of them by the
    actor's name, free GiB by device, how each role's new weights travel and why, and whether engines and learners take turns."""

    stages: Sequence[tuple[str, str, int | None]]
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
        there = [actor for actor in self.actors if actor.when == when for place in self.places[actor.name] if place == device]
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
    """Work out the plan; LongShortError where a model folder cannot be read, a stage is unknown or a GPU is not there."""
    from longshort.run import STAGES, stage_names

    # The times were measured on the miniature and say nothing about other models.
    stages = [(name, STAGES[name].title, STAGES[name].seconds if config.miniature else None) for name in stage_names(config)]
    facts = model_facts(config)
    processes = actors(config, facts)
    free = free_gib(processes)
    for role in facts:
        check_time_share(config, role)
    return Plan(
        stages=stages,
        actors=processes,
        places=places(processes, list(free)),
        free=free,
        ways={role: choose(config, role, engine_backend(config.role(role).engine)) for role in facts},
        time_share=config.time_share,
        episodes_per_step=config.num_problems * config.num_generations,
    )


def render(planned: Plan) -> str:
    """The plan as text."""
    lines = ["stages"]
    for number, (name, title, seconds) in enumerate(planned.stages, 1):
        lines.append(f"  {number}. {name:<10} {title}" + (f" (about {console.duration(seconds)})" if seconds else ""))
    lines += ["", f"  {'process':<34} {'runs on':<14} {'GiB':>7}   of which", "  " + "─" * 110]
    cold_start = [actor for actor in planned.actors if actor.when == COLD_START]
    for actor in planned.actors:
        if cold_start and actor is cold_start[0]:
            lines.append("  before it, in the cold start:")
        lines.append(f"  {actor.name:<34} {_where(actor, planned.places[actor.name]):<14} {actor.gib:>7.2f}   {_parts(actor)}")
    lines.append("")
    for device, free in planned.free.items():
        known = "the cluster's memory is not known here" if free is None else f"{free:.1f} GiB free"
        verdict = " - DOES NOT FIT" if device in planned.too_small else ""
        lines.append(f"{device} memory: {planned.needed(device):.1f} GiB needed (estimate), {known}{verdict}")
    lines += [f"new weights of the {role} role travel by {way}: {why}" for role, (way, why) in planned.ways.items()]
    if planned.time_share:
        lines.append(
            "engines and learners take turns (time_share): on a GPU only the larger of what they need counts; on a CPU nothing is freed"
        )
    return "\n".join([*lines, f"episodes per step: {planned.episodes_per_step}"])


def _where(actor: Actor, devices: Sequence[str]) -> str:
    """ "cpu × 1", "gpu 0 × 0.25", "gpu 0, gpu 1"; each of several processes named once."""
    if not actor.gpus:
        return f"cpu × {actor.cores * actor.count:g}"
    names = ", ".join(dict.fromkeys(devices))
    return f"{names} × {actor.gpus:g}" if actor.gpus < 1 or names == "gpu" else names


def _parts(actor: Actor) -> str:
    each = f"; {actor.count} such processes" if actor.count > 1 else ""
    return ", ".join(f"{name} {gib:.2f}" for name, gib in actor.parts.items() if gib >= 0.005) + each


def check(config: LongShortConfig, *, problems: Sequence[Problem] | None = None, protocol=None, graded: bool = True) -> None:
    """Refuse, before anything starts, what cannot work: names, output folder, models, memory, disk, tokenizers, data, gold answers.

    `problems` and `protocol` are those handed to the trainer class in place of the recipe's; `graded` is False where a reward of the
    user's own makes the gold answers nobody's business. Raises LongShortError with what, where, both values and the remedy.
    """
    from longshort.data import load_problems
    from longshort.pair import make_protocol

    check_names(config)
    check_output(config)
    facts = model_facts(config)
    check_contexts(config, facts)
    check_adapters(config)
    check_memory(plan(config))
    check_disk(config, facts)
    protocol = protocol or make_protocol(config)
    tokenizers = {role: load_tokenizer(config, role, facts[role].vocabulary) for role in protocol.roles}
    training = load_problems(config.dataset) if problems is None and config.dataset else problems or []
    held_out = evaluation_problems(config)
    check_prompts(config, [*training, *held_out], protocol, tokenizers)
    if graded:
        check_golds(config, [*training, *held_out])


def evaluation_problems(config: LongShortConfig) -> list[Problem]:
    """The problems of every benchmark that the recipe evaluates on; LongShortError where `eval_steps` has none to go on."""
    from longshort.evaluation.tasks import load_benchmarks

    if config.eval_steps and not config.eval.benchmarks:
        raise LongShortError(f"eval_steps is {config.eval_steps} but eval.benchmarks is empty; name at least one, or set eval_steps: 0")
    return [problem for loaded, _ in load_benchmarks(config) for problem in loaded.problems]


def check_names(config: LongShortConfig) -> None:
    """Every plug-in that the recipe names exists, and its settings mean what they say."""
    from longshort.dialogue.protocols import PROTOCOLS
    from longshort.learning import losses
    from longshort.learning.advantages import ADVANTAGES

    lookup(PROTOCOLS, config.protocol.name, "protocol.name")
    lookup(ADVANTAGES, config.advantage, "advantage")
    lookup(losses.LOSSES, config.loss.name, "loss.name")
    losses.check(config.loss)
    if config.schedule == [] or (config.protocol.name == "solo" and config.schedule != "joint"):
        raise LongShortError(f"schedule {config.schedule!r} leaves nobody to train; name at least one role, or joint (solo: joint only)")


def check_output(config: LongShortConfig) -> None:
    """The output folder can be made and written."""
    existing = _existing(config.output_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise LongShortError(f"output_dir {config.output_dir}: {existing} is not writable ({error.strerror}); choose another") from error


def check_contexts(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """The engine's context is one the model knows, and its KV cache holds at least one dialogue."""
    for role, model in facts.items():
        engine = config.role(role).engine
        if engine.max_model_len > model.context:
            raise LongShortError(
                f"{role}.engine.max_model_len is {engine.max_model_len:,} but {model.name} knows positions up to {model.context:,} "
                "(max_position_embeddings); lower the one or take another model"
            )
        wanted = engine.max_model_len * model.kv_numbers * BYTES[engine.dtype] / GIB
        if wanted > engine.kv_cache_gib:
            raise LongShortError(
                f"{role}.engine.kv_cache_gib is {engine.kv_cache_gib:g}, but one dialogue of {model.name} at max_model_len "
                f"({engine.max_model_len:,} tokens) takes {wanted:.2g} GiB; raise the one or lower the other"
            )


def check_adapters(config: LongShortConfig) -> None:
    """Every `lora.target_modules` means layers that the role's model has, and an adapter to start from has their shapes."""
    for role in ROLES:
        if (model := config.role(role).model) and (lora := config.role(role).lora):
            shapes = expected_weights(str(find_folder(model, f"{role}.model")))
            layers = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name]
            chosen = adapters.matching(layers, lora.target_modules, f"{role}.lora.target_modules")
            if lora.adapter:
                adapters.check_adapter(adapters.read(Path(lora.adapter), role, lora), shapes, held=adapters.names(chosen))


def check_memory(planned: Plan) -> None:
    """All processes together fit into what is free."""
    for device in planned.too_small:
        there = [(actor, planned.places[actor.name].count(device)) for actor in planned.actors if device in planned.places[actor.name]]
        there.sort(key=lambda item: -item[0].gib * item[1])
        listed = ", ".join(f"{actor.name} {actor.gib * count:.1f}" for actor, count in there)
        raise LongShortError(
            f"this recipe needs {planned.needed(device):.1f} GiB of {device} memory but {planned.free[device]:.1f} GiB are free "
            f"({listed}); lower engine.kv_cache_gib or batch_tokens, take smaller models, or free memory"
        )


def check_disk(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """The checkpoints fit: those kept, and the one being written."""
    copies = config.save_total_limit + 1
    needed = copies * sum(checkpoint_bytes(config, role, model) for role, model in facts.items()) / GIB
    free = shutil.disk_usage(_existing(config.output_dir)).free / GIB
    if needed > free:
        raise LongShortError(
            f"output_dir {config.output_dir}: {copies} checkpoints take {needed:.1f} GiB but {free:.1f} GiB are free on that disk; choose "
            f"another disk or lower save_total_limit ({config.save_total_limit})"
        )


def checkpoint_bytes(config: LongShortConfig, role: str, model: ModelFacts) -> int:
    """A role's part of a checkpoint: the model and the optimizer's state; with LoRA, also the adapter, which alone has such a state."""
    if lora := config.role(role).lora:
        return WEIGHT_BYTES * model.parameters + (WEIGHT_BYTES + MOMENTS_BYTES) * adapter_parameters(model, lora.r)
    return (WEIGHT_BYTES + MOMENTS_BYTES) * model.parameters


def load_tokenizer(config: LongShortConfig, role: str, vocabulary: int):
    """The role's tokenizer: real files of its own, ids that the model has, and the special tokens that `protocol.tags: special` needs."""
    from longshort.dialogue.protocols import ROLE_TAGS, special_ids

    model = config.role(role).model
    if config.miniature and not model:
        from longshort.miniature.tokenizer import build_tokenizer

        return build_tokenizer(role)
    from transformers import AutoTokenizer

    folder = find_folder(model, f"{role}.model")
    if not any(folder.glob("tokenizer.*")) and not any(folder.glob("vocab.*")):  # transformers would make an empty one from config.json
        raise LongShortError(f"{role}.model: {model!r} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json); copy it there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LongShortError(f"{role}.model: the tokenizer of {model!r} does not load ({error}); copy its files again") from error
    if len(tokenizer) > vocabulary:
        raise LongShortError(
            f"{role}.model: the tokenizer of {model!r} has {len(tokenizer):,} ids but the model's embedding {vocabulary:,}; give it the "
            "tokenizer it was trained with, or resize the embedding"
        )
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


def check_golds(config: LongShortConfig, problems: Sequence[Problem]) -> None:
    """Every gold answer can be graded against."""
    from longshort.dialogue.grading import GradingPool

    with GradingPool(config.grading.workers, config.grading.timeout_s, config.grading.memory_mb) as pool:
        pool.check_golds(problems)


def _existing(output_dir: str) -> Path:
    """The folder itself, or the nearest parent that is there."""
    folder = Path(output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise LongShortError(f"output_dir {output_dir}: {existing} is a file; choose another folder")
    return existing
