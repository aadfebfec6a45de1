"""Policy-gradient losses: per token, never masked, never reduced. One algorithm is one line of `LOSSES`.

    loss of a step = sum over sampled tokens of
                     weight_i * (importance_t * surrogate(ratio_t, logp_t, A_t) + beta * ratio_t * k3_t)

`weight_i` carries the whole denominator (`token_weights`), so the sum may be cut into micro-batches anywhere. Every
tensor here is flat, [N] over the sampled tokens; `sequence` [N] numbers the sample of each token, and a sample is never
cut. Definitions are those of TRL 1.16 (`GRPOTrainer._compute_loss`); tests/learners/test_trl_parity.py checks them to
1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from longshort.recipe.sections import LossConfig
from longshort.types import LongShortError, Sample


def token_ratio(log_ratio: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Return pi/pi_old of each token (GRPO, arXiv 2402.03300, eq. 3)."""
    return log_ratio.exp()


def sequence_ratio(log_ratio: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Return the geometric mean of a sample's token ratios, at each of its tokens (GSPO, arXiv 2507.18071, eq. 7)."""
    return (sequence_sum(log_ratio, sequence) / sequence_sum(torch.ones_like(log_ratio), sequence)).exp()


def around_one(epsilon: float, epsilon_high: float) -> tuple[float, float]:
    """Let the ratio fall by `epsilon` and rise by `epsilon_high` (DAPO's clip-higher, arXiv 2503.14476, sec. 3.1)."""
    return 1 - epsilon, 1 + epsilon_high


def up_to(epsilon: float, epsilon_high: float) -> tuple[float, float]:
    """Cap the ratio at `epsilon_high` itself, e.g. 5.0, with no lower bound (CISPO)."""
    return 0.0, epsilon_high


def clipped(ratio: torch.Tensor, logp: torch.Tensor, advantage: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return PPO's pessimistic surrogate (arXiv 1707.06347, eq. 7).

    No gradient flows once the ratio has left the range in the advantage's direction.
    """
    return -torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)


def truncated(
    ratio: torch.Tensor, logp: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """Weight REINFORCE by the clamped, detached ratio: each token keeps a gradient (CISPO, arXiv 2506.13585, eq. 4)."""
    return -ratio.clamp(low, high).detach() * advantage * logp


def per_sample(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """Take the mean over each sample's tokens, then over samples."""
    return [1 / (len(tokens) * count) if count else 0.0 for count in tokens]


def per_budget(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """Divide by a constant, which favours neither short nor long samples (Dr. GRPO, arXiv 2503.20783)."""
    return [1 / (len(tokens) * max_completion_tokens)] * len(tokens)


def per_token(tokens: Sequence[int], max_completion_tokens: int) -> list[float]:
    """Take the mean over all tokens of the step."""
    return [1 / max(1, sum(tokens))] * len(tokens)


@dataclass(frozen=True, slots=True)
class Loss:
    """One algorithm: which ratio, how far it may go, which surrogate of it, which denominator."""

    ratio: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    bounds: Callable[[float, float], tuple[float, float]]
    surrogate: Callable[..., torch.Tensor]
    weights: Callable[[Sequence[int], int], list[float]]


LOSSES: dict[str, Loss] = {
    "grpo": Loss(token_ratio, around_one, clipped, per_sample),
    "dr_grpo": Loss(token_ratio, around_one, clipped, per_budget),
    "dapo": Loss(token_ratio, around_one, clipped, per_token),
    "gspo": Loss(sequence_ratio, around_one, clipped, per_sample),
    "cispo": Loss(token_ratio, up_to, truncated, per_token),
}


def token_weights(samples: Sequence[Sample], kind: str, max_completion_tokens: int) -> list[float]:
    """Return the weight of each sampled token of each sample; the step's denominator is inside."""
    return LOSSES[kind].weights([sum(sample.mask) for sample in samples], max_completion_tokens)


def token_truncate(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    """Return each token's learner/engine ratio, at most `cap`."""
    return log_ratio.exp().clamp(max=cap)


def sequence_mask(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    """Return the whole sample's learner/engine ratio, or 0 where it exceeds `cap`."""
    ratio = sequence_sum(log_ratio, sequence).exp()
    return ratio.masked_fill(ratio > cap, 0.0)


def uncorrected(log_ratio: torch.Tensor, sequence: torch.Tensor, cap: float) -> torch.Tensor:
    """Return 1 for each token."""
    return torch.ones_like(log_ratio)


IMPORTANCE_CORRECTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "token_truncate": token_truncate,
    "sequence_mask": sequence_mask,
    "none": uncorrected,
}
"""Factors, from log(learner/engine), that correct for an engine whose probabilities differ slightly."""


def k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Estimate KL(policy || reference) at each token, unbiased and never negative (Schulman's k3).

    Its own gradient is not the KL's, but that of its product with the differentiable ratio is (DeepSeek-V3.2, arXiv
    2512.02556; as TRL).
    """
    difference = reference_logp - logp
    return difference.exp() - difference - 1


def sequence_sum(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over each sample, at each of its tokens."""
    _, index = sequence.unique(return_inverse=True)
    return torch.zeros_like(values).index_add(0, index, values)[index]


def check(config: LossConfig) -> None:
    """Refuse settings that mean something else for this loss than they say."""
    if config.name == "cispo" and config.epsilon_high < 1:
        raise LongShortError(
            f"loss.epsilon_high is {config.epsilon_high}, but for loss.name cispo it is the cap on the ratio itself, "
            "which is 1 on-policy; set loss.epsilon_high to e.g. 5.0"
        )
