"""What is refused before anything starts: names, output folder, models, memory, disk, tokenizers and problems."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from longshort.backends.devices import another_cluster, check_devices
from longshort.backends.weights import adapters
from longshort.dialogue.encoding import ROLE_TAGS, encode_problem, special_ids
from longshort.dialogue.protocols import PROTOCOLS, make_protocol
from longshort.dialogue.rewards import LENGTH_TERMS, REWARDS
from longshort.dialogue.turns import TurnProtocol
from longshort.grading.golds import gradable
from longshort.learning import losses
from longshort.learning.advantages import ADVANTAGES
from longshort.learning.optim import DECAYS
from longshort.preflight.memory import check_memory, plan
from longshort.preflight.memory_formulas import BYTES, GIB, adapter_parameters
from longshort.preflight.processes import model_facts
from longshort.recipe.roles import RoleLora
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import ModelFacts, expected_weights, find_folder
from longshort.runs.tracking import check_trackers
from longshort.types import ROLES, LongShortError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHT_BYTES, MOMENTS_BYTES = 4, 8
"""On disk, per parameter."""
RAY_JOB_FILES = "working_dir_files"
"""Ray's name for the folder into which it unpacks what `ray job submit --working-dir` sends."""
LONGEST = 32
"""Number of prompts that are checked against the context: the longest by characters."""


def check(
    config: LongShortConfig,
    *,
    training: Sequence[Problem],
    held_out: Sequence[Problem],
    protocol: TurnProtocol | None = None,
    graded: bool = True,
) -> None:
    """Refuse a run that cannot work.

    `training` and `held_out` are the problems of the run and of its evaluations. `protocol` replaces the recipe's.
    `graded` is False where a custom reward does not need gold answers. Raises LongShortError with what, where, both
    values and the remedy.
    """
    check_names(config)
    check_output(config)
    check_packages(config)
    facts = model_facts(config)
    check_model_types(config)
    check_contexts(config, facts)
    check_adapters(config)
    check_memory(plan(config))
    check_disk(config, facts)
    protocol = protocol or make_protocol(config)
    tokenizers = {role: load_tokenizer(config, role, facts[role].vocabulary) for role in protocol.roles}
    check_prompts(config, [*training, *held_out], protocol, tokenizers)
    if graded and config.reward.name == "synergy":
        check_golds(training, held_out)


def check_names(config: LongShortConfig) -> None:
    """Refuse names of plug-ins that do not exist, and settings that contradict them."""
    lookup(PROTOCOLS, config.protocol.name, "protocol.name")
    lookup(ADVANTAGES, config.advantage, "advantage")
    lookup(losses.LOSSES, config.loss.name, "loss.name")
    lookup(losses.IMPORTANCE_CORRECTIONS, config.loss.importance_correction, "loss.importance_correction")
    lookup(DECAYS, config.lr_scheduler_type, "lr_scheduler_type")
    check_trackers(config.report_to)
    lookup(REWARDS, config.reward.name, "reward.name")
    lookup(LENGTH_TERMS, config.reward.length.kind, "reward.length.kind")
    losses.check(config.loss)
    roles = make_protocol(config).roles
    if config.schedule != "joint" and (not config.schedule or not set(config.schedule) <= set(roles)):
        raise LongShortError(
            f"schedule is {config.schedule!r}, but protocol {config.protocol.name} trains {' and '.join(roles)}; "
            "name those, or joint"
        )
    if config.share_engine and len(roles) < 2:
        raise LongShortError(
            f"share_engine: protocol {config.protocol.name} has one role, so there is no other to share with; "
            "remove share_engine"
        )


