"""A policy's learner on several ranks: DeepSpeed's ZeRO cuts its state into parts; it computes what TorchLearner does.

Every rank is given all samples of an update, takes its shard of them (backends/learners/sharding.py) and returns the
same report. Every method is a collective: all ranks call it, in the same order. Parameters and optimizer state are
float32 and bfloat16 is the type of the arithmetic, as in torch_learner.py. The only module that imports deepspeed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state, safe_set_local_optimizer_state

from longshort.backends.learners.learner_model import Parts, device_of, load_parts, trained
from longshort.backends.learners.sharding import cost, shard
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.learning.logprobs import TokenStatistics, token_statistics
from longshort.learning.optim import set_learning_rate
from longshort.learning.step import Process, UpdateMetrics
from longshort.recipe.schema import LongShortConfig
from longshort.types import Batch, LongShortError

BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced at once (float32: 200 MB); DeepSpeed's default keeps buffers of 2 GB."""


def join(store: Any, rank: int, ranks: int, timeout_s: float, *, gpu: bool) -> None:
    """Make this process rank `rank` of `ranks`; waiting for another rank longer than `timeout_s` is an error."""
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout_s))
    os.environ["LOCAL_RANK"] = "0"  # every rank sees its own GPU only
    if not gpu:
        # DeepSpeed would compile shared-memory collectives (45 s, needs g++) that wait for a dead rank forever.
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    deepspeed.init_distributed(dist_backend=backend)


