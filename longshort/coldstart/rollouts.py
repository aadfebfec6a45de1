"""Monte-Carlo rollouts: continues every prefix of a trace many times, counts right answers (arXiv 2505.11827, 3.2)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from longshort.coldstart.records import OK, ChunkLine, Refused, RolloutLine
from longshort.coldstart.traces import unwrapped
from longshort.dialogue.encoding import THINK, encode_opening, encode_plain
from longshort.dialogue.rollout import Engine, stable_seed
from longshort.grading.boxes import last_boxed
from longshort.grading.pool import GradingPool
from longshort.recipe.coldstart import ImportanceConfig
from longshort.types import Sampling

JUDGED = ("match", "mismatch", "no_answer")
"""Verdicts about the answer; all others are about the grading and are counted."""


async def roll_out(
    chunks: ChunkLine, engine: Engine, pool: GradingPool, settings: ImportanceConfig, *, tags: str, seed: int
) -> RolloutLine:
    """Make all rollouts of one trace at once: the engine batches them with those of other traces and caches shared
    prefixes.

    The prompt is the chat template's, then an open `<think>` and the prefix, which the model continues. Raises Refused
    when the longest prefix and `max_tokens` exceed the context (a cut continuation would count as a wrong one), or a
    thought has no token.
    """
    problem, tokenizer = chunks.problem, engine.tokenizer
    thoughts = unwrapped([thought.text for thought in chunks.thoughts])
    opening = encode_opening(tokenizer, settings.instructions, problem.question, THINK, tags)
    prefixes = encode_prefixes(tokenizer, thoughts)
    tokens = tuple(len(after) - len(before) for before, after in pairwise(prefixes))
    _check_room(len(opening) + len(prefixes[-1]), tokens, settings, engine.context)
    boxed = [last_boxed("".join(thoughts[:index])) for index in range(len(prefixes))]
    ungraded: Counter[str] = Counter()

    async def one(index: int, number: int) -> tuple[bool, int, bool]:
        sampling = Sampling(
            max_tokens=settings.max_tokens,
            stop=(),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=stable_seed(seed, index, number),
        )
        completion = await engine.generate(opening + prefixes[index], sampling)
        answer = completion.text
        if last_boxed(answer) is None and boxed[index] is not None:
            answer = f"\\boxed{{{boxed[index]}}}"  # the prefix has answered already
        verdict = await pool.grade(problem.answer, answer)
        if verdict.reason not in JUDGED:
            ungraded[verdict.reason] += 1
        return verdict.correct, len(completion.token_ids), completion.stop == "length"

    async def prefix(index: int) -> tuple[int, float, int]:
        made = await asyncio.gather(*(one(index, number) for number in range(settings.num_rollouts)))
        right, lengths, cut = zip(*made, strict=True)
        return sum(right), sum(lengths) / len(lengths), sum(cut)

    correct, length, cut_off = zip(*await asyncio.gather(*map(prefix, range(len(prefixes)))), strict=True)
    return RolloutLine(
        id=chunks.id,
        outcome=OK,
        n=settings.num_rollouts,
        tokens=tokens,
        correct=correct,
        length=length,
        cut_off=cut_off,
        ungraded=dict(ungraded),
    )


def _check_room(longest: int, tokens: Sequence[int], settings: ImportanceConfig, context: int) -> None:
    if longest + settings.max_tokens > context:
        raise Refused(
            "context",
            f"problem and trace take {longest:,} tokens and a rollout {settings.max_tokens:,} (importance.max_tokens), "
            f"the rollout model's context is {context:,}",
        )
    if min(tokens) < 1:
        raise Refused("empty_thought", f"thought {tokens.index(min(tokens)) + 1} has no token for the rollout model")


def encode_prefixes(tokenizer: Any, thoughts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the ids of every prefix, the empty one first.

    Thoughts are encoded one by one, so that each prefix's ids begin with those of the one before and the engine's cache
    hits. A tokenizer that changes text at such seams (puts a space before each piece) gets every prefix whole instead.
    """
    prefixes: list[tuple[int, ...]] = [()]
    for thought in thoughts:
        prefixes.append(prefixes[-1] + encode_plain(tokenizer, thought))
    text = "".join(thoughts)
    if tokenizer.decode(prefixes[-1]) == tokenizer.decode(encode_plain(tokenizer, text)):
        return prefixes
    return [encode_plain(tokenizer, "".join(thoughts[:index])) for index in range(len(thoughts) + 1)]
