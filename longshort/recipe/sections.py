"""The sections of a recipe; longshort/recipe/schema.py puts them together.

Names follow TRL where TRL has one. The default of every setting is in its section and nowhere else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from longshort.recipe.paths import PathText, expands

Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
ALONE = "Reason step by step, and put the final answer in \\boxed{}."
"""What a model that answers alone reads before the problem: the grader looks for the box."""


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus % 1:
        raise ValueError("more than one GPU is a whole number; a share is below 1")
    return gpus


Gpus = Annotated[NonNegativeFloat, AfterValidator(_whole_above_one)]


class Section(BaseModel):
    """A part of the recipe. It refuses unknown keys, and its values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_types(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `max_steps: yes`, which Python would count as 1, and text that no file can hold."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true/false is not a value for this setting")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("half a character, which is no text; write it again")
        return value


class EngineConfig(Section):
    """Where and how a policy's turns are sampled."""

    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` takes vLLM where it is installed, else transformers, and says which."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: Annotated[int, Field(ge=16)] = 2048
    """Context in tokens: everything that one role reads and writes in a dialogue."""
    max_num_seqs: PositiveInt = 128
    """Episodes that this engine decodes at once."""
    kv_cache_gib: PositiveFloat = 0.5
    block_size: PositiveInt = 32
    """Tokens per block of vLLM's cache. Its default on CPUs, 128, misses prefix-cache hits on short turns."""
    num_gpus: Gpus = 0.0
    extra: dict[str, Any] = {}
    """Passed to vLLM's EngineArgs unchanged."""


class ProtocolConfig(Section):
    """The rules of the dialogue; see longshort/dialogue/protocols.py."""

    name: str = "long_short"
    max_exchanges: PositiveInt = 4
    episode_tokens: PositiveInt = 4096
    tags: Literal["text", "special"] = "text"
    final_notice: str | None = None


class LengthConfig(Section):
    """The length term of the reward; see longshort/dialogue/rewards.py for the formula of each kind."""

    kind: str = "kimi"
    target: PositiveFloat = 1024.0
    """Price-weighted tokens; used by `laser` and `target`."""


class RewardConfig(Section):
    """r = correct_weight * correct + format_weight * format + mu(t) * length; mu ramps from 0 to `length_weight`."""

    name: str = "synergy"
    """A key of longshort/dialogue/rewards.py's table."""
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
    """The policy-gradient loss; see longshort/learning/losses.py."""

    name: str = "dapo"
    epsilon: PositiveFloat = 0.2
    epsilon_high: PositiveFloat = 0.28
    importance_correction: str = "token_truncate"
    importance_cap: PositiveFloat = 2.0
    beta: NonNegativeFloat = 0.0
    """Weight of the KL to the frozen starting model; 0 keeps no reference in memory."""


class GradingConfig(Section):
    """The processes that compare answers; see docs/grading.md."""

    workers: PositiveInt = 1
    timeout_s: PositiveFloat = 5.0
    memory_mb: Annotated[int, Field(ge=128)] = 1024


class BenchmarkEntry(Section):
    """A benchmark with its own settings, e.g. more samples where problems are few: {name: aime24, num_samples: 16}."""

    name: PathText
    num_problems: PositiveInt | None = None
    num_samples: PositiveInt | None = None


class SystemConfig(Section):
    """One row of an evaluation's table: which models, in which protocol.

    A model is a folder, a hub name, or something this run made: `trained` (the newest checkpoint, else the recipe's
    model), `checkpoint-40`, `cold_start`, `base` (before its cold start). `long: trained/short` puts the short role's
    model in the long role's place.
    """

    name: str = Field(pattern=r"^[\w@+-][\w@+.-]*$")
    title: str = ""
    long: PathText = "trained"
    short: PathText = "trained"
    alone: Literal["long", "short"] | None = None
    """This role's model answers alone, in one message. None: both answer, in the recipe's protocol."""
    in_role: bool = False
    """The model that answers alone writes between its role's tags, as in training; else it answers as a plain model."""
    tokens: NonNegativeInt = 0
    """Tokens that a model which answers alone may write; 0: what its context holds."""
    instructions: str = ""
    """What a plain model reads before the problem; empty: to box its answer. (Its role's own mention a partner.)"""
    thoughts: PositiveInt | None = None
    """Stop the model that answers alone after N thoughts and make it answer (`eval.ending`)."""


class LearnerConfig(Section):
    """How each role's learner is spread over processes; `learner_gpus` is the number of GPUs of each process."""

    backend: Literal["torch", "deepspeed"] = "torch"
    """`torch`: one process on one device; `deepspeed`: `ranks` processes share a policy's state. Same gradient."""
    ranks: PositiveInt = 1
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed divides among the ranks: 1 optimizer state, 2 also gradients, 3 also weights (reference too)."""
    offload: bool = False
    """Keep the optimizer's state in host memory; with ZeRO-3 also the weights that are not in use."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the layer in the backward pass: less memory, a third more time."""
    attention: Literal["auto", "sdpa", "varlen", "flash_attention_2"] = "auto"
    """How the samples of a packed row are kept apart: see longshort/backends/learners/attention.py."""
    timeout_s: PositiveFloat = 600.0
    """Seconds that the ranks wait for a silent one before they give up the update."""
    extra: dict[str, Any] = {}
    """Merged into DeepSpeed's `zero_optimization` unchanged, e.g. {overlap_comm: true}."""

    @model_validator(mode="after")
    def _torch_is_one_process(self) -> LearnerConfig:
        if self.backend == "torch" and (self.ranks > 1 or self.offload or self.extra):
            raise ValueError(
                f"ranks ({self.ranks}), offload ({str(self.offload).lower()}) and extra ({self.extra}) are for backend "
                "deepspeed; the torch learner is one process on one device"
            )
        return self


class EvalConfig(Section):
    """What `longshort eval` measures, on what, and against what."""

    benchmarks: list[Annotated[str | BenchmarkEntry, expands]] = []
    """Names (math500, aime24, aime25, amc23, gpqa_diamond, gsm8k, miniature) or any source that `dataset` takes."""
    data_dir: PathText = ""
    """A folder of benchmark files, tried before the hub: <data_dir>/math500.jsonl and so on."""
    systems: list[str | SystemConfig] = ["pair"]
    """Presets (see longshort/evaluation/systems.py) or descriptions of systems."""
    cross_play: list[PathText] = []
    """Checkpoints to cross: the long model of each plays with the short model of each, e.g. [cold_start, trained]."""
    base: str = ""
    """The system that AES and the paired comparisons refer to."""
    num_problems: PositiveInt | None = None
    """The first N problems of each benchmark; None: all."""
    num_samples: PositiveInt = 1
    temperature: NonNegativeFloat = 1.0
    greedy: bool = True
    """Also measure greedy accuracy."""
    seed: NonNegativeInt = 2024
    """Seeds sampling and the order of options, so that all systems get the same problems with the same seeds."""
    separator: str = Field(default="\n\n", min_length=1)
    """What ends a thought of a model that is stopped early."""
    ending: str = "\n</think>\n\nThe final answer is \\boxed{"
    """What a stopped model then reads and continues from."""
    max_engines: Annotated[int, Field(ge=2)] = 4
    """Engines alive at once. Each distinct model has one, kept as long as there is room."""


class ServeConfig(Section):
    """What `longshort serve` accepts, and how it stops."""

    max_queue: NonNegativeInt = 256
    """Answers that may wait for a place; a request beyond them is refused at once (429)."""
    max_request_bytes: Annotated[int, Field(ge=1024)] = 2**20
    timeout_s: PositiveFloat = 600.0
    """From a request's arrival to the end of its answer; a slower one is cancelled (504)."""
    drain_s: NonNegativeFloat = 30.0
    """How long running answers may go on after SIGTERM."""
    allowed_hosts: list[str] = []
    """Host names under which the server may be called, besides loopback; needed behind a proxy."""
    allowed_origins: list[str] = []
    """Origins of web pages, e.g. https://app.example, that may call the server from a browser (CORS)."""

    @field_validator("allowed_origins")
    @classmethod
    def _refuse_what_no_browser_sends(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*A-Z]+", origin):
                example = "https://app.example or http://localhost:5173"
                raise ValueError(f"{origin!r} is no origin; write {example}: lower case, no path, no *")
        return value
