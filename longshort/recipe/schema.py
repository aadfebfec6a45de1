"""The recipe: one strict schema for YAML files, command-line overrides and the trainer class.

Names follow TRL where TRL has one. What may differ per role stands under `long:` and `short:`. A section's defaults stand in
longshort/recipe/sections.py, the top level's here, and nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from longshort.recipe.coldstart import ColdStartConfig, MixtureConfig
from longshort.recipe.miniature import MiniatureConfig
from longshort.recipe.roles import RoleConfig
from longshort.recipe.sections import (
    Amount,
    Count,
    EngineConfig,
    EvalConfig,
    GradingConfig,
    LearnerConfig,
    LossConfig,
    Natural,
    ProtocolConfig,
    Rate,
    RewardConfig,
    Section,
    Share,
)
from longshort.recipe.serving import ServeConfig
from longshort.recipe.strict_yaml import explain, override, read_yaml
from longshort.types import LONG, ROLES, SHORT, LongShortError

Plugin = TypeVar("Plugin")


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
    staleness: Natural = 0
    """Steps that a rollout begins early, beside the updates of those before: so many updates old may its tokens be. 0: none is."""
    refill: Natural = 0
    """Problems per step, at most, that are rolled out in place of those whose episodes all scored the same."""

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
    """Samples are packed into rows of at most this many tokens; 0: one sample a row where attention is dense, else `batch_tokens`."""
    batch_tokens: Count = 8192
    """Rows are stacked into micro-batches of at most this many tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    learner: LearnerConfig = LearnerConfig()
    share_engine: bool = False
    """One engine holds the base that both roles share and samples each role's turns with its adapter (`long.lora`, `short.lora`)."""
    learner_gpus: Amount = 0.0
    """GPUs of each rank of a learner; 0: it learns on the CPU."""
    weight_sync: Literal["auto", "object_store", "ipc", "nccl"] = "auto"
    """How new weights get to an engine: Ray's object store, CUDA IPC on a shared GPU, NCCL between GPUs; `auto` says which it takes."""
    time_share: bool = False
    """The engines sleep while the learners work, and give them their GPU memory; they wake before the next rollout."""
    max_skipped_steps: Count = 3
    """Consecutive non-finite steps after which the run stops."""
    max_engine_restarts: Natural = 3
    """Times that an engine is replaced during one turn, or in a row without delivering any, before that is an error."""
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
    coldstart: ColdStartConfig | None = None
    mixture: MixtureConfig | None = None
    miniature: MiniatureConfig | None = None
    serve: ServeConfig = ServeConfig()

    @field_validator("staleness")
    @classmethod
    def _repeatable(cls, staleness: int, info: ValidationInfo) -> int:
        if staleness and info.data.get("deterministic"):
            raise ValueError(
                "deterministic needs staleness 0: how much of a turn is written when new weights arrive depends on the clock, and stale "
                "tokens need the correction by the engine's log-probs, which deterministic leaves out"
            )
        return staleness

    @model_validator(mode="after")
    def _nothing_beside_an_update(self) -> LongShortConfig:
        if self.time_share and self.staleness:
            raise ValueError(
                f"time_share needs staleness 0 (got {self.staleness}): an engine that sleeps writes nothing beside an update"
            )
        return self

    @model_validator(mode="after")
    def _one_gpu_per_rank(self) -> LongShortConfig:
        if self.learner.ranks > 1 and self.learner_gpus not in (0, 1):
            raise ValueError(
                f"learner_gpus is {self.learner_gpus:g} but each of {self.learner.ranks} learner.ranks takes one GPU, or none"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_one_process(self) -> LongShortConfig:
        if self.learner.backend == "deepspeed" and (adapted := [role for role in ROLES if self.role(role).lora]):
            raise ValueError(
                f"{adapted[0]}.lora is set but learner.backend is deepspeed; an adapter is trained in one process: set learner.backend: "
                "torch, or remove lora"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_the_start(self) -> LongShortConfig:
        if self.loss.beta and (started := [role for role in ROLES if (lora := self.role(role).lora) and lora.adapter]):
            raise ValueError(
                f"loss.beta is {self.loss.beta:g} and {started[0]}.lora.adapter is set: the KL's reference is the model without an "
                "adapter, which is not where that role starts; set beta to 0, or merge the adapter into the model"
            )
        return self

    @model_validator(mode="after")
    def _one_engine_for_both(self) -> LongShortConfig:
        if not self.share_engine:
            return self
        if full := [role for role in ROLES if not self.role(role).lora]:
            raise ValueError(
                f"share_engine: {full[0]}.lora is not set, and a model trained whole needs an engine of its own; add lora: {{}}"
            )
        if self.long.model and self.short.model and self.long.model != self.short.model:
            raise ValueError(
                f"share_engine needs one base model: long.model is {self.long.model!r}, short.model is {self.short.model!r}; name the same "
                "in both, or remove share_engine"
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
        """The engines that sample the turns of these roles while they train: one each, or one for both."""
        return [self.role(role).engine for role in (roles[:1] if self.share_engine else roles)]

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


def with_models(config: LongShortConfig, models: Mapping[str, str]) -> LongShortConfig:
    """The recipe with these models in place of its own."""
    return parse(
        config.model_dump()
        | {role: config.role(role).model_dump() | {"model": model} for role, model in models.items()}
    )
