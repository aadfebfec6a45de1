"""The recipe's sections `coldstart:` and `mixture:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from longshort.recipe.paths import PathText
from longshort.recipe.sections import ALONE, EngineConfig, Probability, Section, Share


class GeneratorConfig(Section):
    """A model that helps to make cold-start data, on any engine."""

    model: PathText = ""
    """Local folder or hub name."""
    engine: EngineConfig = EngineConfig()


class ChunkConfig(Section):
    """How traces are cut into thoughts (arXiv 2505.11827, section 3.1)."""

    splitter: Literal["rules", "instruct"] = "rules"
    """`rules` groups paragraphs by cue words; `instruct` asks `coldstart.instruct` and falls back to the rules."""
    max_thoughts: Annotated[int, Field(ge=2)] = 64
    tries: PositiveInt = 5
    max_tokens: PositiveInt = 4096


class ImportanceConfig(Section):
    """Monte-Carlo rollouts from every prefix of every trace (arXiv 2505.11827, section 3.2)."""

    num_rollouts: PositiveInt = 8
    temperature: NonNegativeFloat = 0.7
    top_p: Probability = 0.95
    max_tokens: PositiveInt = 1024
    """Tokens that a rollout may write after its prefix."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the Hoeffding bounds and the Wilson intervals."""
    average: Literal["none", "skeleton"] = "none"
    """`skeleton` averages P over thoughts (and questions) that are equal once digits are masked: few rollouts do."""
    instructions: str = ALONE
    """What the rollout model reads before the problem."""
    num_engines: PositiveInt = 1
    """Rollout engines side by side; all prefixes of a trace go to the same one."""


class PartitionConfig(Section):
    """Which thoughts stay long (arXiv 2505.11827, section 3.3); see longshort/coldstart/partition.py."""

    rule: str = "metric"
    num_long: PositiveInt | None = None
    """Long thoughts per trace for `random` and `first_k`; None: as many as `metric` takes in that trace."""


class RewriteConfig(Section):
    """How the short thoughts are rewritten; see longshort/coldstart/rewriting.py."""

    rewriter: str = "instruct"
    tries: PositiveInt = 3
    temperature: NonNegativeFloat = 0.7
    max_tokens: PositiveInt = 1024
    redundancy: Share = 0.45
    """Miniature's rewriter: share of the optional thoughts (checks, wrap-up) that survive."""


class ColdStartConfig(Section):
    """From long reasoning traces to two fine-tuned models: longshort/coldstart/."""

    traces: PathText
    """A file or hub name whose rows have a problem, an answer and a long response; or `miniature:train`."""
    num_traces: PositiveInt | None = None
    instruct: GeneratorConfig = GeneratorConfig()
    """The instruct model that splits (`chunk.splitter: instruct`) and rewrites (`rewrite.rewriter: instruct`)."""
    rollout: GeneratorConfig | None = None
    """The small non-reasoning model that continues prefixes; None: the short role's model, with its engine settings."""
    chunk: ChunkConfig = ChunkConfig()
    importance: ImportanceConfig = ImportanceConfig()
    partition: PartitionConfig = PartitionConfig()
    rewrite: RewriteConfig = RewriteConfig()
    final_notice_share: Share = 0.5
    """Share of the dialogues whose last turn has the final notice, as if no more exchanges were allowed."""


class MixtureConfig(Section):
    """TL;DR's re-weighting of short and long CoT data (arXiv 2506.02678); see longshort/mixture/reweighting.py."""

    role: Literal["long", "short"] = "long"
    """The trained role. Of its `sft`, learning_rate, lr_scheduler_type, warmup_ratio and max_length count."""
    short_data: PathText
    """System 1, short traces of easy problems: rows with a problem, an answer and a response; or `miniature:easy`."""
    long_data: PathText
    """System 2, long traces of hard problems; or `miniature:hard`."""
    short_bound: PathText = ""
    """The model (folder or hub name) for t_S and a_S; empty: the role's model after `max_steps` on `short_data`."""
    long_bound: PathText = ""
    """The reasoning model, for t_L and a_L; empty: the role's model before training."""
    weighting: str = "dynamic"
    """`constant` keeps the sampling ratios at 1:1: the control."""
    max_steps: PositiveInt = 512
    batch_size: PositiveInt = 32
    """Examples per optimizer step, drawn from the two sources with the current ratios."""
    update_steps: PositiveInt = 32
    """Optimizer steps between two measurements on the dev problems."""
    eta: PositiveFloat = 4.0
    floor: Share = 0.1
    """c: no ratio falls below c / 2. The paper's 1e-4 cannot recover from a saturated ratio."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the previous signals in the next ones."""
    dev_dataset: PathText = ""
    dev_problems: PositiveInt = 200
    temperature: NonNegativeFloat = 1.0
    """Of the measurements on the dev problems, the bounds' included."""
    max_tokens: PositiveInt = 8192
    """Tokens that an answer may have in those measurements."""
    keep_accuracy: Share = 0.7
    """The chosen checkpoint has the fewest dev tokens among those with a > keep_accuracy * a_L."""
