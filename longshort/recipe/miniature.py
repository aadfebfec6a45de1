"""The `miniature:` section of a recipe, and the shapes of its models. Every default stands here and nowhere else."""

from __future__ import annotations

from pydantic import model_validator

from longshort.recipe.sections import Count, Natural, Rate, Section


class ModelShape(Section):
    """Size of one of the miniature's Qwen2-architecture models, and how long its base training is."""

    hidden_size: Count
    num_layers: Count
    num_heads: Count = 4
    num_kv_heads: Count = 2
    intermediate_size: Count
    terse_steps: Natural = 0
    """Base training begins with so many steps on terse solutions (long model)."""
    base_steps: Count
    base_learning_rate: Rate

    @model_validator(mode="after")
    def _divisible(self) -> ModelShape:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            sizes = f"num_heads ({self.num_heads}), and that a multiple of num_kv_heads ({self.num_kv_heads})"
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of {sizes}")
        return self


class LongShape(ModelShape):
    """The long model: 0.64M parameters."""

    hidden_size: Count = 128
    num_layers: Count = 3
    num_kv_heads: Count = 4
    intermediate_size: Count = 320
    terse_steps: Natural = 480
    base_steps: Count = 450
    base_learning_rate: Rate = 3e-3


class ShortShape(ModelShape):
    """The short model: 0.16M parameters."""

    hidden_size: Count = 64
    num_layers: Count = 3
    num_heads: Count = 2
    num_kv_heads: Count = 2
    intermediate_size: Count = 128
    base_steps: Count = 1500
    base_learning_rate: Rate = 4e-3


class MiniatureConfig(Section):
    """The embedded world: problems, teacher, tokenizers and tiny models made from nothing. Setting this section enables its stages."""

    num_train: Count = 20000
    batch_size: Count = 32
    long: LongShape = LongShape()
    short: ShortShape = ShortShape()
