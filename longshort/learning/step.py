"""One update of one policy: the loss of packed sequences, the gradient, the optimizer step.

The weights of the whole step are fixed before the first micro-batch, so neither packing, micro-batching nor the number
of ranks changes the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from longshort.learning import losses
from longshort.learning.logprobs import LanguageModel, TokenStatistics, token_statistics
from longshort.learning.packing import pack
from longshort.recipe.sections import LossConfig
from longshort.types import Batch, Sample

T = TypeVar("T")


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


class Process:
    """One process's part of an update. This class is for a learner of one process, which does all of it.

    DeepSpeed's ranks share an update instead (backends/learners/deepspeed_learner.py). `dtype` is the type of the
    arithmetic: "float32" or "bfloat16".
    """

    writes_files = True

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype

    def own_samples(self, lengths: Sequence[int]) -> list[int]:
        """Return the numbers of the samples that this process learns from; `lengths` are in tokens."""
        return list(range(len(lengths)))

    def even_out(self, batches: list[Batch], role: str, device: torch.device) -> list[Batch]:
        """Append empty micro-batches until this process has as many as any other."""
        return batches

    def statistics(self, model, batch: Batch, temperature: float, *, with_entropy: bool = False) -> TokenStatistics:
        """Compute `token_statistics`.

        Each time in a context of its own: autocast keeps its bfloat16 copies of the weights to the end of a context,
        and an optimizer step does not renew them.
        """
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return token_statistics(model, batch, temperature, with_entropy=with_entropy)

    @torch.no_grad()
    def frozen_logprobs(self, model, batch: Batch, temperature: float) -> torch.Tensor:
        """Compute log-probs that no gradient flows through."""
        return self.statistics(model, batch, temperature)[0]

    def optimizer_step(
        self,
        model,
        optimizer: torch.optim.Optimizer,
        parts: Sequence[T],
        loss_of: Callable[[T], torch.Tensor],
        max_grad_norm: float,
    ) -> tuple[float, float]:
        """Take one optimizer step on the sum of the parts' losses, holding one graph at a time.

        Returns the loss and the gradient's norm before clipping. If either is not finite, parameters and optimizer stay
        as they were.
        """
        total = 0.0
        for part in parts:
            loss = loss_of(part)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()
        if math.isfinite(total) and math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, norm

    def collect(self, metrics: UpdateMetrics) -> None:
        """Add what the other processes measured."""


class UpdateMetrics:
    """Per-token quantities over the micro-batches and passes of an update: means, and for `sampling/` also maxima."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = defaultdict(float)
        self.maxima: dict[str, float] = {}
        self.old_logprobs: dict[int, torch.Tensor] = {}
        """By sample number: the old policy's log-probs of its sampled tokens, float32 on the CPU."""

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add the quantities of one micro-batch, a tensor [N] each."""
        if not (count := len(next(iter(values.values())))):
            return  # an empty micro-batch, which only keeps step with another rank's
        self.count += count
        for name, value in values.items():
            self.sums[name] += value.sum(dtype=torch.float64).item()
            self._raise_maximum(name, value.max().item())

    def add_old_logprobs(self, batch: Batch, old_logp: torch.Tensor) -> None:
        """Split a micro-batch's log-probs [N] by sample; a later pass writes the same values again."""
        numbers, lengths = batch.sequence[batch.mask].cpu().unique_consecutive(return_counts=True)
        self.old_logprobs |= zip(numbers.tolist(), old_logp.cpu().split(lengths.tolist()), strict=True)

    def merge(self, other: UpdateMetrics) -> None:
        """Add what another process measured."""
        self.count += other.count
        for name, total in other.sums.items():
            self.sums[name] += total
            self._raise_maximum(name, other.maxima[name])
        self.old_logprobs |= other.old_logprobs

    def report(self) -> dict[str, float]:
        """Return the metrics under TRL's names."""
        report = {}
        for name, total in self.sums.items():
            if name.startswith("sampling/"):
                report |= {f"{name}/mean": total / self.count, f"{name}/max": self.maxima[name]}
            else:
                report[name] = total / self.count
        return report

    def _raise_maximum(self, name: str, value: float) -> None:
        self.maxima[name] = max(self.maxima.get(name, -math.inf), value)


