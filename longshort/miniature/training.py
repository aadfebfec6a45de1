"""Base training and cold start of the miniature's models, each a job for a process of its own that reports its progress into a file."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from longshort.config import LongShortConfig
from longshort.learning.samples import sample_of
from longshort.learning.supervised import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import FINAL_NOTICE, build_tokenizer
from longshort.miniature.world import GAP, compressed_trace, dialogue, hard_parts, make_problems, teacher_trace
from longshort.team.protocols import (
    END_ANSWER,
    END_THINK,
    RETHINK,
    LongShort,
    Solo,
    demonstration,
    encode_plain,
    encode_problem,
    special_ids,
)
from longshort.types import LONG, ROLES, SHORT, Problem, Sample

PROGRESS = "progress.json"


def solo_samples(
    config: LongShortConfig, role: str, write: Callable[[Problem, random.Random], str], problems: Sequence[Problem]
) -> list[Sample]:
    """One solo solution per problem, `write(problem, rng)`, in the role's own tokens."""
    rng, tokenizer = random.Random(f"{config.seed}/{role}/{write.__name__}"), build_tokenizer(role)
    protocol = Solo(role=role, turn_tokens=config.long.engine.max_model_len)
    episodes = (demonstration(problem, [(role, write(problem, rng), "eos")], protocol, {role: tokenizer}) for problem in problems)
    return [sample_of(episode, role, 0.0) for episode in episodes]


def reading_samples(problems: Sequence[Problem], redundancy: float) -> list[Sample]:
    """The short model's base: solutions, half of them terse, in which the long thoughts are given (mask 0) and only the totals are
    learned, and where to hand over (`</rethink>` before each further product).

    So it adds and reads, but never learns to multiply: alone it is fast and wrong, which is what a short thinker is.
    """
    tokenizer, rng, samples = build_tokenizer(SHORT), random.Random(0), []
    after = {END_THINK: encode_plain(tokenizer, GAP), END_ANSWER: (tokenizer.eos_token_id,)} | {
        RETHINK: (special_ids(tokenizer, (RETHINK,))[RETHINK],)
    }
    for problem in problems:
        ids = list(encode_problem(tokenizer, "", problem.question))
        mask = [0] * len(ids)
        for role, text, stop in dialogue(problem, rng, rng.choice((0.0, redundancy))):
            part = encode_plain(tokenizer, text) + after[stop]
            ids += part
            mask += [int(role == SHORT)] * len(part)
        zeros = (0.0,) * len(ids)
        samples.append(Sample(role=SHORT, token_ids=tuple(ids), mask=tuple(mask), logprobs=zeros, advantages=zeros))
    return samples


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


def train_base(config: LongShortConfig, role: str, folder: str) -> None:
    """A model of the role's shape from random weights; saved into `folder`.

    The long model learns terse solutions first, then the verbose teacher's: from verbose traces alone, whether it ever finds the right
    digit in a long text is a matter of luck with the seed. The short model learns by reading (see `reading_samples`).
    """
    mini, shape = config.miniature, getattr(config.miniature, role)
    tokenizer = build_tokenizer(role)
    model = build_model(tokenizer, shape, config.seed, max_position_embeddings=config.role(role).engine.max_model_len)
    problems = make_problems("train", mini.num_train, config.seed)
    if role == LONG:
        _fit(model, solo_samples(config, role, compressed_trace, problems), folder, config, shape.terse_steps, shape.base_learning_rate)
        _fit(model, solo_samples(config, role, teacher_trace, problems), folder, config, shape.base_steps, shape.base_learning_rate)
    else:
        _fit(model, reading_samples(problems, mini.redundancy), folder, config, shape.base_steps, shape.base_learning_rate)
    save(model, tokenizer, folder)


def train_cold_start(config: LongShortConfig, role: str, base: str, folder: str) -> None:
    """The base model taught its half of the dialogue; saved into `folder`."""
    from transformers import AutoModelForCausalLM

    mini, shape = config.miniature, getattr(config.miniature, role)
    model = AutoModelForCausalLM.from_pretrained(base)
    samples = cold_start_samples(config, role, make_problems("train", mini.cold_start_episodes, config.seed + 1))
    _fit(model, samples, folder, config, shape.cold_start_steps, shape.cold_start_learning_rate)
    save(model, build_tokenizer(role), folder)


def _fit(model, samples: list[Sample], folder: str, config: LongShortConfig, steps: int, learning_rate: float) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    shown = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal shown
        if time.monotonic() - shown > 1.0 or step + 1 == steps:
            shown = time.monotonic()
            partial = Path(folder) / f".{PROGRESS}"
            partial.write_text(json.dumps({"step": step + 1, "steps": steps, "loss": loss}))
            os.replace(partial, Path(folder) / PROGRESS)

    batch = config.miniature.batch_size
    fit(model, samples, steps=steps, batch_size=batch, learning_rate=learning_rate, seed=config.seed, on_step=report)
