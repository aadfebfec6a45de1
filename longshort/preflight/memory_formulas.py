"""What weights, optimizer, activations and logits of a model take, by formula: longshort/preflight/memory.py and placement.py add them up."""

from __future__ import annotations

from pathlib import Path

import psutil

from longshort.runs.model_files import ModelFacts

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BUCKET = 500_000_000
"""Numbers in each of DeepSpeed's two communication buckets (its default reduce_bucket_size and allgather_bucket_size)."""


def adapter_parameters(model: ModelFacts, r: int) -> int:
    """Numbers in an adapter of rank r over all linear layers of a decoder (attention's four, the feed-forward's three); fewer are less."""
    attention = 2 * (model.hidden + model.hidden) + 2 * (model.hidden + model.kv_width)
    return r * model.layers * (attention + 3 * (model.hidden + model.intermediate))


def activations_gib(model: ModelFacts, tokens: int, size: int, *, autocast: bool, checkpointing: bool = False) -> float:
    """What the backward pass of a micro-batch of so many tokens needs, `size` bytes a number.

    A block keeps, per token, about 10 vectors of the hidden size and 4 of the feed-forward's; under autocast about 15, because its norms
    stay in float32 (counted on Qwen2 blocks, tests/test_placement.py: 5 % less in float32, 1 to 2 % more in bfloat16). With gradient
    checkpointing only the input of each block is kept, and one block at a time is whole.
    """
    block = (15 if autocast else 10) * model.hidden + 4 * model.intermediate
    return tokens * (model.layers * model.hidden + block if checkpointing else model.layers * block) * size / GIB


def logits_gib(model: ModelFacts, tokens: int) -> float:
    """Logits, their gradient and the entropy's probabilities of the tokens that learning/step.py treats at once."""
    from longshort.learning.step import LOGITS_HELD

    return 3 * BYTES["float32"] * min(LOGITS_HELD, tokens * model.vocabulary) / GIB


def torch_state(parameters: int, size: int) -> dict[str, float]:
    """Bytes of backends/learners/torch_learner.py: float32 weights, gradients, AdamW; in bfloat16 also autocast's copy of the weights."""
    state = {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters}
    return state | ({"bfloat16 copy": 2 * parameters} if size == 2 else {})


def zero_state(parameters: int, stage: int, ranks: int, size: int, *, offload: bool = False) -> dict[str, float]:
    """Bytes per rank under ZeRO: stage 1 shards the optimizer, 2 also the gradients, 3 also the weights.

    bfloat16: weights 2, gradients 2, optimizer 12 (float32 weights and two moments) per parameter; float32: 4, 4, 8. `offload` keeps the
    optimizer in the CPU's memory.
    """
    shard = [ranks if stage >= needed else 1 for needed in (3, 2, 1)]
    return {
        "weights": size * parameters / shard[0],
        "gradients": size * parameters / shard[1],
        "optimizer": 0.0 if offload else optimizer_bytes(size) * parameters / shard[2],
        "buffers": 2 * size * min(BUCKET, parameters),
    }


def optimizer_bytes(size: int) -> int:
    """Per parameter: AdamW's two float32 moments, and a float32 copy of weights of another type."""
    return 8 if size == 4 else 12


def free_memory() -> int:
    """Bytes that processes started now may use: the machine's, or what the container's limit leaves."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)