def policy_gradient_step(
    model,
    reference: LanguageModel | None,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    settings: StepSettings,
    metrics: UpdateMetrics | None = None,
    process: Process | None = None,
) -> dict[str, float]:
    """Train on one step's samples of one role, in `num_iterations` optimizer steps over all of them; return metrics.

    `reference` is the frozen model of the KL term, or None when `loss.beta` is 0. Pass new `metrics` to keep the old
    policy's log-probs of each sample trained on. Means are over the sampled tokens trained on; names are TRL's.
    A pass whose loss or gradient norm is not finite changes nothing, ends the update and reports `skipped` 1;
    `optimizer_steps` counts the passes that changed something. If no sample has an advantage other than 0, no step is
    taken: `skipped_empty` 1. With several processes, each is given all samples and returns the same report.
    """
    process, metrics = process or Process(), metrics or UpdateMetrics()
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

    def loss_of(part: tuple[Batch, torch.Tensor | None]) -> torch.Tensor:
        batch, old_logp = part
        logp, entropy = process.statistics(model, batch, settings.temperature, with_entropy=True)
        old_logp = logp.detach() if old_logp is None else old_logp
        reference_logp = process.frozen_logprobs(reference, batch, settings.temperature) if settings.loss.beta else None
        per_token, values = token_loss(logp, old_logp, reference_logp, batch, settings.loss)
        metrics.add(values if entropy is None else {"entropy": entropy} | values)
        metrics.add_old_logprobs(batch, old_logp)
        return (per_token * batch.weights[batch.mask]).sum()

    # With one pass the old policy is the current one, so its log-probs are the forward pass's own.
    several = settings.num_iterations > 1
    parts = [
        (batch, process.frozen_logprobs(model, batch, settings.temperature) if several else None) for batch in batches
    ]
    for _ in range(settings.num_iterations):
        loss, grad_norm = process.optimizer_step(model, optimizer, parts, loss_of, settings.max_grad_norm)
        report |= {"loss": loss, "grad_norm": grad_norm}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return report | {"skipped": 1.0}
        report["optimizer_steps"] += 1
    process.collect(metrics)
    return report | metrics.report()


def micro_batches(
    samples: Sequence[Sample], settings: StepSettings, device: torch.device, process: Process | None = None
) -> list[Batch]:
    """Pack this process's samples that have a gradient.

    Denominators count every sample. Those with advantage 0 are then left out, unless the KL acts on them.
    """
    weights = losses.token_weights(samples, settings.loss.name, settings.max_completion_tokens)
    learnable = [any(sample.advantages) for sample in samples]
    if settings.loss.beta and any(learnable):
        learnable = [any(sample.mask) for sample in samples]
    kept = [i for i, keep in enumerate(learnable) if keep]
    rows, batch = settings.row_tokens, settings.batch_tokens
    return shared_batches(samples, weights, kept, rows, batch, device, process or Process())


def shared_batches(
    samples: Sequence[Sample],
    weights: Sequence[float],
    kept: Sequence[int],
    row_tokens: int,
    batch_tokens: int,
    device: torch.device,
    process: Process,
) -> list[Batch]:
    """Return this process's micro-batches of the samples `kept`; no process has any when none are kept."""
    if not kept:
        return []
    own = [kept[i] for i in process.own_samples([len(samples[i].token_ids) for i in kept])]
    batches = pack([samples[i] for i in own], [weights[i] for i in own], row_tokens, batch_tokens, device)
    numbers = torch.tensor([*own, -1], device=device)  # pack numbers the samples it is given; padding is -1, the last
    batches = [replace(batch, sequence=numbers[batch.sequence]) for batch in batches]
    return process.even_out(batches, samples[0].role, device)


def token_loss(
    logp: torch.Tensor, old_logp: torch.Tensor, reference_logp: torch.Tensor | None, batch: Batch, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return each sampled token's loss, float32 [N], and the quantities to report; losses.py has the formula."""
    algorithm = losses.LOSSES[config.name]
    sequence, advantage = batch.sequence[batch.mask], batch.advantages[batch.mask]
    ratio = algorithm.ratio(logp - old_logp, sequence)
    low, high = algorithm.bounds(config.epsilon, config.epsilon_high)
    mismatch = old_logp - batch.logprobs[batch.mask]
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
