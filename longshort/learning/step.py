"""One update of one policy: log-probs of packed sequences, the loss, the gradient, the optimizer step.

The weights of the whole step are fixed before the first micro-batch, so neither packing, micro-batching nor the number of ranks changes
the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from longshort.learning import losses
from longshort.learning.packing import pack
from longshort.recipe.sections import LossConfig
from longshort.types import Batch, Sample

T = TypeVar("T")
LOGITS_HELD = 2**26
"""Logits computed at once (float32: 256 MiB); a vocabulary of 150,000 is cut into chunks of 447 tokens, recomputed in the backward pass."""


def token_logprobs(model, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs, float32 [N], of the N = batch.mask.sum() sampled tokens in row-major order, with the temperature inside."""
    return token_statistics(model, batch, temperature)[0]


def token_statistics(
    model, batch: Batch, temperature: float = 1.0, *, with_entropy: bool = False, most_tokens: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs of the sampled tokens and, if asked, the entropy of the distribution they came from (detached, nats); float32 [N].

    The head is called as often as `most_tokens` sampled tokens need, should those of this batch need less: with ZeRO-3 each call is a
    collective, in which every rank must take part.
    """
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    sampled = batch.mask[
        :, 1:
    ]  # no sample begins with a sampled token (types.Sample), so t-1 always lies in the same sample
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

    chunk = max(1, LOGITS_HELD // head.out_features)
    parts = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    parts += [(hidden[:0], targets[:0])] * (math.ceil(most_tokens / chunk) - len(parts))
    if len(parts) == 1:
        return head_statistics(hidden, targets)
    logps, entropies = zip(*(checkpoint(head_statistics, *part, use_reentrant=False) for part in parts), strict=True)
    return torch.cat(logps), torch.cat(entropies) if with_entropy else None


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(logits.softmax(-1)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What one update needs to know of the recipe (names as in longshort/recipe/schema.py)."""

    loss: LossConfig
    temperature: float
    max_completion_tokens: int
    """Dr. GRPO's constant: the most tokens a role may sample in an episode."""
    max_grad_norm: float
    num_iterations: int
    row_tokens: int
    batch_tokens: int


class Alone:
    """How one process does its part of an update: all of it. DeepSpeed's ranks do it together (backends/learners/deepspeed_learner.py)."""

    writes = True
    """Whether this process is the one that writes files."""

    def share(self, lengths: Sequence[int]) -> list[int]:
        """Which samples, by their number, this process learns from; `lengths` in tokens."""
        return list(range(len(lengths)))

    def fill(self, batches: list[Batch], role: str, device: torch.device) -> list[Batch]:
        """The micro-batches of this process, as many as any other has."""
        return batches

    def statistics(self, model, batch: Batch, temperature: float, *, with_entropy: bool = False):
        return token_statistics(model, batch, temperature, with_entropy=with_entropy)

    def descend(
        self,
        model,
        optimizer: torch.optim.Optimizer,
        work: Sequence[T],
        loss_of: Callable[[T], torch.Tensor],
        max_grad_norm: float,
    ) -> tuple[float, float]:
        """One optimizer step on the sum of the losses of `work`, one graph at a time; returns (loss, gradient norm before clipping).

        If either is not finite, parameters and optimizer stay as they were.
        """
        total = 0.0
        for part in work:
            loss = loss_of(part)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()
        if math.isfinite(total) and math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, norm

    def merge(self, tally: Tally) -> None:
        """Add what the other processes counted."""


def policy_gradient_step(
    model,
    reference,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    settings: StepSettings,
    tally: Tally | None = None,
    process: Alone | None = None,
) -> dict[str, float]:
    """Train `model` on one step's samples of one role, in `num_iterations` optimizer steps over all of them; metrics are named as in TRL.

    `reference` is the frozen model of the KL term, or None when `loss.beta` is 0. Means are over the sampled tokens trained on.
    A new `tally` passed in also brings back the old policy's log-probs of every token trained on, by sample (`Tally.old_logprobs`).
    A pass whose loss or gradient norm is not finite leaves parameters and optimizer as the pass before did, ends the update and reports
    `skipped` 1; `optimizer_steps` counts the passes that changed something.
    Without a sample whose advantage differs from 0 there is nothing to learn: no step, `skipped_empty` 1.
    With several processes each is given all samples and returns the same report.
    """
    process = process or Alone()
    batches = micro_batches(samples, settings, model.device, process)
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

    def frozen_logprobs(frozen, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return process.statistics(frozen, batch, settings.temperature)[0]

    def loss_of(part: tuple[Batch, torch.Tensor | None]) -> torch.Tensor:
        """One micro-batch's part of the step's loss."""
        batch, old_logp = part
        logp, entropy = process.statistics(model, batch, settings.temperature, with_entropy=True)
        old_logp = logp.detach() if old_logp is None else old_logp
        reference_logp = frozen_logprobs(reference, batch) if settings.loss.beta else None
        per_token, values = token_loss(logp, old_logp, reference_logp, batch, settings.loss)
        tally.add({"entropy": entropy} | values)
        tally.keep(batch, old_logp)
        return (per_token * batch.weights[batch.mask]).sum()

    # With one pass the old policy is the current one, so its log-probs are the forward pass's own.
    old_logps = (
        [frozen_logprobs(model, batch) for batch in batches] if settings.num_iterations > 1 else [None] * len(batches)
    )
    work = list(zip(batches, old_logps, strict=True))
    for _ in range(settings.num_iterations):
        loss, grad_norm = process.descend(model, optimizer, work, loss_of, settings.max_grad_norm)
        report |= {"loss": loss, "grad_norm": grad_norm}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return report | {"skipped": 1.0}
        report["optimizer_steps"] += 1
    process.merge(tally)
    return report | tally.metrics()


def micro_batches(
    samples: Sequence[Sample], settings: StepSettings, device: torch.device, process: Alone | None = None
) -> list[Batch]:
    """Pack what has a gradient and falls to this process. Denominators count every sample; those with advantage 0 are then left out,
    unless the KL acts on them."""
    weights = losses.token_weights(samples, settings.loss.name, settings.max_completion_tokens)
    learnable = [any(sample.advantages) for sample in samples]
    if settings.loss.beta and any(learnable):
        learnable = [any(sample.mask) for sample in samples]
    kept = [i for i, keep in enumerate(learnable) if keep]
    return shared_batches(
        samples, weights, kept, settings.row_tokens, settings.batch_tokens, device, process or Alone()
    )


def shared_batches(
    samples: Sequence[Sample],
    weights: Sequence[float],
    kept: Sequence[int],
    row_tokens: int,
    batch_tokens: int,
    device: torch.device,
    process: Alone,
) -> list[Batch]:
    """This process's micro-batches of the samples `kept`; none on any process when none are kept."""
    if not kept:
        return []
    mine = [kept[i] for i in process.share([len(samples[i].token_ids) for i in kept])]
    batches = pack([samples[i] for i in mine], [weights[i] for i in mine], row_tokens, batch_tokens, device)
    numbers = torch.tensor(
        [*mine, -1], device=device
    )  # pack counts what it is given; padding's -1 finds the -1 at the end
    return process.fill(
        [replace(batch, sequence=numbers[batch.sequence]) for batch in batches], samples[0].role, device
    )


def token_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, reference_logp: torch.Tensor | None, batch: Batch, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each sampled token's loss, float32 [N], and the per-token quantities to report; see losses.py for the formula."""
    algorithm = losses.LOSSES[config.name]
    sequence, advantage, engine_logp = (
        batch.sequence[batch.mask],
        batch.advantages[batch.mask],
        batch.logprobs[batch.mask],
    )
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


def _lowest() -> float:
    return -math.inf


class Tally:
    """Means (and for `sampling/` also maxima) of per-token quantities over the micro-batches and passes of an update.

    `old_logprobs` maps the number of each sample trained on to the old policy's log-probs of its sampled tokens, float32 on the CPU, in
    their order, with the temperature inside: what the learner thought of them before its first optimizer step.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = defaultdict(float)
        self.maxima: dict[str, float] = defaultdict(_lowest)
        self.old_logprobs: dict[int, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        if not len(next(iter(values.values()))):
            return  # a micro-batch that only keeps step with another rank's
        self.count += len(next(iter(values.values())))
        for name, value in values.items():
            self.sums[name] += value.sum(dtype=torch.float64).item()
            self.maxima[name] = max(self.maxima[name], value.max().item())

    def keep(self, batch: Batch, old_logp: torch.Tensor) -> None:
        """Cut a micro-batch's log-probs, float32 [N], where its samples begin; a later pass writes the same values again."""
        numbers, lengths = batch.sequence[batch.mask].cpu().unique_consecutive(return_counts=True)
        self.old_logprobs |= zip(numbers.tolist(), old_logp.cpu().split(lengths.tolist()), strict=True)

    def merge(self, other: Tally) -> None:
        self.count += other.count
        for name, total in other.sums.items():
            self.sums[name] += total
            self.maxima[name] = max(self.maxima[name], other.maxima[name])
        self.old_logprobs |= other.old_logprobs

    def metrics(self) -> dict[str, float]:
        report = {}
        for name, total in self.sums.items():
            if name.startswith("sampling/"):
                report |= {f"{name}/mean": total / self.count, f"{name}/max": self.maxima[name]}
            else:
                report[name] = total / self.count
        return report
