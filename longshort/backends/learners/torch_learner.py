"""A policy's learner in plain torch: model, optimizer, schedule and reference on one device.

Parameters and optimizer state are float32 whatever `dtype` says: `bfloat16` is the type of the arithmetic (autocast), because a bfloat16
parameter has 8 bits of mantissa and would round most updates away. Dropout is off: the learner's log-probs must be those of the sampler.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from longshort.backends.learners.attention import NAMES, choose_attention, enter_attention, row_budget
from longshort.backends.learners.learner_checks import check_head, check_packing
from longshort.backends.learners.learner_model import device_of, load_model, recompute_layers
from longshort.learning import losses
from longshort.learning.optim import build_optimizer, learning_rate_factor, set_learning_rate
from longshort.learning.packing import pack
from longshort.learning.step import Alone, StepSettings, Tally, policy_gradient_step
from longshort.learning.supervised import nll_step
from longshort.recipe.schema import LongShortConfig
from longshort.runs.episodes import DECIMALS
from longshort.types import LongShortError, Sample

OPTIMIZER_FILE, PROGRESS_FILE = "optimizer.safetensors", "learner.json"


class TorchLearner:
    """Trains one role's policy: `update` (RL) or `supervise` (SFT), publish `weights`, prove with `score` that they arrived; `save` and
    `load` resume bit by bit.

    `model_folder` holds the weights to continue from, `reference_folder` (default: the same) those that `loss.beta` pulls towards.
    """

    def __init__(
        self,
        role: str,
        model_folder: str | Path,
        config: LongShortConfig,
        total_updates: int,
        reference_folder: str | Path | None = None,
        device: torch.device | None = None,
    ):
        losses.check(config.loss)
        self.role, self.config, self.total_updates = role, config, total_updates
        self.device = device or device_of(config)
        self.updates = self.consecutive_skips = 0
        self._gaps: list[torch.Tensor | None] = []
        self.attention, self.attention_reason = choose_attention(config)
        enter_attention(self.attention)
        self.model = self._policy_model(model_folder).to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.reference = self._reference_model(reference_folder or model_folder) if config.loss.beta else None
        self.peak_learning_rate = config.learning_rate_of(role)
        self.optimizer = build_optimizer(
            self.model, learning_rate=self.peak_learning_rate, weight_decay=config.weight_decay
        )
        self.row_tokens = row_budget(config, self.attention)
        self.settings = replace(step_settings(config, role), row_tokens=self.row_tokens)
        self.policy, self.process = self.model, Alone()
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters().items()}
        if config.learner.gradient_checkpointing:
            recompute_layers(self.model)
        check_head(self)
        check_packing(self)

    def _load(self, folder: str | Path):
        return load_model(folder, NAMES[self.attention])

    def _policy_model(self, folder: str | Path):
        return self._load(folder)

    def _reference_model(self, folder: str | Path):
        return self._load(folder).to(self.device).requires_grad_(False)

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Train on one step's samples of this role; returns the metrics of `policy_gradient_step`.

        The learning rate follows the number of updates, whether or not they found something to learn.
        Raises LongShortError after `max_skipped_steps` updates in a row whose loss or gradient was not finite.
        """
        self._begin(samples)
        tally = Tally()
        with self._arithmetic():
            report = policy_gradient_step(
                self.policy, self.reference, self.optimizer, samples, self.settings, tally, self.process
            )
        learned = {} if report["skipped"] else tally.old_logprobs
        told = [torch.tensor(list(compress(sample.logprobs, sample.mask)), dtype=torch.float32) for sample in samples]
        self._gaps = [learned[i] - logprobs if i in learned else None for i, logprobs in enumerate(told)]
        return self._end(report)

    def gaps(self) -> list[list[float] | None]:
        """The learner's log-prob minus the engine's of each sampled token, nats to four decimals: one list per sample of the last `update`.

        Both with the temperature inside, and the learner's from before the update. None for a sample that was not trained on: advantage 0
        (unless the KL acts on it), or an update that was skipped because its loss or gradient was not finite, for then these numbers may
        not be finite either. No samples, so no lists, before the first `update` and after `supervise`.
        """
        return [None if gap is None else [round(value, DECIMALS) for value in gap.tolist()] for gap in self._gaps]

    def supervise(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step on the mean NLL of the samples' masked tokens (learning/supervised.py); schedule and refusals as `update`."""
        self._begin(samples)
        config = self.config
        with self._arithmetic():
            loss, norm = nll_step(
                self.policy,
                self.optimizer,
                samples,
                max_grad_norm=config.max_grad_norm,
                row_tokens=self.row_tokens,
                batch_tokens=config.batch_tokens,
                process=self.process,
            )
        finite = float(math.isfinite(loss) and math.isfinite(norm))
        rate = self.optimizer.param_groups[0]["lr"]
        return self._end(
            {"loss": loss, "grad_norm": norm, "learning_rate": rate, "optimizer_steps": finite, "skipped": 1 - finite}
        )

    def _begin(self, samples: Sequence[Sample]) -> None:
        self._gaps = []
        foreign = {sample.role for sample in samples} - {self.role}
        if foreign:
            raise ValueError(f"the learner of {self.role!r} got samples of {sorted(foreign)}")
        factor = learning_rate_factor(
            self.updates, self.total_updates, kind=self.config.lr_scheduler_type, warmup_ratio=self.config.warmup_ratio
        )
        set_learning_rate(self.optimizer, self.peak_learning_rate * factor)

    def _end(self, report: dict[str, float]) -> dict[str, float]:
        """Count the update; too many in a row that were not finite are an error."""
        self.updates += 1
        if report["skipped"]:
            self.consecutive_skips += 1
        elif report["optimizer_steps"]:
            self.consecutive_skips = 0
        if self.consecutive_skips >= self.config.max_skipped_steps:
            raise LongShortError(
                f"{self.role}: {self.consecutive_skips} updates in a row were not finite (last: loss {report['loss']}, gradient norm "
                f"{report['grad_norm']}; max_skipped_steps is {self.config.max_skipped_steps}); lower learning_rate "
                f"({self.peak_learning_rate:g}) or resume from the last checkpoint"
            )
        return report

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of all weights on the CPU in `dtype`, by their checkpoint names; `lm_head.weight` is there even when it is tied."""
        dtype = getattr(torch, self.config.dtype)
        return {
            name: tensor.detach().to("cpu", dtype, copy=True).contiguous()
            for name, tensor in self._full_state().items()
        }

    def stream(self) -> Generator[tuple[str, torch.Tensor]]:
        """Every weight by its checkpoint name, whole and not copied, one after the other; each is there only until the next is taken."""
        yield from self.model.state_dict().items()

    def free_cache(self) -> None:
        """Give back the GPU memory that the last update needed and the next one will need again; weights and optimizer stay."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float) -> list[float]:
        """Log-prob of each of `token_ids` after `prompt_ids`, with the temperature inside: the canary of a weight sync."""
        zeros = (0.0,) * (len(prompt_ids) + len(token_ids))
        mask = (0,) * len(prompt_ids) + (1,) * len(token_ids)
        sample = Sample(
            role=self.role, token_ids=(*prompt_ids, *token_ids), mask=mask, logprobs=zeros, advantages=zeros
        )
        (batch,) = pack([sample], [0.0], 0, len(zeros), self.device)
        with self._arithmetic():
            return self.process.statistics(self.policy, batch, temperature)[0].tolist()

    def save(self, model_folder: str | Path, state_folder: str | Path) -> None:
        """Write the model and tokenizer (loadable with `from_pretrained`) and everything else that the next update depends on."""
        weights, tensors = self._full_state(), {"rng/cpu": torch.get_rng_state()} | self._optimizer_tensors()
        if not self.process.writes:
            return
        self.model.save_pretrained(model_folder, state_dict=weights)
        self.tokenizer.save_pretrained(model_folder)
        state_folder = Path(state_folder)
        state_folder.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        save_file(tensors, state_folder / OPTIMIZER_FILE)
        progress = {"role": self.role, "updates": self.updates, "consecutive_skips": self.consecutive_skips}
        (state_folder / PROGRESS_FILE).write_text(json.dumps(progress) + "\n", encoding="utf-8")

    def load(self, state_folder: str | Path) -> None:
        """Continue from `save`'s state folder; the model comes from the model folder given at construction.

        Raises LongShortError when the state is missing, damaged, of the other role or of a model of another shape.
        """
        state_folder = Path(state_folder)
        try:
            progress = json.loads((state_folder / PROGRESS_FILE).read_text(encoding="utf-8"))
            tensors = load_file(state_folder / OPTIMIZER_FILE)
        except (OSError, ValueError, SafetensorError) as error:
            raise LongShortError(
                f"learner state {state_folder} cannot be read ({error}); resume from another checkpoint"
            ) from error
        if progress["role"] != self.role:
            raise LongShortError(f"learner state {state_folder} is of role {progress['role']!r}, not {self.role!r}")
        self._restore_optimizer(tensors, state_folder)
        self.updates, self.consecutive_skips = progress["updates"], progress["consecutive_skips"]
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"])

    def _restore_optimizer(self, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
        shapes = self.shapes
        states: dict[str, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            key, _, name = path.partition("/")
            if key == "rng":
                continue
            if name not in shapes or (tensor.ndim and tensor.shape != shapes[name]):
                expected = shapes.get(name, "no such parameter")
                raise LongShortError(
                    f"learner state {source} belongs to another model: {name} is {tuple(tensor.shape)} there, here: {expected}; "
                    "resume with the model that it was saved with"
                )
            states.setdefault(name, {})[key] = tensor
        if states and (missing := shapes.keys() - states.keys()):
            raise LongShortError(
                f"learner state {source} belongs to another model: it has nothing for {len(missing)} of {len(shapes)} parameters "
                f"({', '.join(sorted(missing)[:3])}); resume with the model that it was saved with"
            )
        self._set_optimizer_state(states)

    def _full_state(self) -> dict[str, torch.Tensor]:
        """Every weight by its checkpoint name, not copied."""
        return dict(self.stream())

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """AdamW's state as `<key>/<parameter>`; empty before the first optimizer step."""
        states = ((name, self.optimizer.state[parameter]) for name, parameter in self._parameters().items())
        return {f"{key}/{name}": value.contiguous() for name, state in states for key, value in state.items()}

    def _set_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.optimizer.state.clear()
        parameters = self._parameters()
        for name, state in states.items():
            self.optimizer.state[parameters[name]] = {key: value.to(self.device) for key, value in state.items()}

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.dtype == "bfloat16")


def step_settings(config: LongShortConfig, role: str) -> StepSettings:
    """What `policy_gradient_step` needs of the recipe; `deterministic` keeps the engine's log-probs out of the loss."""
    loss = config.loss.model_copy(update={"importance_correction": "none"}) if config.deterministic else config.loss
    longest = min(config.protocol.episode_tokens, config.protocol.max_exchanges * config.role(role).turn_tokens)
    return StepSettings(
        loss=loss,
        temperature=config.temperature,
        max_completion_tokens=longest,
        max_grad_norm=config.max_grad_norm,
        num_iterations=config.num_iterations,
        row_tokens=config.row_tokens,
        batch_tokens=config.batch_tokens,
    )
