"""A policy's learner on several ranks: DeepSpeed's ZeRO cuts its state into parts; what it computes is what TorchLearner computes.

Every rank is given all samples of an update, takes its shard of them (learning/sharding.py) and returns the same report. Every method is
a collective: all ranks call it, in the same order. As in torch_learner.py parameters and optimizer state are float32 and bfloat16 is the
type of the arithmetic. The only module that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state, safe_set_local_optimizer_state

from longshort.backends.learners.learner_checks import check_packing
from longshort.backends.learners.learner_model import device_of
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.learning.optim import set_learning_rate
from longshort.learning.sharding import cost, shard
from longshort.learning.step import Alone, Tally, token_statistics
from longshort.recipe.schema import LongShortConfig
from longshort.types import Batch, LongShortError

BUCKET_ELEMENTS = 50_000_000
"""Gradients reduced at once (float32: 200 MB); DeepSpeed's default keeps buffers of 2 GB."""


def join(store: dist.Store, rank: int, ranks: int, timeout_s: float, *, gpu: bool) -> None:
    """Make this process rank `rank` of `ranks`; whoever waits for another one longer than `timeout_s` gets an error."""
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout_s))
    os.environ["LOCAL_RANK"] = "0"  # every rank sees its own GPU only
    if not gpu:
        # DeepSpeed would compile collectives through shared memory (45 s, needs g++), in which a dead rank is waited for for ever.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=backend)


