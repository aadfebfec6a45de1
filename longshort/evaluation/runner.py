"""Held-out problems through a pair, or through a single model: every episode graded, and kept as soon as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshort.dialogue.rollout import Decoding, Engine, run_episode, stable_seed
from longshort.runs.episodes import EpisodeLine, episode_row
from longshort.runs.ledger import Ledger
from longshort.types import Episode, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Graded episodes, `num_samples` per problem, problem by problem."""

    episodes: tuple[Episode, ...]
    correct: tuple[bool, ...]
    num_samples: int


async def evaluate(
    policies: Mapping[str, Engine],
    protocol,
    problems: Sequence[Problem],
    pool,
    decoding: Decoding,
    *,
    num_samples: int = 1,
    seed: int = 0,
    keep: Callable[[str, int, Episode, bool, str], None] = lambda *_: None,
    done: frozenset[str] | set[str] = frozenset(),
) -> Evaluation:
    """Run every problem `num_samples` times and grade each final answer; same seed and problems give the same episodes.

    `keep(key, sample, episode, correct, reason)` is called as each is graded; `reason` is the grader's, or why the episode has no
    answer. Attempts whose key stands in `done` are left out, here and in what is returned.
    """

    async def attempt(problem: Problem, sample: int) -> tuple[Episode, bool]:
        episode = await run_episode(problem, policies, protocol, decoding, stable_seed(seed, problem.id, sample))
        correct, reason = False, episode.stop
        if episode.stop == "answered":
            verdict = await pool.grade(problem.answer, protocol.final_text(episode))
            correct, reason = verdict.correct, verdict.reason
        keep(attempt_key(problem, sample), sample, episode, correct, reason)
        return episode, correct

    todo = [
        (problem, sample)
        for problem in problems
        for sample in range(num_samples)
        if attempt_key(problem, sample) not in done
    ]
    tasks = [asyncio.ensure_future(attempt(*each)) for each in todo]
    try:
        graded = await asyncio.gather(*tasks)
    finally:  # at the first error, or when the run is stopped, nobody may go on asking engines that are about to close
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Evaluation(
        episodes=tuple(episode for episode, _ in graded),
        correct=tuple(correct for _, correct in graded),
        num_samples=num_samples,
    )


def attempt_key(problem: Problem, sample: int) -> str:
    """The id of an attempt's line."""
    return f"{problem.id}#{sample}"


def write_to(ledger: Ledger) -> Callable[[str, int, Episode, bool, str], None]:
    """A `keep` for `evaluate` that writes each attempt's line."""

    def keep(key: str, sample: int, episode: Episode, correct: bool, reason: str) -> None:
        ledger.append({"id": key, "reason": reason, "correct": correct, "sample": sample, **episode_row(episode)})

    return keep


def evaluation_of(rows: Mapping[str, Mapping[str, Any]], problems: Sequence[Problem], num_samples: int) -> Evaluation:
    """The evaluation that a complete ledger's lines hold."""
    ordered = [rows[attempt_key(problem, sample)] for problem in problems for sample in range(num_samples)]
    return Evaluation(
        episodes=tuple(EpisodeLine.model_validate(row).episode for row in ordered),
        correct=tuple(bool(row["correct"]) for row in ordered),
        num_samples=num_samples,
    )
