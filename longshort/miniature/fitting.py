"""Training of the miniature's base models: NLL of the masked tokens, with the packing and the log-probs of RL."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from longshort.learning.optim import build_optimizer, learning_rate_factor, set_learning_rate
from longshort.learning.step import Process, shared_batches
from longshort.types import Batch, LongShortError, Sample


def fit(
    model: Any,
    samples: Sequence[Sample],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_ratio: float = 0.1,
    lr_scheduler_type: str = "cosine",
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    row_tokens: int = 0,
    batch_tokens: int = 8192,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train `model` in place for `steps` optimizer steps of `batch_size` samples.

    Returns each step's mean NLL per masked token (nats); `on_step(step, loss)` is called after each. Samples are drawn
    without replacement, epoch after epoch, in an order fixed by `seed`. Raises LongShortError if a loss or gradient is
    not finite: supervised data gives no reason for that, so nothing is skipped.
    """
    samples = [sample for sample in samples if any(sample.mask)]
    if not samples:
        raise LongShortError(
            "supervised training got no sample with a masked token to learn from; check the data and the role"
        )
    optimizer = build_optimizer(model, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
    order = endless_order(len(samples), seed)
    losses = []
    model.train()
    for step in range(steps):
        rate = learning_rate * learning_rate_factor(step, steps, kind=lr_scheduler_type, warmup_ratio=warmup_ratio)
        set_learning_rate(optimizer, rate)
        drawn = [samples[next(order)] for _ in range(batch_size)]
        loss, norm = nll_step(
            model, optimizer, drawn, max_grad_norm=max_grad_norm, row_tokens=row_tokens, batch_tokens=batch_tokens
        )
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise LongShortError(
                f"supervised step {step}: loss {loss}, gradient norm {norm} at learning rate {rate:g}; lower it"
            )
        losses.append(loss)
        on_step(step, loss)
    model.eval()
    return losses


def nll_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    *,
    max_grad_norm: float,
    row_tokens: int,
    batch_tokens: int,
) -> tuple[float, float]:
    """Take one optimizer step on the mean NLL per masked token of the whole batch.

    Returns the loss in nats and the gradient's norm before clipping. If either is not finite, parameters and optimizer
    stay as they were.
    """
    process = Process()
    weights = [1 / sum(sum(sample.mask) for sample in samples)] * len(samples)
    batches = shared_batches(samples, weights, range(len(samples)), row_tokens, batch_tokens, model.device, process)

    def loss_of(batch: Batch) -> torch.Tensor:
        return -(process.statistics(model, batch, 1.0)[0] * batch.weights[batch.mask]).sum()

    return process.optimizer_step(model, optimizer, batches, loss_of, max_grad_norm)


def endless_order(count: int, seed: int) -> Iterator[int]:
    """Yield permutations of range(count), one after the other."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(count), count)
