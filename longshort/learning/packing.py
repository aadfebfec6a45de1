"""From samples to micro-batches: several samples per row, several rows per batch, the same gradient whatever the cut.

Attention tells samples apart by `position_ids` alone (transformers: a step that is not +1 begins a new sequence), so a
row needs no mask. After several samples each padding id has position 0, which makes it a sequence of its own. After a
single sample the positions go on: it cannot see what comes later, and without breaks attention needs no dense mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from longshort.types import Batch, Sample

PADDING_VALUES = {
    "input_ids": 0,
    "position_ids": 0,
    "sequence": -1,
    "mask": False,
    "logprobs": 0.0,
    "advantages": 0.0,
    "weights": 0.0,
}
"""Field of a Batch -> its value on padding."""
FLOATS = ("logprobs", "advantages", "weights")
MAX_PADDING = 64
"""With more padding tokens in a micro-batch, another micro-batch is cheaper (measured with 5M parameters on a CPU)."""


def pack(
    samples: Sequence[Sample],
    token_weights: Sequence[float],
    row_tokens: int,
    batch_tokens: int,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Pack the samples of one optimizer step; `token_weights[i]` is the weight of each sampled token of sample i.

    Rows hold at most `row_tokens` (0: one sample each, since dense attention pays for a row's whole width), batches at
    most `batch_tokens` with their padding. Only a sample that is longer by itself exceeds them, in a row of its own.
    Rows of similar width share a batch. Deterministic.
    """
    if len(samples) != len(token_weights):
        raise ValueError(f"{len(samples)} samples but {len(token_weights)} token weights")
    if len({sample.role for sample in samples}) > 1:
        raise ValueError("a batch belongs to one role, got samples of both")
    lengths = [len(sample.token_ids) for sample in samples]
    rows = first_fit_decreasing(lengths, min(row_tokens, batch_tokens))
    fills = [sum(lengths[i] for i in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -fills[row])
    return [
        _stack([rows[order[place]] for place in places], samples, token_weights, fills[order[places[0]]], device)
        for places in like_widths([fills[row] for row in order], batch_tokens)
    ]


def like_widths(widths: Sequence[int], batch_tokens: int) -> list[range]:
    """Cut rows, widest first, into batches of at most `batch_tokens` and `MAX_PADDING` tokens of padding.

    Returns places in `widths`:
    like_widths([400, 390, 350, 90], batch_tokens=8192) -> [range(0, 3), range(3, 4)]
    """
    cuts, padding = [0], 0
    for place, width in enumerate(widths):
        widest = widths[cuts[-1]]
        padding += widest - width
        if padding > MAX_PADDING or (place + 1 - cuts[-1]) * widest > max(batch_tokens, widest):
            cuts.append(place)
            padding = 0
    return [range(*ends) for ends in pairwise([*cuts, len(widths)]) if widths]


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items, longest first, each into the first row of `capacity` with room; return the item numbers by row.

    With a capacity of 0 each item has a row of its own.
    """
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
    rows: list[list[int]],
    samples: Sequence[Sample],
    token_weights: Sequence[float],
    width: int,
    device: torch.device | str,
) -> Batch:
    table: dict[str, list[list]] = {name: [] for name in PADDING_VALUES}
    for row in rows:
        line: dict[str, list] = {name: [] for name in PADDING_VALUES}
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
            table[name].append(values + [PADDING_VALUES[name]] * (width - len(values)))
        if len(row) == 1:
            table["position_ids"][-1] = list(range(width))
    tensors = {
        name: torch.tensor(lines, dtype=torch.float32 if name in FLOATS else None, device=device)
        for name, lines in table.items()
    }
    return Batch(role=samples[rows[0][0]].role, **tensors)
