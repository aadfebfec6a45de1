"""What a mixture run works on, read and checked before anything starts (longshort/mixture/run.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshort.coldstart.records import OK, Trace
from longshort.coldstart.traces import check_source, load_traces
from longshort.data import load_problems
from longshort.dialogue.protocols import demonstration
from longshort.dialogue.solo import Solo
from longshort.grading.golds import gradable
from longshort.grading.pool import GradingPool
from longshort.learning.samples import sample_of
from longshort.mixture.reweighting import WEIGHTINGS
from longshort.preflight.checks import check_context, check_contexts, check_output, check_prompts, load_tokenizer
from longshort.recipe.coldstart import MixtureConfig
from longshort.recipe.roles import SftConfig
from longshort.recipe.schema import LongShortConfig, lookup, with_models
from longshort.recipe.strict_yaml import leaves
from longshort.runs.layout import RunFolder, base_model
from longshort.runs.model_files import read_facts
from longshort.types import LongShortError, Problem, Sample

SOURCES = ("short_data", "long_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureInputs:
    """A mixture run's inputs, checked. `setup` has every setting that the outcome depends on, by dotted key; `traces`
    are the usable ones of SOURCES, in that order, and `counts` says what became of all; `sft` is how the role
    trains."""

    config: LongShortConfig
    settings: MixtureConfig
    sft: SftConfig
    setup: Mapping[str, Any]
    protocol: Solo
    tokenizer: Any
    traces: tuple[Sequence[Trace], Sequence[Trace]]
    counts: Mapping[str, Mapping[str, int]]
    dev: Sequence[Problem]

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def start(self) -> str:
        """The model that training starts from."""
        return self.config.role(self.settings.role).model


def check_settings(config: LongShortConfig) -> MixtureConfig:
    """Refuse, before anything is read, what cannot work; return the section `mixture`."""
    settings = config.mixture
    if settings is None:
        raise LongShortError("this recipe has no section `mixture:`; recipes/tldr.yaml shows one")
    if not settings.dev_dataset:
        raise LongShortError("mixture.dev_dataset is empty: name a file, a hub dataset, or miniature:dev")
    lookup(WEIGHTINGS, settings.weighting, "mixture.weighting")
    role = settings.role
    for key in ("lora", "deepspeed"):
        if value := getattr(config.role(role).sft, key):
            raise LongShortError(f"{role}.sft.{key} is {value!r}, but the mixture trains all weights; remove it")
    for key in ("short_bound", "long_bound"):
        if model := getattr(settings, key):
            check_context(config.role(role).engine, read_facts(model, f"mixture.{key}"), f"{role}.engine")
    for source in SOURCES:
        check_source(getattr(settings, source), f"mixture.{source}")
    return settings


def prepare(config: LongShortConfig) -> MixtureInputs:
    """Read the data and refuse what cannot work."""
    settings = check_settings(config)
    role = settings.role
    placed = with_models(config, {role: base_model(config, role)})
    section = placed.role(role)
    facts = read_facts(section.model, f"{role}.model")
    check_output(config)
    check_contexts(placed, {role: facts})
    tokenizer = load_tokenizer(placed, role, facts.vocabulary)
    protocol = Solo(role=role, turn_tokens=settings.max_tokens, instructions=section.instructions or "")
    dev = load_problems(settings.dev_dataset, limit=settings.dev_problems)
    check_prompts(placed, dev, protocol, {role: tokenizer})
    longest = min(section.engine.max_model_len, section.sft.max_length)
    with GradingPool.of(config.grading) as pool:
        dev = gradable(dev, "mixture.dev_dataset")
        loaded = {source: load_traces(getattr(settings, source), None, pool, config.seed) for source in SOURCES}
    questions = {problem.question for problem in dev}
    usable = [_usable(source, loaded[source], questions, longest, protocol, tokenizer) for source in SOURCES]
    return MixtureInputs(
        config=placed,
        settings=settings,
        sft=_sft(section.sft, settings),
        setup=_setup(config, role),
        protocol=protocol,
        tokenizer=tokenizer,
        traces=(usable[0][0], usable[1][0]),
        counts={source: counts for source, (_, counts) in zip(SOURCES, usable, strict=True)},
        dev=dev,
    )


def _sft(sft: SftConfig, settings: MixtureConfig) -> SftConfig:
    """Return the role's settings of fine-tuning with the mixture's steps and batches, one drawn example per row."""
    micro = math.gcd(settings.batch_size, sft.micro_batch_size)
    batches = {"max_steps": settings.max_steps, "batch_size": settings.batch_size, "micro_batch_size": micro}
    return sft.model_copy(update=batches | {"packing": False, "save_steps": 0})


def _setup(config: LongShortConfig, role: str) -> dict[str, Any]:
    """Return every setting that the outcome depends on, by dotted key."""
    sft, engine = {"learning_rate", "lr_scheduler_type", "warmup_ratio", "max_length"}, {"dtype", "max_model_len"}
    of_role = {"model": True, "instructions": True, "sft": sft, "engine": engine}
    kept: dict[str, Any] = dict.fromkeys(("mixture", "seed", "dtype", "top_p", "top_k"), True)
    return dict(leaves(config.model_dump(mode="json", include=kept | {role: of_role})))


def _usable(
    source: str, traces: Sequence[Trace], held_out: set[str], longest: int, protocol: Solo, tokenizer: Any
) -> tuple[list[Trace], dict[str, int]]:
    """Return the traces that can be trained on, and the number of each outcome; LongShortError if there is none."""
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
            f"mixture.{source}: none of its {len(traces)} traces can be used: {dict(counts)}; correct or replace it"
        )
    return kept, dict(counts)


def as_sample(trace: Trace, protocol: Solo, tokenizer: Any) -> Sample:
    """Return a trace as the engine would be prompted and would have answered."""
    messages = [(protocol.role, trace.response, "eos")]
    sample = sample_of(demonstration(trace.problem, messages, protocol, {protocol.role: tokenizer}), protocol.role, 0.0)
    assert sample is not None, "it ends at least on the end-of-text token"
    return sample
