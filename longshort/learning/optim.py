"""AdamW with named parameters, and the learning rate as a function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def build_optimizer(
    model, *, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """Make AdamW over the trainable parameters, by name; matrices decay, vectors (norms, biases) do not."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.ndim >= 2]
    vectors = [(name, parameter) for name, parameter in named if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)


def learning_rate_factor(step: int, total_steps: int, *, kind: str, warmup_ratio: float) -> float:
    """Return the share of the peak learning rate at `step`: linear warm-up over `warmup_ratio` of the run, then `kind`.

    It is never 0 within the run, so no step is wasted: of 10 warm-up steps the first trains at 1/11.
    """
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return DECAYS[kind](progress)


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