class Rank(Alone):
    """One rank's part of an update, in step with the others: the same number of forward and backward passes on each."""

    def __init__(self, hidden: int, device: torch.device):
        self.rank, self.ranks, self.hidden, self.device = dist.get_rank(), dist.get_world_size(), hidden, device
        self.writes = self.rank == 0

    def share(self, lengths: Sequence[int]) -> list[int]:
        return shard([cost(length, self.hidden) for length in lengths], self.ranks)[self.rank]

    def fill(self, batches: list[Batch], role: str, device: torch.device) -> list[Batch]:
        most = torch.tensor(len(batches), device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return batches + [empty_batch(role, device)] * (int(most) - len(batches))

    def statistics(self, model, batch: Batch, temperature: float, *, with_entropy: bool = False):
        most_tokens = batch.mask.sum()
        dist.all_reduce(most_tokens, dist.ReduceOp.MAX)
        return model(batch, temperature, with_entropy, int(most_tokens))

    def descend(self, model, optimizer, work: Sequence, loss_of: Callable, max_grad_norm: float) -> tuple[float, float]:
        """As Alone's; DeepSpeed clips (at the `max_grad_norm` that it was made with) and skips the step on all ranks or on none."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, part in enumerate(work, 1):
            last = number == len(work)
            model.set_gradient_accumulation_boundary(last)
            loss = loss_of(part)
            total += loss.detach()
            if last:
                dist.all_reduce(total)
            # DeepSpeed takes the mean over ranks. It looks at gradients, not at the loss: a loss that is no number makes one of them.
            model.backward(loss * (math.nan if last and not math.isfinite(total) else self.ranks))
        model.step()
        norm, skipped = float(model.get_global_grad_norm()), model.optimizer.overflow
        if skipped == (math.isfinite(total) and math.isfinite(norm)):
            raise LongShortError(
                f"DeepSpeed {deepspeed.__version__} {'skipped' if skipped else 'took'} a step with loss {float(total)} and gradient norm "
                f"{norm}; the weights are not to be trusted: resume from the last checkpoint with DeepSpeed 0.19.8"
            )
        return float(total), norm

    def merge(self, tally: Tally) -> None:
        tallies: list[Any] = [None] * self.ranks
        dist.all_gather_object(tallies, tally)
        for other in tallies[: self.rank] + tallies[self.rank + 1 :]:
            tally.merge(other)


def empty_batch(role: str, device: torch.device) -> Batch:
    """Two ids of which none is learned from: its forward and backward pass only keep step with another rank's."""
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

    def forward(self, batch: Batch, temperature: float, with_entropy: bool = False, most_tokens: int = 0):
        # Without autocast's cache, which would hold every weight that ZeRO-3 lets go.
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
            return token_statistics(self.model, batch, temperature, with_entropy=with_entropy, most_tokens=most_tokens)


class DeepSpeedLearner(TorchLearner):
    """One rank of a learner; call `join` first. The saved state is TorchLearner's and says nothing of ranks: any number may resume it.

    Every rank loads the whole model into host memory before ZeRO takes its part of it.
    """

    def __init__(
        self, role: str, model_folder: str | Path, config: LongShortConfig, total_updates: int, reference_folder=None
    ):
        device = device_of(config)
        super().__init__(role, model_folder, config, total_updates, reference_folder, device=torch.device("cpu"))
        self.device = device
        settings = deepspeed_settings(config)
        wrapped = Statistics(self.model, device, config.dtype)
        self.policy, *_ = deepspeed.initialize(model=wrapped, optimizer=self.optimizer, config=settings)
        if config.learner.zero_stage < 3:
            self._lay_out_state()
        self.process = Rank(self.model.config.get_text_config().hidden_size, device)
        if self.reference:
            self.reference = Statistics(self.reference, device, config.dtype)
            if config.learner.zero_stage == 3:
                self.reference, *_ = deepspeed.initialize(model=self.reference, config=settings)
            else:
                self.reference.to(device)
        check_packing(self)  # now on the device

    def _lay_out_state(self) -> None:
        """AdamW's state as its first step would make it; DeepSpeed looks for all of it after the first group's step and not again."""
        for group in self.optimizer.param_groups:
            for part in group["params"]:
                step = torch.zeros((), dtype=torch.float32, device=part.device)
                moments = {"exp_avg": torch.zeros_like(part), "exp_avg_sq": torch.zeros_like(part)}
                self.optimizer.state[part] = {"step": step} | moments

    def _arithmetic(self):
        return contextlib.nullcontext()  # Statistics has its own

    def stream(self) -> Generator[tuple[str, torch.Tensor]]:
        """As TorchLearner's, on every rank: ZeRO-3 gathers each weight when it is its turn."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                yield name, tensor.detach()

    def _full_state(self) -> dict[str, torch.Tensor]:
        """On rank 0 every weight in host memory by its checkpoint name, float32; nothing on the others."""
        found: dict[int, torch.Tensor] = {}  # a tied weight is gathered once
        names = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            names[name] = id(tensor)
            if id(tensor) not in found:
                with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                    found[id(tensor)] = tensor.detach().to("cpu", copy=True) if self.process.writes else torch.empty(0)
        return {name: found[number] for name, number in names.items()} if self.process.writes else {}

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """As TorchLearner's, on rank 0; nothing on the others."""
        step = next((state["step"] for state in self.optimizer.state.values()), torch.zeros(()))
        if not step:
            return {}
        tensors = {}
        for name, parameter in self._parameters().items():
            for key in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, key)
                if self.process.writes:
                    tensors |= {f"{key}/{name}": whole.to("cpu", copy=True), f"step/{name}": step.to("cpu", copy=True)}
        return tensors

    def _set_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Into a learner that has made no step yet."""
        if not states:
            return
        # DeepSpeed lays out its parts of the state in the first step: make one on nothing, at learning rate 0, which changes no weight.
        set_learning_rate(self.optimizer, 0.0)
        nothing = [empty_batch(self.role, self.device)]
        self.process.descend(self.policy, self.optimizer, nothing, lambda batch: self.policy(batch, 1.0)[0].sum(), 1.0)
        for name, parameter in self._parameters().items():
            for key in ("exp_avg", "exp_avg_sq"):
                self._set_moment(parameter, states[name][key].to(self.device), key)
        for state in self.optimizer.state.values():
            state["step"].copy_(next(iter(states.values()))["step"])

    def _set_moment(self, parameter: torch.nn.Parameter, value: torch.Tensor, key: str) -> None:
        if self.config.learner.zero_stage < 3:
            return safe_set_full_optimizer_state(parameter, value, key)
        # ZeRO-3 cuts each weight into equal parts, the last one filled up: DeepSpeed's function for the whole fails there.
        size = parameter.ds_tensor.numel()
        filled = torch.nn.functional.pad(value.flatten(), (0, size * self.process.ranks - value.numel()))
        return safe_set_local_optimizer_state(parameter, filled[size * self.process.rank :][:size], key)


def deepspeed_settings(config: LongShortConfig) -> dict[str, Any]:
    """DeepSpeed's configuration; the optimizer is ours (learning/optim.py), so that it is the same with and without DeepSpeed."""
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
