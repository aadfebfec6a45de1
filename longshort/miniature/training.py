"""Base training of the miniature's models: each is a job in its own process that writes its progress to a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK, THINK, encode_plain, encode_problem, special_ids
from longshort.miniature.fitting import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import EOS, build_tokenizer
from longshort.miniature.world import GAP, compressed_trace, dialogue, direct_ending, make_problems, teacher_trace
from longshort.recipe.schema import LongShortConfig
from longshort.runs.job_progress import JobProgress
from longshort.types import LONG, SHORT, LongShortError, Problem, Sample


def solo_samples(
    config: LongShortConfig, role: str, write: Callable[[Problem, random.Random], str], problems: Sequence[Problem]
) -> list[Sample]:
    """Make one solo solution per problem, `write(problem, rng)`, in the role's own tokens."""
    rng, tokenizer = random.Random(f"{config.seed}/{role}/{write.__name__}"), build_tokenizer(role)
    end = special_ids(tokenizer, (EOS,))
    return [
        _sample(
            role,
            (encode_problem(tokenizer, "", problem.question), 0),
            (encode_plain(tokenizer, write(problem, rng)) + end, 1),
        )
        for problem in problems
    ]


def reading_samples(problems: Sequence[Problem], redundancy: float = 0.45) -> list[Sample]:
    """Make dialogues, half of them terse, of which the short model learns its own part and only reads the long one's.

    So it learns to add, to read and to hand over (`</rethink>` before each further product), but never to multiply:
    alone it is fast and wrong, as a short thinker is.
    """
    tokenizer, rng, samples = build_tokenizer(SHORT), random.Random(0), []
    closing = {
        END_THINK: encode_plain(tokenizer, GAP),
        END_ANSWER: special_ids(tokenizer, (EOS,)),
        RETHINK: special_ids(tokenizer, (RETHINK,)),
    }
    for problem in problems:
        parts = [(encode_problem(tokenizer, "", problem.question), 0)]
        for role, text, stop in dialogue(problem, rng, rng.choice((0.0, redundancy))):
            parts.append((encode_plain(tokenizer, text) + closing[stop], int(role == SHORT)))
        samples.append(_sample(SHORT, *parts))
    return samples


def direct_samples(problems: Sequence[Problem]) -> list[Sample]:
    """Make endings for the quick thinker of the importance rollouts: from any prefix of a long trace to the answer.

    The short model reads the prefix behind an open `<think>` and learns what follows it, guesses included.
    """
    tokenizer, rng, samples = build_tokenizer(SHORT), random.Random(1), []
    think, end = special_ids(tokenizer, (THINK,)), special_ids(tokenizer, (EOS,))
    for problem in problems:
        thoughts = teacher_trace(problem, rng).split(GAP)[:-1]
        given = "".join(thought + GAP for thought in thoughts[: rng.randint(0, len(thoughts))])
        prompt = encode_problem(tokenizer, "", problem.question) + think + encode_plain(tokenizer, given)
        samples.append(_sample(SHORT, (prompt, 0), (encode_plain(tokenizer, direct_ending(problem, given)) + end, 1)))
    return samples


def _sample(role: str, *parts: tuple[tuple[int, ...], int]) -> Sample:
    """Join (token ids, mask) pairs into a sample."""
    ids = tuple(token for part, _ in parts for token in part)
    mask = tuple(bit for part, bit in parts for _ in part)
    zeros = (0.0,) * len(ids)
    return Sample(role=role, token_ids=ids, mask=mask, logprobs=zeros, advantages=zeros)


def train_base(config: LongShortConfig, role: str, folder: str) -> None:
    """Train a model of the role's shape from random weights and save it into `folder`.

    The long model learns terse solutions first, then the verbose teacher's. From verbose traces alone it is luck, with
    the seed, whether it learns to pick the right digit in a long text. The short model learns to read solutions and to
    end them at once, half and half (see `reading_samples`, `direct_samples`).
    """
    mini = config.miniature
    if mini is None:
        raise LongShortError("base models are the miniature's, but the recipe has no section `miniature:`; add it")
    shape, tokenizer, batch_size = getattr(mini, role), build_tokenizer(role), mini.batch_size
    model = build_model(tokenizer, shape, config.seed, max_position_embeddings=config.role(role).engine.max_model_len)

    def learn(samples: list[Sample], steps: int) -> None:
        progress = JobProgress(folder)
        fit(
            model,
            samples,
            steps=steps,
            batch_size=batch_size,
            learning_rate=shape.base_learning_rate,
            seed=config.seed,
            on_step=lambda step, loss: progress(step + 1, steps, loss),
        )

    problems = make_problems("train", mini.num_train, config.seed)
    if role == LONG:
        learn(solo_samples(config, role, compressed_trace, problems), shape.terse_steps)
        learn(solo_samples(config, role, teacher_trace, problems), shape.base_steps)
    else:
        half = len(problems) // 2
        learn(reading_samples(problems[:half]) + direct_samples(problems[half:]), shape.base_steps)
    save(model, tokenizer, folder)
