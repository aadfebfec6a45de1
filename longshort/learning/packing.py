"""From samples to micro-batches: several samples per row, several rows per batch, the same gradient whatever the cut.

Attention tells samples apart by `position_ids` alone (transformers: a step that is not +1 begins a new sequence), so a row needs no mask.
A padding id has position 0 and is thereby a sequence of its own that nobody else can see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longshort.types import Batch, Sample

FILL = {"input_ids": 0, "position_ids": 0, "sequence": -1, "mask": False, "logprobs": 0.0, "advantages": 0.0, "weights": 0.0}
"""Field of a Batch -> its value on padding."""
FLOATS = ("logprobs", "advantages", "weights")


def pack(
    samples: Sequence[Sample], token_weights: Sequence[float], row_tokens: int, batch_tokens: int, device: torch.device | str = "cpu"
) -> list[Batch]:
    """Pack the samples of one optimizer step; `token_weights[i]` is the weight of each sampled token of sample i.

    Rows hold at most `row_tokens` (0: 1.5 times the longest sample, where dense attention masks on CPU pay best), batches at most
    `batch_tokens` with their padding; only a sample that is longer by itself exceeds them, in a row of its own. Deterministic.
    """
    if len(samples) != len(token_weights):
        raise ValueError(f"{len(samples)} samples but {len(token_weights)} token weights")
    if len({sample.role for sample in samples}) > 1:
        raise ValueError("a batch belongs to one role, got samples of both")
    lengths = [len(sample.token_ids) for sample in samples]
    rows = first_fit_decreasing(lengths, min(row_tokens or round(1.5 * max(lengths, default=0)), batch_tokens))
    fills = [sum(lengths[i] for i in row) for row in rows]
    batches, start = [], 0
    order = sorted(range(len(rows)), key=lambda row: -fills[row])
    while start < len(order):
        width = fills[order[start]]
        height = max(1, batch_tokens // width)
        batches.append(_stack([rows[row] for row in order[start : start + height]], samples, token_weights, width, device))
        start += height
    return batches


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into rows of at most `capacity`, longest first, each in the first row with room; returns the item numbers by row."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([i])
            room.append(capacity - lengths[i])
        else:
            rows[row].append(i)
            room[row] -= lengths[i]
    return rows


def _stack(
    rows: list[list[int]], samples: Sequence[Sample], token_weights: Sequence[float], width: int, device: torch.device | str
) -> Batch:
    table: dict[str, list[list]] = {name: [] for name in FILL}
    for row in rows:
        line: dict[str, list] = {name: [] for name in FILL}
        for i in row:
            sample, length = samples[i], len(samples[i].token_ids)
            line["input_ids"] += sample.token_ids
            line["position_ids"] += range(length)
            line["sequence"] += [i] * length
            line["mask"] += map(bool, sample.mask)
            line["logprobs"] += sample.logprobs
            line["advantages"] += sample.advantages
            line["weights"] += [token_weights[i]] * length
        for name, values in line.items():
            table[name].append(values + [FILL[name]] * (width - len(values)))
    tensors = {name: torch.tensor(lines, dtype=torch.float32 if name in FLOATS else None, device=device) for name, lines in table.items()}
    return Batch(role=samples[rows[0][0]].role, **tensors)
