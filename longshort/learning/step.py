"""One update of one policy: log-probs of packed sequences, the loss, the gradient, the optimizer step.

The weights of the whole step are fixed before the first micro-batch, so packing and micro-batching do not change the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from longshort.learning import losses
from longshort.learning.packing import pack
from longshort.sections import LossConfig
from longshort.types import Batch, Sample

LOGITS_HELD = 2**26
"""Logits computed at once (float32: 256 MiB); a vocabulary of 150,000 is cut into chunks of 447 tokens, recomputed in the backward pass."""


def token_logprobs(model, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs, float32 [N], of the N = batch.mask.sum() sampled tokens in row-major order, with the temperature inside."""
    return token_statistics(model, batch, temperature)[0]


def token_statistics(
    model, batch: Batch, temperature: float = 1.0, *, with_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs of the sampled tokens and, if asked, the entropy of the distribution they came from (detached, nats); float32 [N]."""
    hidden = model.get_decoder()(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    sampled = batch.mask[:, 1:]  # no sample begins with a sampled token (types.Sample), so t-1 always lies in the same sample
    hidden, targets = hidden[:, :-1][sampled], batch.input_ids[:, 1:][sampled]
    softcap = model.config.to_dict().get("final_logit_softcapping")
    head = model.get_output_embeddings()

    def head_statistics(hidden: torch.Tensor, targets: torch.Tensor):
        logits = head(hidden).float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1.0:
            logits = logits / temperature
        return -F.cross_entropy(logits, targets, reduction="none"), _entropy(logits.detach()) if with_entropy else None

    chunk = max(1, LOGITS_HELD // head.weight.shape[0])
    if len(targets) <= chunk:
        return head_statistics(hidden, targets)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    logps, entropies = zip(*(checkpoint(head_statistics, *part, use_reentrant=False) for part in parts), strict=True)
    return torch.cat(logps), torch.cat(entropies) if with_entropy else None


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(logits.softmax(-1)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What one update needs to know of the recipe (names as in longshort/config.py)."""

    loss: LossConfig
    temperature: float
    max_completion_tokens: int
    """Dr. GRPO's constant: the most tokens a role may sample in an episode."""
    max_grad_norm: float
    num_iterations: int
    row_tokens: int
    batch_tokens: int


def policy_gradient_step(
    model, reference, optimizer: torch.optim.Optimizer, samples: Sequence[Sample], settings: StepSettings, tally: Tally | None = None
) -> dict[str, float]:
    """Train `model` on one step's samples of one role, in `num_iterations` optimizer steps over all of them; metrics are named as in TRL.

    `reference` is the frozen model of the KL term, or None when `loss.beta` is 0. Means are over the sampled tokens trained on.
    A new `tally` passed in also brings back the old policy's log-probs of every token trained on, by sample (`Tally.old_logprobs`).
    A pass whose loss or gradient norm is not finite leaves parameters and optimizer as the pass before did, ends the update and reports
    `skipped` 1; `optimizer_steps` counts the passes that changed something.
    Without a sample whose advantage differs from 0 there is nothing to learn: no step, `skipped_empty` 1.
    """
    batches = micro_batches(samples, settings, model.device)
    report = {
        "tokens": float(sum(sum(sample.mask) for sample in samples)),
        "skipped": 0.0,
        "skipped_empty": float(not batches),
        "optimizer_steps": 0.0,
    }
    if not batches:
        return report
    report["learning_rate"] = optimizer.param_groups[0]["lr"]
    tally = tally or Tally()
    # With one pass the old policy is the current one, so its log-probs are the forward pass's own.
    old_logps = [_frozen_logprobs(model, batch, settings) for batch in batches] if settings.num_iterations > 1 else [None] * len(batches)
    for _ in range(settings.num_iterations):
        loss = sum(_backward(model, reference, batch, old, settings, tally) for batch, old in zip(batches, old_logps, strict=True))
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            optimizer.step()
            report["optimizer_steps"] += 1
        optimizer.zero_grad(set_to_none=True)
        if not finite:
            return report | {"loss": loss, "grad_norm": grad_norm, "skipped": 1.0}
    return report | {"loss": loss, "grad_norm": grad_norm} | tally.metrics()


def micro_batches(samples: Sequence[Sample], settings: StepSettings, device: torch.device) -> list[Batch]:
    """Pack what has a gradient. Denominators count every sample; those with advantage 0 are then left out, unless the KL acts on them."""
    weights = losses.token_weights(samples, settings.loss.name, settings.max_completion_tokens)
    learnable = [any(sample.advantages) for sample in samples]
    if settings.loss.beta and any(learnable):
        learnable = [any(sample.mask) for sample in samples]
    kept = [i for i, keep in enumerate(learnable) if keep]
    batches = pack([samples[i] for i in kept], [weights[i] for i in kept], settings.row_tokens, settings.batch_tokens, device)
    numbers = torch.tensor([*kept, -1], device=device)  # pack counts what it is given; padding's -1 finds the -1 at the end
    return [replace(batch, sequence=numbers[batch.sequence]) for batch in batches]


def _backward(model, reference, batch: Batch, old_logp: torch.Tensor | None, settings: StepSettings, tally: Tally) -> float:
    """Add one micro-batch's gradient; returns its part of the step's loss."""
    logp, entropy = token_statistics(model, batch, settings.temperature, with_entropy=True)
    old_logp = logp.detach() if old_logp is None else old_logp
    reference_logp = _frozen_logprobs(reference, batch, settings) if settings.loss.beta else None
    per_token, values = token_loss(logp, old_logp, reference_logp, batch, settings.loss)
    loss = (per_token * batch.weights[batch.mask]).sum()
    loss.backward()
    tally.add({"entropy": entropy} | values)
    tally.keep(batch, old_logp)
    return loss.item()


def token_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, reference_logp: torch.Tensor | None, batch: Batch, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each sampled token's loss, float32 [N], and the per-token quantities to report; see losses.py for the formula."""
    algorithm = losses.LOSSES[config.name]
    sequence, advantage, engine_logp = batch.sequence[batch.mask], batch.advantages[batch.mask], batch.logprobs[batch.mask]
    ratio = algorithm.ratio(logp - old_logp, sequence)
    low, high = algorithm.bounds(config.epsilon, config.epsilon_high)
    mismatch = old_logp - engine_logp
    importance = losses.IMPORTANCE_CORRECTIONS[config.importance_correction](mismatch, sequence, config.importance_cap)
    loss = importance * algorithm.surrogate(ratio, logp, advantage, low, high)
    values = {
        "clip_ratio/low_mean": (ratio < low) & (advantage < 0),
        "clip_ratio/high_mean": (ratio > high) & (advantage > 0),
        "sampling/importance_sampling_ratio": importance,
        "sampling/sampling_logp_difference": mismatch.abs(),
    }
    if reference_logp is not None:
        values["kl"] = ratio * losses.k3(logp, reference_logp)
        loss = loss + config.beta * values["kl"]
    return loss, {name: value.detach().float() for name, value in values.items()}


class Tally:
    """Means (and for `sampling/` also maxima) of per-token quantities over the micro-batches and passes of an update.

    `old_logprobs` maps the number of each sample trained on to the old policy's log-probs of its sampled tokens, float32 on the CPU, in
    their order, with the temperature inside: what the learner thought of them before its first optimizer step.
    """

    def __init__(self) -> None:
        self.count, self.sums, self.maxima = 0, defaultdict(float), defaultdict(lambda: -math.inf)
        self.old_logprobs: dict[int, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        self.count += len(next(iter(values.values())))
        for name, value in values.items():
            self.sums[name] += value.sum(dtype=torch.float64).item()
            self.maxima[name] = max(self.maxima[name], value.max().item())

    def keep(self, batch: Batch, old_logp: torch.Tensor) -> None:
        """Cut a micro-batch's log-probs, float32 [N], where its samples begin; a later pass writes the same values again."""
        numbers, lengths = batch.sequence[batch.mask].cpu().unique_consecutive(return_counts=True)
        self.old_logprobs |= zip(numbers.tolist(), old_logp.cpu().split(lengths.tolist()), strict=True)

    def metrics(self) -> dict[str, float]:
        report = {}
        for name, total in self.sums.items():
            if name.startswith("sampling/"):
                report |= {f"{name}/mean": total / self.count, f"{name}/max": self.maxima[name]}
            else:
                report[name] = total / self.count
        return report


@torch.no_grad()
def _frozen_logprobs(model, batch: Batch, settings: StepSettings) -> torch.Tensor:
    return token_logprobs(model, batch, settings.temperature)
