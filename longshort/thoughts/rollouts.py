"""Monte-Carlo rollouts: continue every prefix of a trace many times and count the right answers (arXiv 2505.11827, section 3.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from longshort.team.grading import GradingPool
from longshort.team.protocols import THINK, encode_plain, encode_problem, encode_tag
from longshort.team.rollout import Engine, stable_seed
from longshort.thoughts.settings import ImportanceConfig
from longshort.types import Problem, Sampling


class DoesNotFit(ValueError):
    """The trace is longer than the rollout model's context; the message has both numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What the rollouts of one trace found. One entry per prefix, the empty one (P_0) first.

    `correct[i]` of `settings.num_rollouts` continuations of prefix i were right; `length[i]` is their mean number of generated tokens, the
    prefix not counted; `tokens` has d_1..d_n, the thoughts' lengths in the rollout model's tokens.
    """

    tokens: tuple[int, ...]
    correct: tuple[int, ...]
    length: tuple[float, ...]


async def roll_out(
    problem: Problem, thoughts: Sequence[str], engine: Engine, pool: GradingPool, settings: ImportanceConfig, *, tags: str, seed: int
) -> Rollouts:
    """All rollouts of one trace at once: the engine batches them with those of other traces and caches what the prefixes share.

    The prompt is the chat template's, then an open `<think>` and the prefix, which the model continues. A thought is encoded alone, so
    that each prefix's ids begin with those of the one before. Raises DoesNotFit when the longest prefix leaves no room in the context.
    """
    tokenizer = engine.tokenizer
    prompts = [encode_problem(tokenizer, settings.instructions, problem.question) + encode_tag(tokenizer, THINK, tags)]
    pieces = [encode_plain(tokenizer, thought) for thought in thoughts]
    for piece in pieces:
        prompts.append(prompts[-1] + piece)
    if len(prompts[-1]) >= engine.context:
        raise DoesNotFit(f"problem and trace take {len(prompts[-1]):,} tokens, the rollout model's context is {engine.context:,}")

    async def one(index: int, number: int) -> tuple[bool, int]:
        completion = await engine.generate(prompts[index], _sampling(settings, engine, prompts[index], stable_seed(seed, index, number)))
        verdict = await pool.grade(problem.answer, "".join(thoughts[:index]) + completion.text)
        return verdict.correct, len(completion.token_ids)

    async def prefix(index: int) -> tuple[int, float]:
        outcomes = await asyncio.gather(*(one(index, number) for number in range(settings.num_rollouts)))
        return sum(right for right, _ in outcomes), sum(length for _, length in outcomes) / len(outcomes)

    counted = await asyncio.gather(*(prefix(index) for index in range(len(prompts))))
    return Rollouts(tokens=tuple(map(len, pieces)), correct=tuple(c for c, _ in counted), length=tuple(length for _, length in counted))


def _sampling(settings: ImportanceConfig, engine: Engine, prompt: Sequence[int], seed: int) -> Sampling:
    room = min(settings.max_tokens, engine.context - len(prompt))
    return Sampling(max_tokens=room, stop=(), temperature=settings.temperature, top_p=settings.top_p, seed=seed)
