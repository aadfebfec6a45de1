"""Policy-gradient losses: per token, never masked, never reduced. One algorithm is one line of `LOSSES`.

    loss of a step = sum over sampled tokens of weight_i * (importance_t * surrogate(ratio_t, logp_t, A_t) + beta * ratio_t * k3_t)

`weight_i` carries the whole denominator (`token_weights`), so the sum may be cut into micro-batches anywhere. Everything here is a flat
tensor [N] over the sampled tokens; `sequence` [N] numbers the sample that each token belongs to, and a sample is never cut.
Definitions are those of TRL 1.16 (`GRPOTrainer._compute_loss`), which tests/test_trl_parity.py checks to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from longshort.recipe.sections import LossConfig
from longshort.types import LongShortError, Sample


def token_ratio(log_ratio: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """pi/pi_old of each token (GRPO, arXiv 2402.03300, eq. 3)."""
    return log_ratio.exp()


def sequence_ratio(log_ratio: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Geometric mean of the token ratios of the sample, at each of its tokens (GSPO, arXiv 2507.18071, eq. 7)."""
    return (sequence_sum(log_ratio, sequence) / sequence_sum(torch.ones_like(log_ratio), sequence)).exp()


def around_one(epsilon: float, epsilon_high: float) -> tuple[float, float]:
    """The ratio may move by `epsilon` downwards and by `epsilon_high` upwards (DAPO's clip-higher, arXiv 2503.14476, section 3.1)."""
    return 1 - epsilon, 1 + epsilon_high


def up_to(epsilon: float, epsilon_high: float) -> tuple[float, float]:
    """The ratio is capped at `epsilon_high` itself, e.g. 5.0, and has no lower bound (CISPO)."""
    return 0.0, epsilon_high


def clipped(ratio: torch.Tensor, logp: torch.Tensor, advantage: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """PPO's pessimistic surrogate (arXiv 1707.06347, eq. 7): no gradient once the ratio has left the range in the advantage's direction."""
    return -torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)


def truncated(
    ratio: torch.Tensor, logp: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """REINFORCE with a truncated, detached ratio: every token keeps a gradient (CISPO, arXiv 2506.13585, eq. 4)."""
    return -ratio.clamp(low, high).detach() * advantage * logp


def per_sample(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """Mean over each sample's tokens, then over samples."""
    return [1 / (len(tokens) * count) if count else 0.0 for count in tokens]


def per_budget(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """A constant denominator, which favours neither short nor long samples (Dr. GRPO, arXiv 2503.20783)."""
    return [1 / (len(tokens) * max_completion_tokens)] * len(tokens)


def per_token(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """Mean over all tokens of the step."""
    return [1 / max(1, sum(tokens))] * len(tokens)


@dataclass(frozen=True, slots=True)
class Loss:
    """One algorithm: which ratio, how far it may go, which surrogate of it, which denominator."""

    ratio: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    bounds: Callable[[float, float], tuple[float, float]]
    surrogate: Callable[..., torch.Tensor]
    weights: Callable[[Sequence[int], int], list[float]]


LOSSES = {
    "grpo": Loss(token_ratio, around_one, clipped, per_sample),
    "dr_grpo": Loss(token_ratio, around_one, clipped, per_budget),
    "dapo": Loss(token_ratio, around_one, clipped, per_token),
    "gspo": Loss(sequence_ratio, around_one, clipped, per_sample),
    "cispo": Loss(token_ratio, up_to, truncated, per_token),
}


def token_weights(samples: Sequence[Sample], kind: str, max_completion_tokens: int) -> list[float]:
    """Weight of each sampled token of each sample; the step's denominator is inside."""
    return LOSSES[kind].weights([sum(sample.mask) for sample in samples], max_completion_tokens)


def token_truncate(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    """Each token's learner/engine ratio, at most `cap`."""
    return log_ratio.exp().clamp(max=cap)


def sequence_mask(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    """The whole sample's learner/engine ratio, or 0 for a sample where it exceeds `cap`."""
    ratio = sequence_sum(log_ratio, sequence).exp()
    return ratio.masked_fill(ratio > cap, 0.0)


def uncorrected(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.ones_like(log_ratio)


IMPORTANCE_CORRECTIONS = {"token_truncate": token_truncate, "sequence_mask": sequence_mask, "none": uncorrected}
"""Factors that make up for an engine that samples from slightly other probabilities than the learner computes; from log(learner/engine)."""


def k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) at each token (Schulman's k3).

    Its own gradient is not the KL's; multiplied by the ratio, which is differentiable, it is (DeepSeek-V3.2, arXiv 2512.02556; as TRL).
    """
    difference = reference_logp - logp
    return difference.exp() - difference - 1


def sequence_sum(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over each sample, at each of its tokens."""
    _, index = sequence.unique(return_inverse=True)
    return torch.zeros_like(values).index_add(0, index, values)[index]


def check(config: LossConfig) -> None:
    """Refuse settings that mean something else for this loss than they say."""
    if config.name == "cispo" and config.epsilon_high < 1:
        raise LongShortError(
            f"loss.epsilon_high is {config.epsilon_high}, but for loss.name cispo it is the cap on the ratio itself, which is 1 on-policy; "
            "set loss.epsilon_high to e.g. 5.0"
        )
