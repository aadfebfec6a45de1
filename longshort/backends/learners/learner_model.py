"""The parts of a learner: model, reference, optimizer, device. They are complete before the learner is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from longshort.backends.learners.attention import NAMES, choose_attention, use_attention
from longshort.backends.learners.learner_checks import check_head
from longshort.learning.logprobs import LanguageModel
from longshort.learning.optim import build_optimizer
from longshort.learning.step import Process
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a learner. `model` has the parameters; `policy`, which updates call, is the model or wraps it.

    `reference` is None without a KL term; `shapes` are the trained parameters', before ZeRO cuts them.
    """

    role: str
    attention: str
    device: torch.device
    model: Any
    policy: Any
    reference: LanguageModel | None
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    process: Process
    shapes: dict[str, tuple[int, ...]]


def load_parts(
    role: str,
    config: LongShortConfig,
    model_folder: str | Path,
    reference_folder: str | Path,
    device: torch.device | None = None,
) -> Parts:
    """Load a policy that trains all its weights on one device (default: the recipe's)."""
    device, attention = device or device_of(config), use_attention(config)
    model, reference = load_model(model_folder, NAMES[attention]).to(device), None
    if config.loss.beta:
        reference = load_model(reference_folder, NAMES[attention]).to(device).requires_grad_(False)
    return make_parts(role, config, model, reference, model_folder)


def make_parts(
    role: str, config: LongShortConfig, model: Any, reference: LanguageModel | None, folder: str | Path
) -> Parts:
    """Put together the parts of a learner of one process; it trains the parameters of `model` that take a gradient."""
    rate = config.learning_rate_of(role)
    if config.dtype == "bfloat16":  # only the head is left in float32: this keeps it on a GPU's tensor cores
        torch.backends.cuda.matmul.allow_tf32 = True
    parts = Parts(
        role=role,
        attention=choose_attention(config),
        device=model.device,
        model=model,
        policy=model,
        reference=reference,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        optimizer=build_optimizer(model, learning_rate=rate, weight_decay=config.weight_decay),
        process=Process(config.dtype),
        shapes={name: tuple(parameter.shape) for name, parameter in trained(model).items()},
    )
    if config.learner.gradient_checkpointing:
        recompute_layers(model)
    check_head(model, role, config.dtype)
    return parts


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that the optimizer moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_model(folder: str | Path, attention: str = "sdpa") -> Any:
    """Load a causal language model in float32, dropout off, with an attention of attention.py.

    Raises LongShortError if there is none, or if it wants to run code of its own.
    """
    try:
        description, _ = PreTrainedConfig.get_config_dict(folder)
        if "auto_map" in description:
            raise LongShortError(
                f"model {folder} brings its own code (auto_map in its config.json), which is never run; "
                "use a model that transformers knows"
            )
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise LongShortError(
            f"model {folder} cannot be loaded; give a folder with config.json and safetensors, "
            f"or a reachable hub name ({error})"
        ) from error


def recompute_layers(model) -> None:
    """Keep only each layer's input for the backward pass (transformers' own switch needs training mode: dropout)."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise LongShortError(
            f"learner.gradient_checkpointing: model type {model.config.model_type!r} has no layers that transformers "
            "can checkpoint; set it to false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def device_of(config: LongShortConfig) -> torch.device:
    """Return the learner's device."""
    if config.learner_gpus and not torch.cuda.is_available():
        raise LongShortError(
            f"learner_gpus is {config.learner_gpus:g} but torch {torch.__version__} sees no GPU; "
            "set learner_gpus: 0 to learn on the CPU"
        )
    return torch.device("cuda" if config.learner_gpus else "cpu")
