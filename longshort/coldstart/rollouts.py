"""Monte-Carlo rollouts: continue every prefix of a trace many times and count the right answers (arXiv 2505.11827, section 3.2)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from longshort.dialogue.answers import last_boxed
from longshort.dialogue.encoding import THINK, encode_plain, encode_problem, encode_tag
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import Engine, stable_seed
from longshort.recipe.coldstart import ImportanceConfig
from longshort.types import Problem, Sampling

JUDGED = ("match", "mismatch", "no_answer")
"""Verdicts that say something about the answer; any other says something about the grading and is counted."""


class CannotRoll(ValueError):
    """Nothing can be rolled out from this trace. `outcome` names why, the message has the numbers."""

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What the rollouts of one trace found. One entry per prefix, the empty one (P_0) first.

    `correct[i]` of `settings.num_rollouts` continuations of prefix i were right; `length[i]` is their mean number of generated tokens, the
    prefix not counted; `cut_off[i]` of them reached `max_tokens`; `tokens` has d_1..d_n, the thoughts' lengths in the rollout model's
    tokens; `ungraded` counts verdicts that came of the grading and not of the answer (timeout, memory, …), all taken as wrong.
    """

    tokens: tuple[int, ...]
    correct: tuple[int, ...]
    length: tuple[float, ...]
    cut_off: tuple[int, ...]
    ungraded: Mapping[str, int]


async def roll_out(
    problem: Problem,
    thoughts: Sequence[str],
    engine: Engine,
    pool: GradingPool,
    settings: ImportanceConfig,
    *,
    tags: str,
    seed: int,
) -> Rollouts:
    """All rollouts of one trace at once: the engine batches them with those of other traces and caches what the prefixes share.

    The prompt is the chat template's, then an open `<think>` and the prefix, which the model continues. Raises CannotRoll when the
    longest prefix and `max_tokens` exceed the context (a cut continuation would count as a wrong one), or a thought has no token.
    """
    opening = encode_problem(engine.tokenizer, settings.instructions, problem.question) + encode_tag(
        engine.tokenizer, THINK, tags
    )
    prefixes = encode_prefixes(engine.tokenizer, thoughts)
    tokens = tuple(len(after) - len(before) for before, after in pairwise(prefixes))
    longest = len(opening) + len(prefixes[-1])
    if longest + settings.max_tokens > engine.context:
        raise CannotRoll(
            "context",
            f"problem and trace take {longest:,} tokens and a rollout {settings.max_tokens:,} (importance.max_tokens), the rollout model's "
            f"context is {engine.context:,}",
        )
    if min(tokens) < 1:
        raise CannotRoll("empty_thought", f"thought {tokens.index(min(tokens)) + 1} has no token for the rollout model")
    boxed = [last_boxed("".join(thoughts[:index])) for index in range(len(prefixes))]
    ungraded: Counter[str] = Counter()

    async def one(index: int, number: int) -> tuple[bool, int, bool]:
        prompt, seeded = opening + prefixes[index], stable_seed(seed, index, number)
        completion = await engine.generate(prompt, _sampling(settings, seeded))
        written = (
            completion.text
            if last_boxed(completion.text) is not None or boxed[index] is None
            else f"\\boxed{{{boxed[index]}}}"
        )
        verdict = await pool.grade(problem.answer, written)
        if verdict.reason not in JUDGED:
            ungraded[verdict.reason] += 1
        return verdict.correct, len(completion.token_ids), completion.stop == "length"

    async def prefix(index: int) -> tuple[int, float, int]:
        right, lengths, cut = zip(
            *await asyncio.gather(*(one(index, n) for n in range(settings.num_rollouts))), strict=True
        )
        return sum(right), sum(lengths) / len(lengths), sum(cut)

    correct, length, cut_off = zip(*await asyncio.gather(*map(prefix, range(len(prefixes)))), strict=True)
    return Rollouts(tokens=tokens, correct=correct, length=length, cut_off=cut_off, ungraded=dict(ungraded))


def encode_prefixes(tokenizer, thoughts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of every prefix, the empty one first.

    Thoughts are encoded one by one, so that each prefix's ids begin with those of the one before and the engine's cache hits. A tokenizer
    that changes text at such seams (a space put before each piece) gets every prefix whole instead.
    """
    prefixes: list[tuple[int, ...]] = [()]
    for thought in thoughts:
        prefixes.append(prefixes[-1] + encode_plain(tokenizer, thought))
    text = "".join(thoughts)
    if tokenizer.decode(prefixes[-1]) == tokenizer.decode(encode_plain(tokenizer, text)):
        return prefixes
    return [encode_plain(tokenizer, "".join(thoughts[:index])) for index in range(len(thoughts) + 1)]


def _sampling(settings: ImportanceConfig, seed: int) -> Sampling:
    return Sampling(
        max_tokens=settings.max_tokens, stop=(), temperature=settings.temperature, top_p=settings.top_p, seed=seed
    )
