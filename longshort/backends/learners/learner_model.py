"""A model as learners load it, and the device it lies on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError


def load_model(folder: str | Path, attention: str = "sdpa"):
    """A causal language model in float32, dropout off; every attention of attention.py keeps the samples of several packed rows apart.

    Raises LongShortError when there is none, or when it wants to run code of its own.
    """
    try:
        description, _ = PreTrainedConfig.get_config_dict(folder)
        if "auto_map" in description:
            raise LongShortError(
                f"model {folder} brings its own code (auto_map in its config.json), which is never run; use a model that transformers knows"
            )
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise LongShortError(
            f"model {folder} cannot be loaded; give a folder with config.json and safetensors, or a reachable hub name ({error})"
        ) from error


def recompute_layers(model) -> None:
    """Keep only each layer's input for the backward pass; transformers' own switch needs training mode, which brings dropout back."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise LongShortError(
            f"learner.gradient_checkpointing: model type {model.config.model_type!r} has no layers that transformers marks as fit for it; "
            "set it to false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def device_of(config: LongShortConfig) -> torch.device:
    if config.learner_gpus and not torch.cuda.is_available():
        raise LongShortError(
            f"learner_gpus is {config.learner_gpus:g} but torch {torch.__version__} sees no GPU; set learner_gpus: 0 to learn on the CPU"
        )
    return torch.device("cuda" if config.learner_gpus else "cpu")
