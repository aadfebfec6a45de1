"""The recipe's section `miniature:` and the sizes of its models."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from longshort.recipe.sections import Section


class ModelShape(Section):
    """Size of one of the miniature's Qwen2-architecture models, and how long its base training is."""

    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt = 2
    intermediate_size: PositiveInt
    terse_steps: NonNegativeInt = 0
    """Steps on terse solutions at the start of base training (long model)."""
    base_steps: PositiveInt
    base_learning_rate: PositiveFloat

    @model_validator(mode="after")
    def _divisible(self) -> ModelShape:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads}), "
                f"and that a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        return self


class LongShape(ModelShape):
    """The long model: 0.64M parameters."""

    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 3
    num_kv_heads: PositiveInt = 4
    intermediate_size: PositiveInt = 320
    terse_steps: NonNegativeInt = 480
    base_steps: PositiveInt = 450
    base_learning_rate: PositiveFloat = 3e-3


class ShortShape(ModelShape):
    """The short model: 0.16M parameters."""

    hidden_size: PositiveInt = 64
    num_layers: PositiveInt = 3
    num_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 128
    base_steps: PositiveInt = 1500
    base_learning_rate: PositiveFloat = 4e-3


class MiniatureConfig(Section):
    """The built-in world: generated problems, teacher, tokenizers and tiny models. Setting it enables its stages."""

    num_train: PositiveInt = 20000
    batch_size: PositiveInt = 32
    long: LongShape = LongShape()
    short: ShortShape = ShortShape()