def check_sampling(config: LongShortConfig) -> None:
    """Refuse to train on samples of a part of the distribution.

    The engine's log-probs would be of that part, the learner's are of the whole: their ratio, which should be 1, and
    the gradient would be biased. An evaluation and a server may cut.
    """
    cut = [key for key, whole in (("top_p", 1.0), ("top_k", 0)) if getattr(config, key) != whole]
    if cut:
        setting = f"{cut[0]}={getattr(config, cut[0]):g}"
        raise LongShortError(
            f"{setting}: training samples from the whole distribution, whose log-probs the learner computes; remove it "
            f"here and give it to `longshort eval` or `longshort serve` ({setting})"
        )


def check_packages(config: LongShortConfig) -> None:
    """Refuse engines and learners that this machine cannot have. Another cluster's machines are not known here."""
    from longshort.backends.learners.attention import choose_attention

    for role in ROLES:
        check_engine(config.role(role).engine, f"{role}.engine")
    if another_cluster():
        return
    if config.learner.backend == "deepspeed":
        check_devices(config, {"CPU": os.cpu_count() or 1, "GPU": math.inf})
    choose_attention(config)


def check_engine(engine: EngineConfig, key: str) -> None:
    """Refuse vLLM where it is not installed, unless another cluster's machines run it."""
    if engine.backend == "vllm" and not find_spec("vllm") and not another_cluster():
        raise LongShortError(
            f"{key}.backend is vllm, which is not installed; install it (longshort doctor says how), or set "
            f"{key}.backend=transformers"
        )


def check_model_types(config: LongShortConfig) -> None:
    """Refuse a model that transformers does not know as a causal language model: no learner could load it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    for role in make_protocol(config).roles:
        if not (model := config.role(role).model):
            continue
        try:
            kind = type(AutoConfig.from_pretrained(find_folder(model, f"{role}.model"), trust_remote_code=False))
            known = kind in MODEL_FOR_CAUSAL_LM_MAPPING
        except (OSError, ValueError, KeyError) as error:
            known, kind = False, str(error).splitlines()[0]
        if not known:
            raise LongShortError(
                f"{role}.model: {model!r} is no causal language model that transformers {__version__} knows ({kind}); "
                "take another model, or a newer transformers"
            )


def check_output(config: LongShortConfig) -> None:
    """Refuse an output folder that cannot be made or written, and one that would go with the files of a Ray job."""
    if RAY_JOB_FILES in (folder := Path(config.output_dir).resolve()).parts:
        raise LongShortError(
            f"output_dir {config.output_dir} lies among the files of this Ray job ({folder}), "
            "which Ray removes; give an absolute path that every node shares, such as output_dir=/shared/runs/x"
        )
    existing = _existing(config.output_dir)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise LongShortError(
            f"output_dir {config.output_dir}: {existing} is not writable ({error.strerror}); choose another"
        ) from error


def check_contexts(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """Refuse an engine's context beyond the model's, and a KV cache that cannot hold one dialogue."""
    for role, model in facts.items():
        check_context(config.role(role).engine, model, f"{role}.engine")


def check_context(engine: EngineConfig, model: ModelFacts, key: str) -> None:
    """Refuse the same of one engine; `key` is its section of the recipe."""
    if engine.max_model_len > model.context:
        raise LongShortError(
            f"{key}.max_model_len is {engine.max_model_len:,} but {model.name} knows positions up to "
            f"{model.context:,} (max_position_embeddings); lower the one or take another model"
        )
    needed = engine.max_model_len * model.kv_numbers * BYTES[engine.dtype] / GIB
    if needed > engine.kv_cache_gib:
        raise LongShortError(
            f"{key}.kv_cache_gib is {engine.kv_cache_gib:g}, but one dialogue of {model.name} at max_model_len "
            f"({engine.max_model_len:,} tokens) takes {needed:.2g} GiB; raise the one or lower the other"
        )


def check_adapters(config: LongShortConfig) -> None:
    """Refuse `lora.target_modules` that the role's model does not have, and an adapter of other shapes."""
    for role in ROLES:
        section = config.role(role)
        loras = {f"{role}.lora": section.lora, f"{role}.sft.lora": section.sft.lora if config.coldstart else None}
        for key, lora in loras.items():
            if not (section.model and lora):
                continue
            shapes = expected_weights(str(find_folder(section.model, f"{role}.model")))
            matrices = [name for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name]
            layers = [name.removesuffix(".weight") for name in matrices]
            chosen = adapters.matching(layers, lora.target_modules, f"{key}.target_modules")
            if isinstance(lora, RoleLora) and lora.adapter:
                adapter = adapters.read(Path(lora.adapter), role, lora)
                adapters.check_adapter(adapter, shapes, held=adapters.names(chosen))


