"""Base training and cold start of the miniature's models, each a job for a process of its own that reports its progress into a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK, THINK, encode_plain, encode_problem, special_ids
from longshort.dialogue.protocols import demonstration
from longshort.dialogue.solo import Solo
from longshort.learning.samples import sample_of
from longshort.learning.supervised import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import build_tokenizer
from longshort.miniature.world import GAP, compressed_trace, dialogue, direct_ending, make_problems, teacher_trace
from longshort.recipe.schema import LongShortConfig
from longshort.runs.job_progress import JobProgress
from longshort.types import LONG, SHORT, Problem, Sample


def solo_samples(
    config: LongShortConfig, role: str, write: Callable[[Problem, random.Random], str], problems: Sequence[Problem]
) -> list[Sample]:
    """One solo solution per problem, `write(problem, rng)`, in the role's own tokens."""
    rng, tokenizer = random.Random(f"{config.seed}/{role}/{write.__name__}"), build_tokenizer(role)
    protocol = Solo(role=role, turn_tokens=config.long.engine.max_model_len)
    episodes = (
        demonstration(problem, [(role, write(problem, rng), "eos")], protocol, {role: tokenizer})
        for problem in problems
    )
    return [sample_of(episode, role, 0.0) for episode in episodes]


def reading_samples(problems: Sequence[Problem], redundancy: float = 0.45) -> list[Sample]:
    """The short model's base: solutions, half of them terse, in which the long thoughts are given (mask 0) and only the totals are
    learned, and where to hand over (`</rethink>` before each further product).

    So it adds and reads, but never learns to multiply: alone it is fast and wrong, which is what a short thinker is.
    """
    tokenizer, rng, samples = build_tokenizer(SHORT), random.Random(0), []
    after = {END_THINK: encode_plain(tokenizer, GAP), END_ANSWER: (tokenizer.eos_token_id,)} | {
        RETHINK: special_ids(tokenizer, (RETHINK,))
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


def direct_samples(problems: Sequence[Problem]) -> list[Sample]:
    """The short model as the quick thinker of the importance rollouts: from any prefix of a long trace straight to the answer.

    The prefix stands behind an open `<think>` and is given (mask 0); what follows it is learned, guesses included.
    """
    tokenizer, rng, samples = build_tokenizer(SHORT), random.Random(1), []
    think = special_ids(tokenizer, (THINK,))
    for problem in problems:
        thoughts = teacher_trace(problem, rng).split(GAP)[:-1]
        given = "".join(thought + GAP for thought in thoughts[: rng.randint(0, len(thoughts))])
        prompt = encode_problem(tokenizer, "", problem.question) + think + encode_plain(tokenizer, given)
        ending = encode_plain(tokenizer, direct_ending(problem, given)) + (tokenizer.eos_token_id,)
        zeros = (0.0,) * (len(prompt) + len(ending))
        mask = (0,) * len(prompt) + (1,) * len(ending)
        samples.append(Sample(role=SHORT, token_ids=prompt + ending, mask=mask, logprobs=zeros, advantages=zeros))
    return samples


def train_base(config: LongShortConfig, role: str, folder: str) -> None:
    """A model of the role's shape from random weights; saved into `folder`.

    The long model learns terse solutions first, then the verbose teacher's: from verbose traces alone, whether it ever finds the right
    digit in a long text is a matter of luck with the seed. The short model learns to read solutions and to end them at once, half and half
    (see `reading_samples`, `direct_samples`).
    """
    mini, shape = config.miniature, getattr(config.miniature, role)
    tokenizer = build_tokenizer(role)
    model = build_model(tokenizer, shape, config.seed, max_position_embeddings=config.role(role).engine.max_model_len)
    problems = make_problems("train", mini.num_train, config.seed)
    if role == LONG:
        _fit(
            model,
            solo_samples(config, role, compressed_trace, problems),
            folder,
            config,
            shape.terse_steps,
            shape.base_learning_rate,
        )
        _fit(
            model,
            solo_samples(config, role, teacher_trace, problems),
            folder,
            config,
            shape.base_steps,
            shape.base_learning_rate,
        )
    else:
        half = len(problems) // 2
        samples = reading_samples(problems[:half]) + direct_samples(problems[half:])
        _fit(model, samples, folder, config, shape.base_steps, shape.base_learning_rate)
    save(model, tokenizer, folder)


def _fit(model, samples: list[Sample], folder: str, config: LongShortConfig, steps: int, learning_rate: float) -> None:
    progress = JobProgress(folder)
    batch = config.miniature.batch_size
    fit(
        model,
        samples,
        steps=steps,
        batch_size=batch,
        learning_rate=learning_rate,
        seed=config.seed,
        on_step=lambda step, loss: progress(step + 1, steps, loss),
    )
