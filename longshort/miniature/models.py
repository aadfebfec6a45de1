"""Tiny Qwen2 models with random weights: the architecture of the paper's backbones, ten thousand times smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longshort.miniature.tokenizer import EOS, PAD
from longshort.recipe.miniature import ModelShape
from longshort.types import LongShortError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM


def build_model(
    tokenizer: PreTrainedTokenizerFast, shape: ModelShape, seed: int, *, max_position_embeddings: int
) -> Qwen2ForCausalLM:
    """Build a float32 model with untied head and embeddings from `seed`; the global random state stays as it was.

    Raises LongShortError for a head size that vLLM's CPU attention has no kernel for: below 32 or not a multiple of 16.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    head = shape.hidden_size // shape.num_heads
    if head < 32 or head % 16:
        raise LongShortError(
            f"hidden_size {shape.hidden_size} with {shape.num_heads} heads makes heads of {head}; hidden_size / "
            "num_heads must be 32, 64, 80, 96 or 128"
        )
    ids = tokenizer.get_vocab()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write a folder that `from_pretrained` and vLLM load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
