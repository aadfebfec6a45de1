"""Held-out problems through a pair or a single model: every episode is graded, and written down at once if there is a
ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshort.dialogue.rollout import Decoding, Engine, run_episode, stable_seed
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.records import GradedLine
from longshort.grading.pool import GradingPool
from longshort.runs.episodes import episode_row
from longshort.runs.ledger import Ledger
from longshort.types import Episode, Problem
from longshort.waiting import gather_or_cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Graded episodes, `num_samples` per problem, problem by problem."""

    episodes: tuple[Episode, ...]
    correct: tuple[bool, ...]
    num_samples: int


async def evaluate(
    policies: Mapping[str, Engine],
    protocol: TurnProtocol,
    problems: Sequence[Problem],
    pool: GradingPool,
    decoding: Decoding,
    *,
    num_samples: int = 1,
    seed: int = 0,
    ledger: Ledger | None = None,
) -> Evaluation:
    """Run every problem `num_samples` times and grade each final answer; the same seed and problems give the same
    episodes.

    A ledger gets a line per attempt as it is graded. Attempts that it already holds are not made again, nor returned
    here.
    """

    async def attempt(problem: Problem, sample: int) -> tuple[Episode, bool]:
        episode = await run_episode(problem, policies, protocol, decoding, stable_seed(seed, problem.id, sample))
        correct, reason = False, episode.stop
        if episode.stop == "answered":
            verdict = await pool.grade(problem.answer, protocol.final_text(episode))
            correct, reason = verdict.correct, verdict.reason
        if ledger:
            verdict = {"reason": reason, "correct": correct, "sample": sample}
            ledger.append({"id": attempt_key(problem, sample), **verdict, **episode_row(episode)})
        return episode, correct

    done = set(ledger.rows) if ledger else set()
    attempts = [(problem, sample) for problem in problems for sample in range(num_samples)]
    todo = [(problem, sample) for problem, sample in attempts if attempt_key(problem, sample) not in done]
    # at the first error, or when the run is stopped, every attempt ends before the engines close
    graded = await gather_or_cancel(*(attempt(problem, sample) for problem, sample in todo))
    return _evaluation(graded, num_samples)


def attempt_key(problem: Problem, sample: int) -> str:
    """Return the id of an attempt's line."""
    return f"{problem.id}#{sample}"


def evaluation_of(rows: Mapping[str, Any], problems: Sequence[Problem], num_samples: int) -> Evaluation:
    """Return the evaluation that the rows of a complete ledger hold; `rows` are by attempt."""
    keys = [attempt_key(problem, sample) for problem in problems for sample in range(num_samples)]
    lines = [GradedLine.model_validate(rows[key]) for key in keys]
    return _evaluation([(line.episode, line.correct) for line in lines], num_samples)


def _evaluation(graded: Sequence[tuple[Episode, bool]], num_samples: int) -> Evaluation:
    episodes, correct = zip(*graded, strict=True) if graded else ((), ())
    return Evaluation(episodes=episodes, correct=correct, num_samples=num_samples)
