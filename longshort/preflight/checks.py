"""What is refused before anything starts: names, output folder, models, memory, disk, tokenizers, data, gold answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from longshort.backends.weights import adapters
from longshort.dialogue.encoding import ROLE_TAGS, special_ids
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.protocols import PROTOCOLS, make_protocol
from longshort.dialogue.rewards import LENGTH_TERMS, REWARDS
from longshort.dialogue.turns import TurnProtocol
from longshort.learning import losses
from longshort.learning.advantages import ADVANTAGES
from longshort.learning.optim import DECAYS
from longshort.preflight.memory import check_memory, plan
from longshort.preflight.memory_formulas import BYTES, GIB, adapter_parameters
from longshort.preflight.processes import model_facts
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.model_files import ModelFacts, expected_weights, find_folder
from longshort.runs.tracking import TRACKERS
from longshort.types import ROLES, LongShortError, Problem

WEIGHT_BYTES, MOMENTS_BYTES = 4, 8
"""Per parameter on disk: the weight, and AdamW's moments of one that is trained."""


LONGEST = 32
"""How many prompts are checked against the context: the longest by characters."""


def check(
    config: LongShortConfig,
    *,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
    protocol: TurnProtocol | None = None,
    graded: bool = True,
) -> None:
    """Refuse, before anything starts, what cannot work: names, output folder, models, memory, disk, tokenizers, data, gold answers.

    `training` and `held_out` are the problems of the run and of its evaluations. `protocol` replaces the recipe's. `graded` is False where
    a custom reward does not need gold answers. Raises LongShortError with what, where, both values and the remedy.
    """
    check_names(config)
    check_output(config)
    facts = model_facts(config)
    check_contexts(config, facts)
    check_adapters(config)
    check_memory(plan(config))
    check_disk(config, facts)
    protocol = protocol or make_protocol(config)
    tokenizers = {role: load_tokenizer(config, role, facts[role].vocabulary) for role in protocol.roles}
    check_prompts(config, [*training, *held_out], protocol, tokenizers)
    if graded and config.reward.name == "synergy":
        check_golds(config, [*training, *held_out])


def check_names(config: LongShortConfig) -> None:
    """Every plug-in that the recipe names exists, and its settings mean what they say."""
    lookup(PROTOCOLS, config.protocol.name, "protocol.name")
    lookup(ADVANTAGES, config.advantage, "advantage")
    lookup(losses.LOSSES, config.loss.name, "loss.name")
    lookup(losses.IMPORTANCE_CORRECTIONS, config.loss.importance_correction, "loss.importance_correction")
    lookup(DECAYS, config.lr_scheduler_type, "lr_scheduler_type")
    for name in config.report_to:
        lookup(TRACKERS, name, "report_to")
    lookup(REWARDS, config.reward.name, "reward.name")
    lookup(LENGTH_TERMS, config.reward.length.kind, "reward.length.kind")
    losses.check(config.loss)
    roles = make_protocol(config).roles
    if config.schedule != "joint" and (not config.schedule or not set(config.schedule) <= set(roles)):
        raise LongShortError(
            f"schedule is {config.schedule!r}, but protocol {config.protocol.name} trains {' and '.join(roles)}; name those, or joint"
        )
    if config.share_engine and len(roles) < 2:
        raise LongShortError(
            f"share_engine: protocol {config.protocol.name} has one role, so there is no other to share with; remove share_engine"
        )


def check_output(config: LongShortConfig) -> None:
    """The output folder can be made and written."""
    existing = _existing(config.output_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise LongShortError(
            f"output_dir {config.output_dir}: {existing} is not writable ({error.strerror}); choose another"
        ) from error


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
            layers = [
                name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name
            ]
            chosen = adapters.matching(layers, lora.target_modules, f"{role}.lora.target_modules")
            if lora.adapter:
                adapters.check_adapter(
                    adapters.read(Path(lora.adapter), role, lora), shapes, held=adapters.names(chosen)
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
    model = config.role(role).model
    if config.miniature and not model:
        from longshort.miniature.tokenizer import build_tokenizer

        return build_tokenizer(role)
    from transformers import AutoTokenizer

    folder = find_folder(model, f"{role}.model")
    if not any(folder.glob("tokenizer.*")) and not any(
        folder.glob("vocab.*")
    ):  # transformers would make an empty one from config.json
        raise LongShortError(
            f"{role}.model: {model!r} has no tokenizer (tokenizer.json, tokenizer.model, vocab.json); copy it there"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LongShortError(
            f"{role}.model: the tokenizer of {model!r} does not load ({error}); copy its files again"
        ) from error
    if len(tokenizer) > vocabulary:
        raise LongShortError(
            f"{role}.model: the tokenizer of {model!r} has {len(tokenizer):,} ids but the model's embedding {vocabulary:,}; give it the "
            "tokenizer it was trained with, or resize the embedding"
        )
    if config.protocol.tags == "special":
        special_ids(tokenizer, ROLE_TAGS)
    return tokenizer


def check_prompts(
    config: LongShortConfig, problems: Sequence[Problem], protocol, tokenizers: Mapping[str, object]
) -> None:
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
    with GradingPool(config.grading.workers, config.grading.timeout_s, config.grading.memory_mb) as pool:
        pool.check_golds(problems)


def _existing(output_dir: str) -> Path:
    """The folder itself, or the nearest parent that is there."""
    folder = Path(output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise LongShortError(f"output_dir {output_dir}: {existing} is a file; choose another folder")
    return existing
