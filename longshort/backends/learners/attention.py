"""Attention of a learner over packed rows: which samples of a row see each other, and with which kernel.

    sdpa               a dense mask from `position_ids` (transformers): cost and memory grow with the square of the row
    varlen             torch.nn.attention.varlen on a GPU, on a CPU one SDPA call per sample: the square of each sample
    flash_attention_2  the same with the flash-attn package's kernel

Long rows are free for the last two, so with `row_tokens: 0` a row holds a whole micro-batch (`batch_tokens`), not a
single sample. Both kernels need bfloat16. A sample begins wherever position 0 stands, as packing.py writes it: also at
the start of every row, and at every padding id behind several samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

NAMES = {"sdpa": "sdpa", "varlen": "longshort_varlen", "flash_attention_2": "longshort_fa2"}
"""The names in transformers. It makes no mask for ours, and does nothing of what it does for names with "flash"."""
Kernel = Callable[..., torch.Tensor]
"""`(query, key, value, bounds, longest, scale, window)`, [T, H, D] each, to [T, H, D]."""


def choose_attention(config: LongShortConfig) -> str:
    """Return the attention of a recipe's learners; raise LongShortError if the one it names cannot work here."""
    name, half, gpu = config.learner.attention, config.dtype == "bfloat16", bool(config.learner_gpus)
    if name == "sdpa" or (name == "varlen" and not gpu):
        return name
    if name == "auto" and (not gpu or not half or config.deterministic):
        return "sdpa"  # varlen kernels need a GPU and bfloat16, and add up gradients in no fixed order
    if not gpu or not half:
        raise LongShortError(
            f"learner.attention is {name}, whose kernel needs a GPU and bfloat16, but learner_gpus is "
            f"{config.learner_gpus:g} and dtype {config.dtype}; set learner.attention: auto"
        )
    missing = {kernel: find()[1] for kernel, find in KERNELS.items()}
    if name == "auto":
        return next((kernel for kernel, reason in missing.items() if not reason), "sdpa")
    if missing[name]:
        raise LongShortError(f"learner.attention is {name}, but {missing[name]}; set learner.attention: auto")
    return name


def use_attention(config: LongShortConfig) -> str:
    """Choose the recipe's attention, register it with transformers and return its name."""
    attention = choose_attention(config)
    if attention != "sdpa":
        AttentionInterface.register(NAMES[attention], partial(attend, KERNELS[attention]()[0]))
    return attention


def row_budget(config: LongShortConfig, attention: str) -> int:
    """Return `row_tokens` for pack: the recipe's, else a micro-batch's, or 0 (one sample a row) for dense attention."""
    return config.row_tokens or (0 if attention == "sdpa" else config.batch_tokens)


def attend(
    kernel: Kernel | None,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each sample: query [B, H, T, D], key and value [B, H_kv, T, D] to [B, T, H, D].

    This is transformers' interface. On a CPU `sample_by_sample` replaces every kernel, so that a model can be checked
    before it moves to its GPU.
    """
    if softcap is not None or s_aux is not None:
        raise LongShortError(
            "varlen attention has no score soft-capping and no attention sinks; set learner.attention: sdpa"
        )
    rows, heads, width, size = query.shape
    bounds, longest = boundaries(position_ids.expand(rows, -1))
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    flat = (tensor.transpose(1, 2).reshape(rows * width, -1, size).to(dtype) for tensor in (query, key, value))
    run: Kernel = kernel if kernel and query.device.type != "cpu" else sample_by_sample
    window = (sliding_window - 1 if sliding_window else -1, 0)
    return run(*flat, bounds, longest, scaling, window).view(rows, width, heads, size), None


@lru_cache(maxsize=1)
def boundaries(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return where samples begin in rows laid end to end, and the end, int32 [N+1]; and the longest sample's tokens.

    [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]] -> [0, 3, 5, 7, 8, 9, 10], 3. Cached for the next layer.
    """
    flat = position_ids.reshape(-1)
    starts = (flat == 0).nonzero().view(-1)
    bounds = torch.cat([starts, starts.new_tensor([len(flat)])]).to(torch.int32)
    return bounds, int(bounds.diff().max())


def sample_by_sample(
    query, key, value, bounds: torch.Tensor, longest: int, scale: float | None, window: tuple[int, int]
) -> torch.Tensor:
    """Compute what the kernels do by one SDPA call per sample."""
    parts = []
    for sample in zip(*(tensor.split(bounds.diff().tolist()) for tensor in (query, key, value)), strict=True):
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in sample)
        mask = None
        if 0 <= window[0] < longest - 1:
            distance = torch.arange(q.shape[2], device=q.device)[:, None] - torch.arange(q.shape[2], device=q.device)
            mask = (distance >= 0) & (distance <= window[0])
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def torch_kernel() -> tuple[Kernel | None, str]:
    """Return torch.nn.attention.varlen, or why it cannot be used."""
    if not find_spec("torch.nn.attention.varlen"):
        return None, f"torch {torch.__version__} has no torch.nn.attention.varlen (2.11 has)"
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known:
        return None, f"torch {torch.__version__}'s varlen_attn has no window_size (2.11's has)"
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}  # needed from torch 2.12 on

    def run(query, key, value, bounds, longest, scale, window) -> Any:
        return varlen_attn(
            query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=window, **grouped
        )

    return run, ""


def flash_kernel() -> tuple[Kernel | None, str]:
    """Return the flash-attn package's kernel, or why it cannot be used."""
    if not find_spec("flash_attn"):
        return None, "the package flash-attn is not installed"
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def run(query, key, value, bounds, longest, scale, window):
        return flash_attn_varlen_func(
            query, key, value, bounds, bounds, longest, longest, softmax_scale=scale, causal=True, window_size=window
        )

    return run, ""


KERNELS = {"varlen": torch_kernel, "flash_attention_2": flash_kernel}
"""On a GPU, `auto` takes the first that works."""