class Rank(Process):
    """One rank's part of an update; all ranks run the same number of forward and backward passes."""

    def __init__(self, hidden: int, device: torch.device):
        self.rank, self.ranks, self.hidden, self.device = dist.get_rank(), dist.get_world_size(), hidden, device
        self.writes_files = self.rank == 0

    def own_samples(self, lengths: Sequence[int]) -> list[int]:
        return shard([cost(length, self.hidden) for length in lengths], self.ranks)[self.rank]

    def even_out(self, batches: list[Batch], role: str, device: torch.device) -> list[Batch]:
        most = torch.tensor(len(batches), device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return batches + [empty_batch(role, device)] * (int(most) - len(batches))

    def statistics(self, model, batch: Batch, temperature: float, *, with_entropy: bool = False) -> TokenStatistics:
        most_tokens = batch.mask.sum()
        dist.all_reduce(most_tokens, dist.ReduceOp.MAX)
        return model(batch, temperature, with_entropy, int(most_tokens))

    def optimizer_step(
        self, model, optimizer, parts: Sequence, loss_of: Callable, max_grad_norm: float
    ) -> tuple[float, float]:
        """Take one step; DeepSpeed clips at its own `max_grad_norm`, and skips on all ranks or on none."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            model.set_gradient_accumulation_boundary(last)
            loss = loss_of(part)
            total += loss.detach()
            if last:
                dist.all_reduce(total)
            # DeepSpeed averages over ranks, and checks gradients, not the loss: a non-finite loss must make one NaN.
            model.backward(loss * (math.nan if last and not math.isfinite(total) else self.ranks))
        model.step()
        norm, skipped = float(model.get_global_grad_norm()), model.optimizer.overflow
        if skipped == (math.isfinite(total) and math.isfinite(norm)):
            raise LongShortError(
                f"DeepSpeed {deepspeed.__version__} {'skipped' if skipped else 'took'} a step with loss {float(total)} "
                f"and gradient norm {norm}; its weights are wrong: resume from a checkpoint with DeepSpeed 0.19.8"
            )
        return float(total), norm

    def collect(self, metrics: UpdateMetrics) -> None:
        of_ranks: list[Any] = [None] * self.ranks
        dist.all_gather_object(of_ranks, metrics)
        for other in of_ranks[: self.rank] + of_ranks[self.rank + 1 :]:
            metrics.merge(other)


def empty_batch(role: str, device: torch.device) -> Batch:
    """Make a batch of two ids without a sampled one: its passes only keep step with another rank's."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=device)
    numbers = torch.zeros((1, 2), device=device)
    return Batch(
        role=role,
        input_ids=ids,
        position_ids=torch.arange(2, device=device)[None],
        sequence=ids - 1,
        mask=ids.bool(),
        logprobs=numbers,
        advantages=numbers,
        weights=numbers,
    )


class Statistics(torch.nn.Module):
    """`token_statistics` as a module, because DeepSpeed gathers a model's weights around calls of modules."""

    def __init__(self, model, device: torch.device, dtype: str):
        super().__init__()
        self.model, self._device, self._bfloat16 = model, device.type, dtype == "bfloat16"

    def forward(
        self, batch: Batch, temperature: float, with_entropy: bool = False, most_tokens: int = 0
    ) -> TokenStatistics:
        # Autocast's cache would hold every weight that ZeRO-3 releases.
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            return token_statistics(self.model, batch, temperature, with_entropy=with_entropy, most_tokens=most_tokens)


def load_partitioned(
    role: str, config: LongShortConfig, model_folder: str | Path, reference_folder: str | Path
) -> Parts:
    """Load the whole model into host memory on every rank, then let ZeRO take this rank's part of it."""
    parts = load_parts(role, config, model_folder, reference_folder, torch.device("cpu"))
    device, settings, stage = device_of(config), deepspeed_settings(config), config.learner.zero_stage
    wrapped = Statistics(parts.model, device, config.dtype)
    policy, *_ = deepspeed.initialize(model=wrapped, optimizer=parts.optimizer, config=settings)
    if stage < 3:
        lay_out_state(parts.optimizer)
    process = Rank(parts.model.config.get_text_config().hidden_size, device)
    reference: Any = Statistics(parts.reference, device, config.dtype) if parts.reference else None
    if reference and stage == 3:
        reference, *_ = deepspeed.initialize(model=reference, config=settings)
    elif reference:
        reference.to(device)
    return replace(parts, device=device, policy=policy, reference=reference, process=process)


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Make AdamW's state as its first step would; DeepSpeed looks for all of it after the first group's step only."""
    for group in optimizer.param_groups:
        for part in group["params"]:
            step = torch.zeros((), dtype=torch.float32, device=part.device)
            moments = {"exp_avg": torch.zeros_like(part), "exp_avg_sq": torch.zeros_like(part)}
            optimizer.state[part] = {"step": step} | moments


def deepspeed_settings(config: LongShortConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the optimizer is ours (learning/optim.py), as without DeepSpeed."""
    learner = config.learner
    zero: dict[str, Any] = {"stage": learner.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS}
    if learner.offload:
        zero |= {"offload_optimizer": {"device": "cpu"}} | (
            {"offload_param": {"device": "cpu"}} if learner.zero_stage == 3 else {}
        )
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero | learner.extra,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class DeepSpeedLearner(TorchLearner):
    """One rank of a learner; call `join` first. The saved state is TorchLearner's, for any number of ranks."""

    load_parts = staticmethod(load_partitioned)
    process: Rank

    def stream(self) -> Generator[tuple[str, torch.Tensor]]:
        """Yield every weight on every rank; ZeRO-3 gathers each one for its turn."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                yield name, tensor.detach()

    def _full_state(self) -> dict[str, torch.Tensor]:
        """Return every weight in host memory by its checkpoint name, float32, on rank 0; nothing on the others."""
        gathered: dict[int, torch.Tensor] = {}  # a tied weight is gathered once
        names = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            names[name] = id(tensor)
            if id(tensor) not in gathered:
                with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                    copied = tensor.detach().to("cpu", copy=True) if self.process.writes_files else torch.empty(0)
                    gathered[id(tensor)] = copied
        return {name: gathered[number] for name, number in names.items()} if self.process.writes_files else {}

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """Return AdamW's state as `<key>/<parameter>` on rank 0; nothing on the others."""
        step = next((state["step"] for state in self.optimizer.state.values()), torch.zeros(()))
        if not step:
            return {}
        tensors = {}
        for name, parameter in trained(self.model).items():
            for key in ("exp_avg", "exp_avg_sq"):
                whole: Any = safe_get_full_optimizer_state(parameter, key)
                if self.process.writes_files:
                    tensors |= {f"{key}/{name}": whole.to("cpu", copy=True), f"step/{name}": step.to("cpu", copy=True)}
        return tensors

    def _set_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Set AdamW's state of a learner that has made no step yet."""
        if not states:
            return
        # DeepSpeed lays out its parts of the state in the first step: take one on nothing, at learning rate 0.
        set_learning_rate(self.optimizer, 0.0)
        empty = [empty_batch(self.role, self.device)]
        self.process.optimizer_step(
            self.policy, self.optimizer, empty, lambda batch: self.policy(batch, 1.0)[0].sum(), 1.0
        )
        for name, parameter in trained(self.model).items():
            for key in ("exp_avg", "exp_avg_sq"):
                self._set_moment(parameter, states[name][key].to(self.device), key)
        for state in self.optimizer.state.values():
            state["step"].copy_(next(iter(states.values()))["step"])

    def _set_moment(self, parameter: Any, value: torch.Tensor, key: str) -> None:
        if self.config.learner.zero_stage < 3:
            return safe_set_full_optimizer_state(parameter, value, key)
        # ZeRO-3 pads each weight and cuts it into equal parts, where DeepSpeed's function for the whole weight fails.
        size = parameter.ds_tensor.numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.process.ranks - value.numel()))
        return safe_set_local_optimizer_state(parameter, padded[size * self.process.rank :][:size], key)
