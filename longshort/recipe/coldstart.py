"""The recipe's sections `coldstart:` and `mixture:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longshort.recipe.sections import Amount, Count, EngineConfig, Rate, Section, Share


class GeneratorConfig(Section):
    """A model that serves the making of cold-start data; any engine of ours."""

    model: str = ""
    """Local folder or hub name."""
    engine: EngineConfig = EngineConfig()


class ChunkConfig(Section):
    """How traces are cut into thoughts (arXiv 2505.11827, section 3.1)."""

    splitter: Literal["rules", "instruct"] = "rules"
    """`rules` packs paragraphs by cue words; `instruct` asks `coldstart.instruct` and falls back to the rules, saying so."""
    max_thoughts: int = Field(64, ge=2)
    tries: Count = 5
    max_tokens: Count = 4096


class ImportanceConfig(Section):
    """Monte-Carlo rollouts from every prefix of every trace (arXiv 2505.11827, section 3.2)."""

    num_rollouts: Count = 8
    temperature: Amount = 0.7
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: Count = 1024
    """Tokens that a rollout may write after its prefix."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Of the Hoeffding bounds and the Wilson intervals."""
    average: Literal["none", "skeleton"] = "none"
    """`skeleton` averages P over all thoughts that are the same once digits are masked (question and thought): needs few rollouts each."""
    instructions: str = "Reason step by step, and put the final answer in \\boxed{}."
    """What the rollout model is told besides the problem."""
    num_engines: Count = 1
    """Rollout engines side by side; all prefixes of a trace go to the same one."""


class PartitionConfig(Section):
    """Which thoughts stay long (arXiv 2505.11827, section 3.3, and the controls)."""

    rule: str = "metric"
    """A key of longshort/coldstart/partition.py's table."""
    num_long: Count | None = None
    """Long thoughts per trace for `random` and `first_k`; None: as many as `metric` takes in that trace."""


class RewriteConfig(Section):
    """How the short thoughts are written anew."""

    rewriter: str = "instruct"
    """A key of longshort/coldstart/rewriting.py's table."""
    tries: Count = 3
    temperature: Amount = 0.7
    max_tokens: Count = 1024
    redundancy: Share = 0.45
    """Miniature's rewriter: share of the optional thoughts (checks, wrap-up) that survive."""


class ColdStartConfig(Section):
    """From long reasoning traces to two fine-tuned models: longshort/thoughts/."""

    traces: str
    """A file or hub name whose rows have a problem, an answer and a long response; or `miniature:train`."""
    num_traces: Count | None = None
    instruct: GeneratorConfig = GeneratorConfig()
    """The instruct model that splits (`chunk.splitter: instruct`) and rewrites (`rewrite.rewriter: instruct`)."""
    rollout: GeneratorConfig | None = None
    """The small non-reasoning model that continues prefixes; None: the short role's model on the short role's engine settings."""
    chunk: ChunkConfig = ChunkConfig()
    importance: ImportanceConfig = ImportanceConfig()
    partition: PartitionConfig = PartitionConfig()
    rewrite: RewriteConfig = RewriteConfig()
    final_notice_share: Share = 0.5
    """Share of the dialogues whose last turn is rendered with the final notice, as if the exchanges had run out."""


class MixtureConfig(Section):
    """TL;DR's dynamic re-weighting of short-CoT and long-CoT data (arXiv 2506.02678); longshort/mixture/reweighting.py."""

    role: Literal["long", "short"] = "long"
    """Whose model is trained; of its `sft` only learning_rate, lr_scheduler_type, warmup_ratio and max_length are used."""
    short_data: str
    """System 1, short traces of easy problems: rows with a problem, an answer and a response; or `miniature:easy`."""
    long_data: str
    """System 2, long traces of hard problems; or `miniature:hard`."""
    short_bound: str = ""
    """The model (folder or hub name) that gives t_S and a_S; empty: the role's model after `max_steps` on `short_data` alone."""
    long_bound: str = ""
    """The model that gives t_L and a_L, the reasoning model; empty: the role's model before training."""
    weighting: Literal["dynamic", "constant"] = "dynamic"
    """`constant` keeps the sampling ratios at 1:1: the control."""
    max_steps: Count = 512
    batch_size: Count = 32
    """Examples per optimizer step, drawn from the two sources with the current ratios."""
    update_steps: Count = 32
    """Optimizer steps between two measurements on the dev problems."""
    eta: Rate = 4.0
    floor: Share = 0.1
    """c: no ratio falls below c / 2. The paper's 1e-4 cannot recover from a saturated ratio."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Share of the previous signals that the next ones keep."""
    dev_dataset: str = ""
    dev_problems: Count = 200
    temperature: Amount = 1.0
    """Of the dev measurement, the bounds' too."""
    max_tokens: Count = 8192
    """Tokens that an answer may have, in the dev measurement and the bounds'."""
    keep_accuracy: Share = 0.7
    """The checkpoint chosen has the fewest dev tokens among those with a > keep_accuracy * a_L."""