def check_disk(config: LongShortConfig, facts: Mapping[str, ModelFacts]) -> None:
    """Refuse a disk too small for the checkpoints that are kept and the one that is being written."""
    copies = config.save_total_limit + 1
    needed = copies * sum(checkpoint_bytes(config, role, model) for role, model in facts.items()) / GIB
    free = shutil.disk_usage(_existing(config.output_dir)).free / GIB
    if needed > free:
        raise LongShortError(
            f"output_dir {config.output_dir}: {copies} checkpoints take {needed:.1f} GiB but {free:.1f} GiB are free "
            f"on that disk; choose another disk or lower save_total_limit ({config.save_total_limit})"
        )


def checkpoint_bytes(config: LongShortConfig, role: str, model: ModelFacts) -> int:
    """Return the size of a role's part of a checkpoint. With LoRA only the adapter has moments."""
    if lora := config.role(role).lora:
        return WEIGHT_BYTES * model.parameters + (WEIGHT_BYTES + MOMENTS_BYTES) * adapter_parameters(model, lora.r)
    return (WEIGHT_BYTES + MOMENTS_BYTES) * model.parameters


def load_tokenizer(config: LongShortConfig, role: str, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load a role's tokenizer; refuse one without files, with ids beyond the model's, or without the tags it needs."""
    model = config.role(role).model
    if config.miniature and not model:
        from longshort.miniature.tokenizer import build_tokenizer

        return build_tokenizer(role)
    from transformers import AutoTokenizer

    folder = find_folder(model, f"{role}.model")
    # Without these files transformers would make an empty tokenizer from config.json.
    if not any(folder.glob("tokenizer.*")) and not any(folder.glob("vocab.*")):
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
            f"{role}.model: the tokenizer of {model!r} has {len(tokenizer):,} ids but the model's embedding "
            f"{vocabulary:,}; give it the tokenizer it was trained with, or resize the embedding"
        )
    if not tokenizer.is_fast:
        raise LongShortError(
            f"{role}.model: {model!r} has no tokenizer that the library `tokenizers` reads; add its tokenizer.json"
        )
    if config.protocol.tags == "special":
        special_ids(tokenizer, ROLE_TAGS)
    encode_problem(tokenizer, "", "1+1?")  # raises for a chat template that cannot render one user message
    return tokenizer


def check_prompts(
    config: LongShortConfig,
    problems: Sequence[Problem],
    protocol: TurnProtocol,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> None:
    """Refuse problems whose prompt leaves no room in the context of the role that speaks first."""
    speaker = protocol.next(())
    context = config.role(speaker).engine.max_model_len
    for problem in sorted(problems, key=lambda problem: -len(problem.question))[:LONGEST]:
        tokens = len(protocol.render(problem, (), speaker, tokenizers[speaker]))
        if tokens >= context:
            raise LongShortError(
                f"problem {problem.id}: its prompt has {tokens:,} tokens, the {speaker} model's context is {context:,} "
                f"({speaker}.engine.max_model_len); raise it, or drop the problem"
            )


def check_golds(training: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Say which reference answers nothing can be graded against; refuse data that has no others."""
    for source, problems in (("the training problems", training), ("eval.benchmarks", held_out)):
        gradable(problems, source)


def _existing(output_dir: str) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    folder = Path(output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise LongShortError(f"output_dir {output_dir}: {existing} is a file; choose another folder")
    return existing
