"""The recipe: one strict schema for YAML files, command-line overrides and the trainer class.

Names follow TRL where TRL has one. What may differ per role stands under `long:` and `short:`. Every default stands here and nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from longshort.strict_yaml import explain, override, read_yaml
from longshort.types import LONG, ROLES, SHORT, LongShortError

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Plugin = TypeVar("Plugin")


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`max_steps: yes` is a mistake, though Python would count it as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true/false stands where another kind of value is expected")
        return value


class EngineConfig(Section):
    """Where and how a policy's turns are sampled."""

    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` takes vLLM where it is installed, else transformers, and says which."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int = Field(2048, ge=16)
    """Context in tokens: prompt and completion of one role's whole dialogue."""
    max_num_seqs: Count = 128
    """Episodes that this engine decodes at once."""
    kv_cache_gib: Rate = 0.5
    block_size: Count = 32
    """vLLM's CPU default of 128 loses prefix-cache hits on short turns."""
    num_gpus: Amount = 0.0
    extra: dict[str, Any] = {}
    """Passed to vLLM's EngineArgs unchanged."""


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


class ProtocolConfig(Section):
    name: str = "long_short"
    max_exchanges: Count = 4
    episode_tokens: Count = 4096
    tags: Literal["text", "special"] = "text"
    final_notice: str | None = None


class LengthConfig(Section):
    """The length term of the reward; see longshort/team/rewards.py for each kind's formula."""

    kind: Literal["kimi", "laser", "shortest_bonus", "target", "none"] = "kimi"
    target: Rate = 1024.0
    """Price-weighted tokens; used by `laser` and `target`."""


class RewardConfig(Section):
    """r = correct_weight * correct + format_weight * format + mu(t) * length; mu ramps from 0 to `length_weight`."""

    correct_weight: float = 1.0
    format_weight: float = 0.5
    length_weight: float = 0.5
    ramp_start: Share = 0.2
    """Share of the run after which mu leaves 0."""
    ramp_end: Share = 0.4
    """Share of the run at which mu reaches `length_weight`."""
    length: LengthConfig = LengthConfig()

    @model_validator(mode="after")
    def _ordered(self) -> RewardConfig:
        if self.ramp_end < self.ramp_start:
            raise ValueError(f"ramp_end ({self.ramp_end}) must not come before ramp_start ({self.ramp_start})")
        return self


class LossConfig(Section):
    name: str = "dapo"
    """A key of longshort/learning/losses.py's table."""
    epsilon: Rate = 0.2
    epsilon_high: Rate = 0.28
    importance_correction: Literal["token_truncate", "sequence_mask", "none"] = "token_truncate"
    importance_cap: Rate = 2.0
    beta: Amount = 0.0
    """Weight of the KL to the frozen starting model; 0 keeps no reference in memory."""


class GradingConfig(Section):
    workers: Count = 1
    timeout_s: Rate = 5.0
    memory_mb: int = Field(1024, ge=128)


class EvalConfig(Section):
    dataset: str = ""
    num_problems: Count = 400
    temperature: Amount = 1.0
    num_samples: Count = 1
    greedy: bool = True
    """Also measure greedy accuracy."""


class ModelShape(Section):
    """Size of one of the miniature's Qwen2-architecture models, and how long its base training and its cold start are."""

    hidden_size: Count
    num_layers: Count
    num_heads: Count = 4
    num_kv_heads: Count = 2
    intermediate_size: Count
    terse_steps: Natural = 0
    """Base training begins with so many steps on terse solutions (long model)."""
    base_steps: Count
    base_learning_rate: Rate
    cold_start_steps: Count
    cold_start_learning_rate: Rate

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
    cold_start_steps: Count = 100
    cold_start_learning_rate: Rate = 2e-3


class ShortShape(ModelShape):
    """The short model: 0.16M parameters."""

    hidden_size: Count = 64
    num_layers: Count = 3
    num_heads: Count = 2
    num_kv_heads: Count = 2
    intermediate_size: Count = 128
    base_steps: Count = 1500
    base_learning_rate: Rate = 4e-3
    cold_start_steps: Count = 300
    cold_start_learning_rate: Rate = 2e-3


class MiniatureConfig(Section):
    """The embedded world: problems, teacher, tokenizers and tiny models made from nothing. Setting this section enables its stages."""

    num_train: Count = 20000
    batch_size: Count = 32
    cold_start_episodes: Count = 2000
    redundancy: Share = 0.45
    """Share of the optional thoughts that the cold-start dialogues keep."""
    long: LongShape = LongShape()
    short: ShortShape = ShortShape()


class LongShortConfig(Section):
    """Everything a run needs. `LongShortConfig(output_dir="runs/x", long={"model": "…"}, max_steps=100)` or `load("recipes/x.yaml")`."""

    output_dir: str = "runs/longshort"
    seed: int = 0
    deterministic: bool = False
    """Bit-equal repetition and resumption: the loss uses log-probs recomputed by the learner, never the engine's."""
    stages: list[str] | None = None
    """What `longshort run` does, in order; None: all stages that the recipe configures."""

    long: RoleConfig = RoleConfig()
    short: RoleConfig = RoleConfig()
    protocol: ProtocolConfig = ProtocolConfig()

    dataset: str = ""
    """A file, hub name or generator, and which columns are known: see longshort/data.py."""
    max_steps: Count = 100
    num_problems: Count = 32
    """Problems per step; each is tried `num_generations` times."""
    num_generations: int = Field(8, ge=2)
    temperature: Rate = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Natural = 0
    schedule: Literal["joint"] | list[Literal["long", "short"]] = "joint"
    """`joint` updates both roles every step; a list is the paper's alternation: rounds of equal length over max_steps."""

    reward: RewardConfig = RewardConfig()
    advantage: str = "team"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss: LossConfig = LossConfig()
    learning_rate: Rate = 1e-6
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.1
    weight_decay: Amount = 0.0
    max_grad_norm: Rate = 1.0
    num_iterations: Count = 1
    """Optimizer passes over each step's samples (mu of GRPO)."""
    row_tokens: Natural = 0
    """Samples are packed into rows of at most this many tokens; 0: 1.5 times the step's longest sample."""
    batch_tokens: Count = 8192
    """Rows are stacked into micro-batches of at most this many tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    learner_gpus: Amount = 0.0
    max_skipped_steps: Count = 3
    """Consecutive non-finite steps after which the run stops."""
    max_engine_restarts: Natural = 3
    engine_timeout_s: Rate = 120.0
    """An engine that gives no sign of life for so long is restarted."""

    grading: GradingConfig = GradingConfig()
    eval: EvalConfig = EvalConfig()
    eval_steps: Natural = 0
    save_steps: Natural = 50
    save_total_limit: Count = 2
    logging_steps: Count = 1
    sample_steps: Natural = 10
    """A sample dialogue is printed every so many steps; 0: never."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    miniature: MiniatureConfig | None = None

    def role(self, role: str) -> RoleConfig:
        return {LONG: self.long, SHORT: self.short}[role]

    @property
    def prices(self) -> dict[str, float]:
        return {role: self.role(role).price for role in ROLES}

    def learning_rate_of(self, role: str) -> float:
        return self.role(role).learning_rate or self.learning_rate


def load(path: str | Path, overrides: Sequence[str] = ()) -> LongShortConfig:
    """Read a recipe, apply `key.sub=value` overrides (values are YAML), check it.

    LongShortError for a missing file, bad YAML, a duplicate key, a YAML tag, an unknown key (with the nearest known one), a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise LongShortError(f"recipe {path} does not exist; recipes that come with longshort stand in recipes/")
    tree = read_yaml(path.read_bytes(), str(path)) or {}
    if not isinstance(tree, dict):
        raise LongShortError(f"{path}: a recipe is a mapping of settings (key: value), got {type(tree).__name__}")
    for text in overrides:
        override(tree, text)
    return parse(tree, source=str(path))


def parse(tree: Mapping[str, Any], source: str = "config") -> LongShortConfig:
    """Check a nested dict of settings; `source` names it in errors."""
    try:
        return LongShortConfig.model_validate(tree)
    except ValidationError as error:
        raise LongShortError(explain(error, LongShortConfig, source)) from None


def dump(config: LongShortConfig) -> str:
    """The whole recipe as YAML, defaults written out: what `runs/<name>/recipe.yaml` holds. `load` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def lookup(table: Mapping[str, Plugin], name: str, key: str) -> Plugin:
    """The plug-in that a recipe names: `lookup(LOSSES, config.loss.name, "loss.name")`; an unknown name lists the known ones."""
    if name in table:
        return table[name]
    hint = "".join(f"did you mean {near!r}? " for near in difflib.get_close_matches(name, table, n=1))
    raise LongShortError(f"{key}: {name!r} is not known; {hint}known: {', '.join(table)}")
