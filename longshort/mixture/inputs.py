"""What a mixture run works on, read and checked before anything starts (longshort/mixture/run.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.coldstart.records import OK, Trace
from longshort.coldstart.traces import load_traces
from longshort.data import load_problems
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.protocols import demonstration
from longshort.dialogue.solo import Solo
from longshort.learning.samples import sample_of
from longshort.mixture.reweighting import WEIGHTINGS
from longshort.preflight.checks import check_contexts, check_output, check_prompts, load_tokenizer
from longshort.recipe.coldstart import MixtureConfig
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.strict_yaml import leaves
from longshort.runs.model_files import read_facts
from longshort.types import LongShortError, Problem, Sample

SOURCES = ("short_data", "long_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A mixture run's inputs, read and checked.

    `config` is the recipe as the learner reads it (`_for_learner`), `setup` every setting that the outcome depends on, by dotted key;
    `traces` are the usable ones of SOURCES, in that order, and `counts` says what became of all.
    """

    config: LongShortConfig
    settings: MixtureConfig
    setup: Mapping[str, Any]
    protocol: Solo
    tokenizer: Any
    traces: tuple[Sequence[Trace], Sequence[Trace]]
    counts: Mapping[str, Mapping[str, int]]
    dev: Sequence[Problem]

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir) / "mixture"

    @property
    def start(self) -> str:
        """The model that training starts from."""
        return self.config.role(self.settings.role).model


def prepare(config: LongShortConfig) -> Job:
    """Read the data and refuse what cannot work."""
    settings = config.mixture
    if settings is None:
        raise LongShortError("this recipe has no section `mixture:`; recipes/tldr.yaml shows one")
    lookup(WEIGHTINGS, settings.weighting, "mixture.weighting")
    if not settings.dev_dataset:
        raise LongShortError("mixture.dev_dataset is empty: name a file, a hub dataset, or miniature:dev")
    placed = _for_learner(config, settings.role)
    section = placed.role(settings.role)
    facts = read_facts(section.model, f"{settings.role}.model")
    for key in ("short_bound", "long_bound"):
        if model := getattr(settings, key):
            read_facts(model, f"mixture.{key}")
    check_output(config)
    check_contexts(placed, {settings.role: facts})
    tokenizer = load_tokenizer(placed, settings.role, facts.vocabulary)
    protocol = Solo(role=settings.role, turn_tokens=settings.max_tokens, instructions=section.instructions or "")
    dev = load_problems(settings.dev_dataset, limit=settings.dev_problems)
    check_prompts(placed, dev, protocol, {settings.role: tokenizer})
    longest = min(section.engine.max_model_len, section.sft.max_length)
    with GradingPool.of(config.grading) as pool:
        pool.check_golds(dev)
        found = {source: load_traces(getattr(settings, source), None, pool, config.seed) for source in SOURCES}
    questions = {problem.question for problem in dev}
    usable = {
        source: _usable(source, traces, questions, longest, protocol, tokenizer) for source, traces in found.items()
    }
    return Job(
        config=placed,
        settings=settings,
        setup=_setup(config),
        protocol=protocol,
        tokenizer=tokenizer,
        traces=(usable["short_data"][0], usable["long_data"][0]),
        counts={source: counts for source, (_, counts) in usable.items()},
        dev=dev,
    )


def _for_learner(config: LongShortConfig, role: str) -> LongShortConfig:
    """The recipe with the role's SFT learning rate and schedule where the learner looks for RL's, its starting model, no reference."""
    section, schedule = config.role(role), config.role(role).sft.lr_scheduler_type
    for key in ("lora", "deepspeed", "gradient_checkpointing"):
        if value := getattr(section.sft, key):
            raise LongShortError(
                f"{role}.sft.{key} is {value!r}, but the mixture trains all weights in one process without it; remove it"
            )
    model = section.model
    if config.miniature and not model:
        model = str(Path(config.output_dir) / "models" / f"base-{role}")
        if not Path(model).is_dir():
            raise LongShortError(
                f"no model {model} to start from; let the stage `base` make it (stages: [base, mixture], `longshort run`)"
            )
    changes = {
        role: section.model_copy(update={"model": model, "learning_rate": section.sft.learning_rate}),
        "lr_scheduler_type": schedule.removesuffix("_with_warmup"),
        "warmup_ratio": 0.0
        if schedule == "constant"
        else section.sft.warmup_ratio,  # as in TRL; our own `constant` has a warm-up
        "loss": config.loss.model_copy(update={"beta": 0.0}),
    }
    return config.model_copy(update=changes)


def _setup(config: LongShortConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    section = tree[config.mixture.role]
    kept = {key: tree[key] for key in ("mixture", "seed", "dtype", "top_p", "top_k", "max_grad_norm", "weight_decay")}
    kept[config.mixture.role] = {
        "model": section["model"],
        "instructions": section["instructions"],
        "sft": {
            key: section["sft"][key] for key in ("learning_rate", "lr_scheduler_type", "warmup_ratio", "max_length")
        },
        "engine": {key: section["engine"][key] for key in ("dtype", "max_model_len")},
    }
    return dict(leaves(kept))


def _usable(
    source: str, traces: Sequence[Trace], held_out: set[str], longest: int, protocol: Solo, tokenizer
) -> tuple[list[Trace], dict[str, int]]:
    """The traces that can be trained on, and how many there are of each outcome; LongShortError if there is none."""
    kept, counts = [], Counter(usable=0)
    for trace in traces:
        outcome = trace.outcome
        if outcome == OK and trace.problem.question in held_out:
            outcome = "on dev problems"
        elif outcome == OK and len(as_sample(trace, protocol, tokenizer).token_ids) > longest:
            outcome = f"longer than {longest} tokens"
        elif outcome == OK:
            outcome = "usable"
            kept.append(trace)
        counts[outcome] += 1
    if not kept:
        raise LongShortError(
            f"mixture.{source}: none of its {len(traces)} traces can be used: {dict(counts)}; correct or replace the file"
        )
    return kept, dict(counts)


def as_sample(trace: Trace, protocol: Solo, tokenizer) -> Sample:
    """A trace as the engine would be prompted and would have answered."""
    episode = demonstration(
        trace.problem, [(protocol.role, trace.response, "eos")], protocol, {protocol.role: tokenizer}
    )
    return sample_of(episode, protocol.role, 0.0)
