"""Memory of weights, optimizer, activations and logits by formula. `processes.py` adds them up."""

from __future__ import annotations

from pathlib import Path

import psutil

from longshort.runs.model_files import ModelFacts

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's two communication buckets (default reduce_bucket_size and allgather_bucket_size)."""


def adapter_parameters(model: ModelFacts, r: int) -> int:
    """Count the numbers of a rank-r adapter on all linear layers: attention's four and the feed-forward's three."""
    attention = 2 * (model.hidden + model.hidden) + 2 * (model.hidden + model.kv_width)
    return r * model.layers * (attention + 3 * (model.hidden + model.intermediate))


def activations_gib(model: ModelFacts, tokens: int, size: int, *, checkpointing: bool = False) -> float:
    """Estimate what the backward pass of a micro-batch keeps, at `size` bytes a number.

    A block keeps, per token, about 10 vectors of the hidden size and 4 of the feed-forward's. In bfloat16, which the
    learners use as autocast, about 15, because the norms stay in float32. (Counted on Qwen2 blocks: test_plan.py.)
    Gradient checkpointing keeps the input of every block, and one block whole.
    """
    block = (15 if size == 2 else 10) * model.hidden + 4 * model.intermediate
    return tokens * (model.layers * model.hidden + block if checkpointing else model.layers * block) * size / GIB


def logits_gib(model: ModelFacts, tokens: int) -> float:
    """Count the logits of one chunk (learning/logprobs.py), their gradient, and the probabilities for the entropy."""
    from longshort.learning.logprobs import LOGITS_HELD  # imports torch, which `longshort doctor` must not need

    return 3 * BYTES["float32"] * min(LOGITS_HELD, tokens * model.vocabulary) / GIB


def torch_state(parameters: int, size: int) -> dict[str, float]:
    """Return the bytes of a torch learner: all in float32, and in bfloat16 autocast's copy of the weights."""
    state: dict[str, float] = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    return state | ({"bfloat16 copy": 2 * parameters} if size == 2 else {})


def zero_state(parameters: int, stage: int, ranks: int, *, offload: bool = False) -> dict[str, float]:
    """Return the bytes of each DeepSpeed rank. Its parameters are float32 in every `dtype` (deepspeed_learner.py).

    ZeRO (arXiv 1910.02054, section 5) shards the optimizer from stage 1, the gradients from 2, the weights from 3.
    `offload` moves the optimizer to host memory.
    """
    weights, gradients, optimizer = (ranks if stage >= first else 1 for first in (3, 2, 1))
    return {
        "weights": 4 * parameters / weights,
        "gradients": 4 * parameters / gradients,
        "optimizer": 0.0 if offload else 8 * parameters / optimizer,
        "buffers": 2 * 4 * min(BUCKET, parameters),
    }


def free_memory() -> int:
    """Return the bytes that new processes may use: the machine's, or what the container's limit leaves."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)
