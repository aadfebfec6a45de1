"""The sections of a recipe that stand under `long:` and `short:`: the model, its engine, its fine-tuning, its adapter.

As in longshort/recipe/sections.py, every default stands here and nowhere else.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from longshort.recipe.sections import Count, EngineConfig, Natural, Rate, Section, Share


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning (peft); merged into the base when they are saved as a model."""

    r: Count = 16
    alpha: Rate = 32.0
    dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"
    """Linear layers by their name or the end of it ([q_proj, v_proj]), or a regular expression for whole names."""


class RoleLora(LoraSection):
    """The adapter that RL trains."""

    adapter: str = ""
    """A peft adapter to start from, of the same model, r, alpha and target_modules, e.g. what `sft.lora` trained; empty: a new one."""

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, dropout: float) -> float:
        if dropout:
            raise ValueError(
                "RL has no dropout: the learner's log-probs must be those of the engine, which drops nothing; remove it (not from sft.lora)"
            )
        return dropout


class SftConfig(Section):
    """Supervised fine-tuning of one role, by TRL's SFTTrainer; names are TRL's."""

    num_train_epochs: Rate = 3.0
    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps; -1: what `num_train_epochs` makes."""
    learning_rate: Rate = 1e-5
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Share = 0.1
    batch_size: Count = 8
    """Rows per optimizer step (packed rows with `packing`)."""
    micro_batch_size: Count = 1
    """Rows per forward pass; must divide `batch_size`. With `packing` they are laid end to end: memory grows with its square on SDPA."""
    max_length: Count = 8192
    """Longer dialogues are dropped and counted; packed rows are as long as this."""
    packing: bool = True
    gradient_checkpointing: bool = False
    save_steps: Natural = 100
    """A checkpoint to continue from every so many optimizer steps; 0: none, an interrupted training starts over."""
    lora: LoraSection | None = None
    deepspeed: str | dict[str, Any] | None = None
    """A DeepSpeed configuration (ZeRO up to stage 2), or the path of one; passed to the trainer unchanged."""

    @model_validator(mode="after")
    def _whole_batches(self) -> SftConfig:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        return self


class RoleConfig(Section):
    """One of the two policies."""

    model: str = ""
    """Local folder or hub name."""
    price: Rate = 1.0
    """Cost of one sampled token, e.g. the ratio of parameter counts. Enters the reward's length term and every cost figure."""
    turn_tokens: Count = 1024
    learning_rate: Rate | None = None
    """Overrides the top-level `learning_rate` for this role."""
    instructions: str | None = None
    """Overrides the protocol's instructions for this role; an empty string sends the problem alone."""
    engine: EngineConfig = EngineConfig()
    sft: SftConfig = SftConfig()
    lora: RoleLora | None = None
    """RL trains an adapter over the frozen model; None: all weights. (What `sft` trains, `sft.lora` says.)"""
