"""The recipe: one strict schema for YAML files, command-line overrides and the trainer class.

Names follow TRL where TRL has one. What may differ per role is under `long:` and `short:`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from longshort.recipe.coldstart import ColdStartConfig, MixtureConfig
from longshort.recipe.miniature import MiniatureConfig
from longshort.recipe.paths import PathText, expand
from longshort.recipe.plugins import import_plugins
from longshort.recipe.roles import RoleConfig
from longshort.recipe.sections import (
    EngineConfig,
    EvalConfig,
    Gpus,
    GradingConfig,
    LearnerConfig,
    LossConfig,
    Probability,
    ProtocolConfig,
    RewardConfig,
    Section,
    ServeConfig,
    Share,
)
from longshort.recipe.strict_yaml import explain, override, read_yaml
from longshort.types import LONG, ROLES, SHORT, LongShortError

Plugin = TypeVar("Plugin")


class LongShortConfig(Section):
    """Everything a run needs: `load("recipes/x.yaml")`, or `LongShortConfig(output_dir="runs/x", max_steps=100)`."""

    output_dir: PathText = "runs/longshort"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Below 2^32, as numpy and the engines demand."""
    deterministic: bool = False
    """Bit-equal repetition and resumption: the loss uses log-probs recomputed by the learner, never the engine's."""
    plugins: list[str] = []
    """Modules that every process of the run imports; they extend the tables of plug-ins (docs/extending.md)."""
    stages: list[str] | None = None
    """What `longshort run` does, in order; None: all stages that the recipe configures."""

    long: RoleConfig = RoleConfig()
    short: RoleConfig = RoleConfig()
    protocol: ProtocolConfig = ProtocolConfig()

    dataset: PathText = ""
    """A file, a hub name or a generator; longshort/problem_rows.py lists the columns that it may have."""
    max_steps: PositiveInt = 100
    num_problems: PositiveInt = 32
    """Problems per step; each is tried `num_generations` times."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    temperature: PositiveFloat = 1.0
    top_p: Probability = 1.0
    top_k: NonNegativeInt = 0
    schedule: Literal["joint"] | list[Literal["long", "short"]] = "joint"
    """`joint` updates both roles every step; a list alternates as in the paper, in rounds of equal length."""
    staleness: NonNegativeInt = 0
    """Maximum policy lag in optimizer updates. 0: on-policy, rollouts and updates alternate."""
    refill: NonNegativeInt = 0
    """Maximum number of extra problems per step, rolled out to replace those whose episodes all scored the same."""

    reward: RewardConfig = RewardConfig()
    advantage: str = "team"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss: LossConfig = LossConfig()
    learning_rate: PositiveFloat = 1e-6
    lr_scheduler_type: str = "cosine"
    warmup_ratio: Share = 0.1
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    num_iterations: PositiveInt = 1
    """Optimizer passes over each step's samples (mu of GRPO)."""
    row_tokens: NonNegativeInt = 0
    """Tokens per packed row of samples; 0: one sample a row where attention is dense, else `batch_tokens`."""
    batch_tokens: PositiveInt = 8192
    """Rows are stacked into micro-batches of at most this many tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    learner: LearnerConfig = LearnerConfig()
    share_engine: bool = False
    """One engine holds the base model of both roles and samples each role with its own adapter."""
    learner_gpus: Gpus = 0.0
    """GPUs of each rank of a learner; 0: it runs on the CPU."""
    weight_sync: Literal["auto", "object_store", "ipc", "nccl"] = "auto"
    """How new weights reach an engine; CUDA IPC on one GPU, NCCL between GPUs. `auto` reports its choice."""
    time_share: bool = False
    """Engines sleep while the learners work and free their GPU memory for them; they wake before the next rollout."""
    max_skipped_steps: PositiveInt = 3
    """Consecutive non-finite steps after which the run stops."""
    max_engine_restarts: NonNegativeInt = 3
    """Engine restarts allowed during one turn, or in a row without a finished turn, before the run fails."""
    engine_timeout_s: PositiveFloat = 120.0
    """An engine that stays silent for this long is restarted."""

    grading: GradingConfig = GradingConfig()
    eval: EvalConfig = EvalConfig()
    eval_steps: NonNegativeInt = 0
    save_steps: NonNegativeInt = 50
    save_total_limit: PositiveInt = 2
    logging_steps: PositiveInt = 1
    sample_steps: NonNegativeInt = 10
    """Print a sample dialogue every N steps; 0: never."""
    report_to: list[str] = []
    """tensorboard, wandb, trackio; `metrics.jsonl` is always written."""
    coldstart: ColdStartConfig | None = None
    mixture: MixtureConfig | None = None
    miniature: MiniatureConfig | None = None
    serve: ServeConfig = ServeConfig()

    @field_validator("output_dir")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("empty; name the folder of the results (the folder you are in is .)")
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> LongShortConfig:
        loras = {role: lora for role in ROLES if (lora := self.role(role).lora)}
        started = [role for role, lora in loras.items() if lora.adapter]
        if self.staleness and self.deterministic:
            raise ValueError(
                f"deterministic needs staleness 0 (got {self.staleness}): how much of a turn is written when new "
                "weights arrive depends on the clock, and stale tokens need the correction by the engine's log-probs, "
                "which deterministic leaves out"
            )
        if self.time_share and self.staleness:
            raise ValueError(
                f"time_share needs staleness 0 (got {self.staleness}): an engine that sleeps writes nothing beside an "
                "update"
            )
        if self.learner.ranks > 1 and self.learner_gpus not in (0, 1):
            raise ValueError(
                f"learner_gpus is {self.learner_gpus:g} but each of {self.learner.ranks} learner.ranks takes one GPU, "
                "or none"
            )
        if self.learner.backend == "deepspeed" and loras:
            raise ValueError(
                f"{next(iter(loras))}.lora is set but learner.backend is deepspeed; an adapter is trained in one "
                "process: set learner.backend: torch, or remove lora"
            )
        if self.loss.beta and started:
            raise ValueError(
                f"loss.beta is {self.loss.beta:g} and {started[0]}.lora.adapter is set: the KL's reference is the "
                "model without an adapter, but that role does not start there; set beta to 0, or merge the adapter "
                "into the model"
            )
        return self

    @model_validator(mode="after")
    def _one_engine_for_both(self) -> LongShortConfig:
        if not self.share_engine:
            return self
        if full := [role for role in ROLES if not self.role(role).lora]:
            raise ValueError(
                f"share_engine: {full[0]}.lora is not set, and a model trained whole needs an engine of its own; "
                "add lora: {}"
            )
        if self.long.model and self.short.model and self.long.model != self.short.model:
            raise ValueError(
                f"share_engine needs one base model: long.model is {self.long.model!r}, short.model is "
                f"{self.short.model!r}; name the same in both, or remove share_engine"
            )
        if made := [stage for stage in ("miniature", "coldstart") if getattr(self, stage)]:
            raise ValueError(f"share_engine needs one base model, but {made[0]} makes two; remove the one or the other")
        if self.time_share:
            raise ValueError(
                "share_engine and time_share: an engine that holds adapters does not sleep; remove the one or the other"
            )
        for key, value in self.long.engine.model_dump().items():
            if value != (other := getattr(self.short.engine, key)):
                raise ValueError(
                    f"share_engine: long.engine.{key} is {value!r} and short.engine.{key} {other!r}; give both the same"
                )
        return self

    def engines(self, roles: Sequence[str]) -> list[EngineConfig]:
        """Return the engines that sample these roles while they train: one each, or one for both."""
        return [self.role(role).engine for role in (roles[:1] if self.share_engine else roles)]

    def role(self, role: str) -> RoleConfig:
        return {LONG: self.long, SHORT: self.short}[role]

    @property
    def prices(self) -> dict[str, float]:
        return {role: self.role(role).price for role in ROLES}

    def learning_rate_of(self, role: str) -> float:
        return self.role(role).learning_rate or self.learning_rate


def load(path: str | Path, overrides: Sequence[str] = ()) -> LongShortConfig:
    """Read a recipe, apply `key.sub=value` overrides (`override` in strict_yaml.py), check it.

    Raises LongShortError for a missing file, bad YAML, a duplicate key, a YAML tag, an unknown key (with the nearest
    known one) or a wrong type.
    """
    path = expand(path, "recipe")
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise LongShortError(f"recipe {path} {fault}; name a YAML file (longshort's own are in recipes/)")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LongShortError(f"recipe {path} cannot be read ({error.strerror}); correct its rights") from error
    tree = read_yaml(content, str(path)) or {}
    if not isinstance(tree, dict):
        raise LongShortError(f"{path}: a recipe is a mapping of settings (key: value), got {type(tree).__name__}")
    for text in overrides:
        override(tree, text, LongShortConfig)
    return parse(tree, source=str(path))


def parse(tree: Mapping[str, Any], source: str = "config") -> LongShortConfig:
    """Check a nested dict of settings; `source` names it in errors."""
    try:
        config = LongShortConfig.model_validate(tree)
    except ValidationError as error:
        raise LongShortError(explain(error, LongShortConfig, source)) from None
    import_plugins(config.plugins)
    return config


def dump(config: LongShortConfig) -> str:
    """Return the whole recipe as YAML, defaults included. `load` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def lookup(table: Mapping[str, Plugin], name: str, key: str) -> Plugin:
    """Return the plug-in `name` of a table; `key` is where the recipe names it. The error lists the known names."""
    if name in table:
        return table[name]
    hint = "".join(f"did you mean {near!r}? " for near in difflib.get_close_matches(name, table, n=1))
    raise LongShortError(f"{key}: {name!r} is not known; {hint}known: {', '.join(table)}")


def with_models(config: LongShortConfig, models: Mapping[str, str]) -> LongShortConfig:
    """Return the recipe with these models in place of its own."""
    changed = {role: config.role(role).model_dump() | {"model": model} for role, model in models.items()}
    return parse(config.model_dump() | changed)
