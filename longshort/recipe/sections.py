"""The sections of a recipe, one class each; `LongShortConfig` (longshort/recipe/schema.py) puts them together.

Names follow TRL where TRL has one. Every default of a section stands here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


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


class ProtocolConfig(Section):
    name: str = "long_short"
    max_exchanges: Count = 4
    episode_tokens: Count = 4096
    tags: Literal["text", "special"] = "text"
    final_notice: str | None = None


class LengthConfig(Section):
    """The length term of the reward; see longshort/dialogue/rewards.py for each kind's formula."""

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


class BenchmarkEntry(Section):
    """A benchmark with settings of its own, e.g. more samples where problems are few: {name: aime24, num_samples: 16}."""

    name: str
    num_problems: Count | None = None
    num_samples: Count | None = None


class SystemConfig(Section):
    """One row of an evaluation's table: which models, in which protocol.

    A model is named as a folder, a hub name, or what this run made: `trained` (the newest checkpoint, else the recipe's model),
    `checkpoint-40`, `cold_start`, `base` (before its cold start); `trained/short` in the long role's place is the short role's model.
    """

    name: str = Field(pattern=r"^[\w@+-][\w@+.-]*$")
    title: str = ""
    long: str = "trained"
    short: str = "trained"
    alone: Literal["long", "short"] | None = None
    """This role's model answers alone, in one message; None: both, in the recipe's protocol."""
    in_role: bool = False
    """A model that answers alone speaks between its role's tags, as it was trained to; else it is a plain single model."""
    tokens: Natural = 0
    """Tokens that a model which answers alone may write; 0: what its context holds."""
    instructions: str = ""
    """What a plain single model reads before the problem. Those of its role in the pair speak of a partner and are not for it."""
    thoughts: Count | None = None
    """The model that answers alone is stopped after so many thoughts and made to answer (`eval.ending`)."""


class LearnerConfig(Section):
    """How each role's learner is spread over processes; `learner_gpus` are the GPUs of each of them."""

    backend: Literal["torch", "deepspeed"] = "torch"
    """`torch`: one process on one device; `deepspeed`: `ranks` of them that share a policy's state. The gradient is the same."""
    ranks: Count = 1
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed cuts into `ranks` parts: 1 the optimizer's state, 2 also the gradients, 3 also the weights (and the reference's)."""
    offload: bool = False
    """Keep the optimizer's state, with ZeRO-3 also the weights not in use, in host memory."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the layer again there: less memory, a third more time."""
    attention: Literal["auto", "sdpa", "varlen", "flash_attention_2"] = "auto"
    """How the samples of a packed row are kept apart: see longshort/backends/learners/attention.py."""
    timeout_s: Rate = 600.0
    """A rank that lets the others wait for so long is given up, and with it the update."""
    extra: dict[str, Any] = {}
    """Laid over DeepSpeed's `zero_optimization` unchanged, e.g. {overlap_comm: true}."""

    @model_validator(mode="after")
    def _torch_is_one_process(self) -> LearnerConfig:
        if self.backend == "torch" and (self.ranks > 1 or self.offload or self.extra):
            raise ValueError(
                f"ranks ({self.ranks}), offload ({str(self.offload).lower()}) and extra ({self.extra}) are for backend deepspeed; "
                "the torch learner is one process on one device"
            )
        return self


class EvalConfig(Section):
    """What `longshort eval` measures, on what, and against what."""

    benchmarks: list[str | BenchmarkEntry] = []
    """Names (math500, aime24, aime25, amc23, gpqa_diamond, gsm8k, miniature) or any source that `dataset` takes."""
    data_dir: str = ""
    """A folder of benchmark files, looked into before the hub: <data_dir>/math500.jsonl and so on."""
    systems: list[str | SystemConfig] = ["pair"]
    """Presets (see longshort/evaluation/systems.py) or descriptions of systems."""
    cross_play: list[str] = []
    """Checkpoints whose long models play with every one's short models: [cold_start, checkpoint-40, trained]."""
    base: str = ""
    """The system that AES and the paired comparisons refer to."""
    num_problems: Count | None = None
    """The first so many of each benchmark; None: all."""
    num_samples: Count = 1
    temperature: Amount = 1.0
    greedy: bool = True
    """Also measure greedy accuracy."""
    seed: Natural = 2024
    """Of sampling and of shuffled options, so that two systems meet the same problems with the same dice."""
    separator: str = Field("\n\n", min_length=1)
    """What ends a thought of a model that is stopped early."""
    ending: str = "\n</think>\n\nThe final answer is \\boxed{"
    """What it then reads and goes on from."""
    max_engines: int = Field(4, ge=2)
    """Engines alive at once: each distinct model has one, kept as long as there is room."""
