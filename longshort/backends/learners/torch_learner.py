"""A policy's learner in plain torch: model, optimizer, schedule and reference on one device.

Parameters and optimizer state are always float32. `dtype: bfloat16` is the type of the arithmetic (autocast), because a
bfloat16 parameter has 8 bits of mantissa and would round most updates away. Dropout is off: the learner's log-probs
must be those of the sampler.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longshort.backends.learners.attention import row_budget
from longshort.backends.learners.learner_checks import all_sampled, check_packing
from longshort.backends.learners.learner_model import Parts, load_parts, trained
from longshort.learning import losses
from longshort.learning.optim import learning_rate_factor, set_learning_rate
from longshort.learning.packing import pack
from longshort.learning.step import StepSettings, UpdateMetrics, policy_gradient_step
from longshort.recipe.schema import LongShortConfig
from longshort.runs.episodes import DECIMALS
from longshort.types import Batch, LongShortError, Sample

OPTIMIZER_FILE, PROGRESS_FILE = "optimizer.safetensors", "learner.json"


class TorchLearner:
    """Trains one role's policy: `update` learns, `weights` publishes, `score` proves the arrival.

    `save` and `load` resume it bit by bit. `from_pretrained` makes one.
    """

    load_parts = staticmethod(load_parts)

    def __init__(self, config: LongShortConfig, total_updates: int, parts: Parts):
        self.config, self.total_updates = config, total_updates
        self.role, self.attention, self.device, self.shapes = parts.role, parts.attention, parts.device, parts.shapes
        self.model, self.policy, self.reference = parts.model, parts.policy, parts.reference
        self.tokenizer, self.optimizer, self.process = parts.tokenizer, parts.optimizer, parts.process
        self.settings = replace(step_settings(config, parts.role), row_tokens=row_budget(config, parts.attention))
        self.updates = self.consecutive_skips = 0
        self._gaps: list[torch.Tensor | None] = []
        check_packing(self)

    @classmethod
    def from_pretrained(
        cls,
        role: str,
        model_folder: str | Path,
        config: LongShortConfig,
        total_updates: int,
        reference_folder: str | Path | None = None,
    ) -> Self:
        """Load the weights to continue from; `loss.beta` pulls towards `reference_folder` (default: the same)."""
        losses.check(config.loss)
        return cls(config, total_updates, cls.load_parts(role, config, model_folder, reference_folder or model_folder))

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Train on one step's samples of this role; return the metrics of `policy_gradient_step`.

        The learning rate follows the number of updates, whether or not they learned something.
        Raises LongShortError after `max_skipped_steps` updates in a row whose loss or gradient was not finite.
        """
        self._begin(samples)
        metrics = UpdateMetrics()
        report = policy_gradient_step(
            self.policy, self.reference, self.optimizer, samples, self.settings, metrics, self.process
        )
        learned = {} if report["skipped"] else metrics.old_logprobs
        for number, sample in enumerate(samples):
            engine_logprobs = torch.tensor(list(compress(sample.logprobs, sample.mask)), dtype=torch.float32)
            self._gaps.append(learned[number] - engine_logprobs if number in learned else None)
        return self._end(report)

    def gaps(self) -> list[list[float] | None]:
        """Return, per sample of the last `update`, the learner's log-prob minus the engine's of each sampled token.

        In nats to four decimals, temperature inside, the learner's from before the update. None for a sample that was
        not trained on: advantage 0 (unless the KL acts on it), or a skipped update, whose numbers may not be finite.
        Empty before the first `update`.
        """
        return [None if gap is None else [round(value, DECIMALS) for value in gap.tolist()] for gap in self._gaps]

    def _begin(self, samples: Sequence[Sample]) -> None:
        """Check the samples' role and set the learning rate."""
        self._gaps = []
        if foreign := {sample.role for sample in samples} - {self.role}:
            raise ValueError(f"the learner of {self.role!r} got samples of {sorted(foreign)}")
        kind, warmup_ratio = self.config.lr_scheduler_type, self.config.warmup_ratio
        factor = learning_rate_factor(self.updates, self.total_updates, kind=kind, warmup_ratio=warmup_ratio)
        set_learning_rate(self.optimizer, self.config.learning_rate_of(self.role) * factor)

    def _end(self, report: dict[str, float]) -> dict[str, float]:
        """Count the update; raise LongShortError when too many in a row were not finite."""
        self.updates += 1
        if report["skipped"]:
            self.consecutive_skips += 1
        elif report["optimizer_steps"]:
            self.consecutive_skips = 0
        if self.consecutive_skips >= self.config.max_skipped_steps:
            raise LongShortError(
                f"{self.role}: {self.consecutive_skips} updates in a row were not finite (last: loss {report['loss']}, "
                f"gradient norm {report['grad_norm']}; max_skipped_steps is {self.config.max_skipped_steps}); lower "
                f"learning_rate ({self.config.learning_rate_of(self.role):g}) or resume from the last checkpoint"
            )
        return report

    def weights(self) -> Any:
        """Copy all weights to the CPU in `dtype`, by their checkpoint names, `lm_head.weight` even if tied."""
        dtype = getattr(torch, self.config.dtype)
        weights = self._full_state()
        return {name: w.detach().to("cpu", dtype, copy=True).contiguous() for name, w in weights.items()}

    def stream(self) -> Generator[tuple[str, torch.Tensor]]:
        """Yield every weight by its checkpoint name, whole and not copied; each is valid until the next one."""
        yield from self.model.state_dict().items()

    def free_cache(self) -> None:
        """Give back the GPU memory that only an update needs; weights and optimizer stay."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> torch.Tensor:
        """Return the log-probs of a batch's sampled tokens, float32 [N]."""
        return self.process.statistics(self.policy, batch, temperature)[0]

    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float) -> list[float]:
        """Return the log-prob of each of `token_ids` after `prompt_ids`: the canary of a weight sync."""
        sample = all_sampled(self.role, [*prompt_ids, *token_ids])
        mask = (0,) * len(prompt_ids) + (1,) * len(token_ids)
        (batch,) = pack([replace(sample, mask=mask)], [0.0], 0, len(mask), self.device)
        return self.logprobs(batch, temperature).tolist()

    def save(self, model_folder: str | Path, state_folder: str | Path) -> None:
        """Write model and tokenizer (for `from_pretrained`), and everything else that the next update depends on."""
        weights, tensors = self._full_state(), {"rng/cpu": torch.get_rng_state()} | self._optimizer_tensors()
        if not self.process.writes_files:
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
        """Continue from `save`'s state folder; the model is the one that this learner was made from.

        Raises LongShortError if the state is missing, damaged, of the other role or of a model of another shape.
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
        self._set_optimizer_state(self._optimizer_state_in(tensors, state_folder))
        self.updates, self.consecutive_skips = progress["updates"], progress["consecutive_skips"]
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"])

    def _optimizer_state_in(
        self, tensors: Mapping[str, torch.Tensor], source: Path
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Return the saved optimizer state by parameter and key; refuse that of another model."""
        states: dict[str, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            key, _, name = path.partition("/")
            if key == "rng":
                continue
            expected = self.shapes.get(name)
            if expected is None or (tensor.ndim and tensor.shape != expected):
                raise LongShortError(
                    f"learner state {source} belongs to another model: {name} is {tuple(tensor.shape)} there, here: "
                    f"{expected or 'no such parameter'}; resume with the model that it was saved with"
                )
            states.setdefault(name, {})[key] = tensor
        if states and (missing := self.shapes.keys() - states.keys()):
            raise LongShortError(
                f"learner state {source} belongs to another model: it has nothing for {len(missing)} of "
                f"{len(self.shapes)} parameters ({', '.join(sorted(missing)[:3])}); resume with the model that it was "
                "saved with"
            )
        return states

    def _full_state(self) -> dict[str, torch.Tensor]:
        """Return every weight by its checkpoint name, not copied."""
        return dict(self.stream())

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """Return AdamW's state as `<key>/<parameter>`; empty before the first optimizer step."""
        states = ((name, self.optimizer.state[parameter]) for name, parameter in trained(self.model).items())
        return {f"{key}/{name}": value.contiguous() for name, state in states for key, value in state.items()}

    def _set_optimizer_state(self, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Replace AdamW's state."""
        self.optimizer.state.clear()
        parameters = trained(self.model)
        for name, state in states.items():
            self.optimizer.state[parameters[name]] = {key: value.to(self.device) for key, value in state.items()}


def step_settings(config: LongShortConfig, role: str) -> StepSettings:
    """Return what an update needs of the recipe; `deterministic` keeps the engine's log-probs out of the loss."""
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
