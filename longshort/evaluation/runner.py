"""Held-out problems through a pair, or through a single model: every episode, graded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longshort.team.rollout import Decoding, Engine, run_episode, stable_seed
from longshort.types import Episode, Problem

EVALUATION_SEED = 2024
"""Sampling seed of every evaluation, so that two systems meet the same problems with the same dice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Graded episodes, `num_samples` per problem, problem by problem."""

    episodes: tuple[Episode, ...]
    correct: tuple[bool, ...]
    num_samples: int


async def evaluate(
    policies: Mapping[str, Engine], protocol, problems: Sequence[Problem], pool, decoding: Decoding, *, num_samples: int = 1, seed: int = 0
) -> Evaluation:
    """Run every problem `num_samples` times and grade each final answer; same seed and problems give the same episodes."""
    attempts = [(problem, index) for problem in problems for index in range(num_samples)]
    episodes = await asyncio.gather(
        *(run_episode(problem, policies, protocol, decoding, stable_seed(seed, problem.id, index)) for problem, index in attempts)
    )
    verdicts = await asyncio.gather(
        *(pool.grade(episode.problem.answer, protocol.final_text(episode)) for episode in episodes if episode.stop == "answered")
    )
    graded = iter(verdicts)
    correct = tuple(episode.stop == "answered" and next(graded).correct for episode in episodes)
    return Evaluation(episodes=tuple(episodes), correct=correct, num_samples=num_samples)
