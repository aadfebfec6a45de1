"""The sections of a recipe under `long:` and `short:`: the model, its engine, its fine-tuning, its adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from longshort.recipe.paths import PathText, expands
from longshort.recipe.sections import EngineConfig, Section, Share


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning (peft); merged into the base when they are saved as a model."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"
    """Linear layers: the ends of their names ([q_proj, v_proj]), or a regular expression for whole names."""


class RoleLora(LoraSection):
    """The adapter that RL trains."""

    adapter: PathText = ""
    """A peft adapter to start from (same model, r, alpha, target_modules), e.g. from `sft.lora`; empty: a new one."""

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, dropout: float) -> float:
        if dropout:
            raise ValueError(
                "RL has no dropout: the learner's log-probs must be those of the engine, which drops nothing; "
                "remove it (not from sft.lora)"
            )
        return dropout


class SftConfig(Section):
    """Supervised fine-tuning of one role, by TRL's SFTTrainer; names are TRL's."""

    num_train_epochs: PositiveFloat = 3.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimizer steps; -1: as many as `num_train_epochs` takes."""
    learning_rate: PositiveFloat = 1e-5
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Share = 0.1
    batch_size: PositiveInt = 8
    """Rows per optimizer step (packed rows with `packing`)."""
    micro_batch_size: PositiveInt = 1
    """Rows per forward pass; must divide `batch_size`. With `packing` and SDPA, memory grows with its square."""
    max_length: PositiveInt = 8192
    """Longer dialogues are dropped and counted; packed rows are as long as this."""
    packing: bool = True
    gradient_checkpointing: bool = False
    save_steps: NonNegativeInt = 100
    """A checkpoint to continue from every N optimizer steps; 0: none, an interrupted training starts over."""
    lora: LoraSection | None = None
    deepspeed: Annotated[str | dict[str, Any] | None, expands] = None
    """A DeepSpeed configuration (ZeRO up to stage 2), or its path; passed to the trainer unchanged."""

    @model_validator(mode="after")
    def _whole_batches(self) -> SftConfig:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self


class RoleConfig(Section):
    """One of the two policies."""

    model: PathText = ""
    """Local folder or hub name."""
    price: PositiveFloat = 1.0
    """Cost of one sampled token, e.g. the ratio of parameter counts. Enters the reward's length term and every cost."""
    turn_tokens: PositiveInt = 1024
    learning_rate: PositiveFloat | None = None
    """Overrides the top-level `learning_rate` for this role."""
    instructions: str | None = None
    """Overrides the protocol's instructions for this role; an empty string sends the problem alone."""
    engine: EngineConfig = EngineConfig()
    sft: SftConfig = SftConfig()
    lora: RoleLora | None = None
    """RL trains this adapter over the frozen model; None: all weights. (`sft.lora` is the one that `sft` trains.)"""
