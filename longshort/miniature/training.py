"""Base training and cold start of the miniature's models, each a job for a process of its own that reports its progress into a file."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from longshort.config import LongShortConfig
from longshort.learning.samples import sample_of
from longshort.learning.supervised import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import FINAL_NOTICE, build_tokenizer
from longshort.miniature.world import compressed_trace, dialogue, hard_parts, make_problems, teacher_trace
from longshort.team.protocols import LongShort, Solo, demonstration
from longshort.types import ROLES, Problem, Sample

PROGRESS = "progress.json"


def base_samples(config: LongShortConfig, role: str, problems: Sequence[Problem], style: str) -> list[Sample]:
    """One solo solution per problem in the role's own tokens: the teacher's verbose trace, or the `compressed` one (a control)."""
    write = {"verbose": teacher_trace, "compressed": compressed_trace}[style]
    rng, tokenizer = random.Random(f"{config.seed}/{role}/{style}"), build_tokenizer(role)
    protocol = Solo(role=role, turn_tokens=config.long.engine.max_model_len)
    episodes = (demonstration(problem, [(role, write(problem, rng), "eos")], protocol, {role: tokenizer}) for problem in problems)
    return [sample_of(episode, role, 0.0) for episode in episodes]


def cold_start_samples(config: LongShortConfig, role: str, problems: Sequence[Problem]) -> list[Sample]:
    """The role's view of one scripted dialogue per problem, rendered exactly as rollouts are.

    The exchange limit of a demonstration is the number of its exchanges for half of the problems and the recipe's for the rest, so that
    the short model meets the final notice in front of every kind of last turn.
    """
    rng, tokenizers = random.Random(f"{config.seed}/cold-start"), {role: build_tokenizer(role) for role in ROLES}
    samples = []
    for problem in problems:
        messages = dialogue(problem, rng, config.miniature.redundancy)
        exchanges = hard_parts(problem) if rng.random() < 0.5 else max(hard_parts(problem), config.protocol.max_exchanges)
        protocol = LongShort(
            max_exchanges=exchanges,
            turn_tokens={role: config.role(role).turn_tokens for role in ROLES},
            episode_tokens=config.protocol.episode_tokens,
            tags="special",
            instructions=dict.fromkeys(ROLES, ""),
            final_notice=FINAL_NOTICE,
        )
        samples.append(sample_of(demonstration(problem, messages, protocol, tokenizers), role, 0.0))
    return samples


def train_base(config: LongShortConfig, role: str, folder: str, style: str = "verbose") -> None:
    """A model of the role's shape, from random weights, on solo traces; saved into `folder`."""
    mini, shape = config.miniature, getattr(config.miniature, role)
    tokenizer = build_tokenizer(role)
    model = build_model(tokenizer, shape, config.seed, max_position_embeddings=config.role(role).engine.max_model_len)
    problems = make_problems("train", mini.num_train, config.seed)
    samples = base_samples(config, role, problems, style)
    _fit(model, samples, folder, config, shape.base_steps, mini.base_batch, shape.base_learning_rate)
    save(model, tokenizer, folder)


def train_cold_start(config: LongShortConfig, role: str, base: str, folder: str) -> None:
    """The base model taught its half of the dialogue; saved into `folder`."""
    from transformers import AutoModelForCausalLM

    mini, shape = config.miniature, getattr(config.miniature, role)
    model = AutoModelForCausalLM.from_pretrained(base)
    samples = cold_start_samples(config, role, make_problems("train", mini.cold_start_episodes, config.seed + 1))
    _fit(model, samples, folder, config, shape.cold_start_steps, mini.cold_start_batch, shape.cold_start_learning_rate)
    save(model, build_tokenizer(role), folder)


def _fit(model, samples: list[Sample], folder: str, config: LongShortConfig, steps: int, batch: int, learning_rate: float) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    shown = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal shown
        if time.monotonic() - shown > 1.0 or step + 1 == steps:
            shown = time.monotonic()
            partial = Path(folder) / f".{PROGRESS}"
            partial.write_text(json.dumps({"step": step + 1, "steps": steps, "loss": loss}))
            os.replace(partial, Path(folder) / PROGRESS)

    fit(model, samples, steps=steps, batch_size=batch, learning_rate=learning_rate, seed=config.seed, on_step=report)
