"""Episodes as JSON lines: training and evaluations write them, reports and interrupted evaluations read them back.

    {"problem": {"id": …, "question": …, "answer": …}, "stop": "answered", "turns": [{"role": "long", "text": …,
     "stop": "</think>", "version": 3, "context_ids": […], "token_ids": […], "logprobs": […]}, …]}

`context_ids` are the prompt's ids that the role had not read or written before this turn. Prompts only grow, so they
can be rebuilt exactly, and a line is as long as its dialogue, not as long as all its prompts. Log-probs are kept to
four decimals. A turn during which new weights arrived also has "updates": how many of its tokens existed at each
arrival.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from longshort.types import Completion, Episode, Problem, Turn

DECIMALS = 4


class ProblemLine(BaseModel):
    """The problem of an episode."""

    id: str
    question: str
    answer: str


class TurnLine(BaseModel):
    """One turn of an episode; its fields are those of `Turn` and `Completion` (longshort/types.py)."""

    role: str
    text: str
    stop: str
    version: int
    context_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    updates: tuple[int, ...] = ()


class EpisodeLine(BaseModel):
    """An episode. Lines of training and of evaluations add what they know about it; unknown keys are left out."""

    model_config = ConfigDict(extra="ignore")

    problem: ProblemLine
    stop: str
    turns: tuple[TurnLine, ...]

    @classmethod
    def of(cls, episode: Episode) -> EpisodeLine:
        """Make an episode's line; ValueError if a role's prompt does not begin with what it read and wrote before."""
        seen: dict[str, tuple[int, ...]] = {}
        turns = []
        for turn in episode.turns:
            before, completion = seen.get(turn.role, ()), turn.completion
            if turn.prompt_ids[: len(before)] != before:
                raise ValueError(
                    f"problem {episode.problem.id}: a prompt of {turn.role!r} does not begin with the {len(before)} "
                    "ids that it read and wrote before; rendering must be append-only (dialogue/protocols.py)"
                )
            turns.append(
                TurnLine(
                    role=turn.role,
                    text=completion.text,
                    stop=completion.stop,
                    version=completion.version,
                    context_ids=turn.prompt_ids[len(before) :],
                    token_ids=completion.token_ids,
                    logprobs=tuple(round(value, DECIMALS) for value in completion.logprobs),
                    updates=completion.updates,
                )
            )
            seen[turn.role] = turn.prompt_ids + completion.token_ids
        return EpisodeLine(problem=ProblemLine(**asdict(episode.problem)), stop=episode.stop, turns=tuple(turns))

    @property
    def episode(self) -> Episode:
        """The episode, with its prompts rebuilt."""
        seen: dict[str, tuple[int, ...]] = {}
        turns = []
        for turn in self.turns:
            prompt_ids = seen.get(turn.role, ()) + turn.context_ids
            fields = turn.model_dump(include={"token_ids", "logprobs", "text", "stop", "version", "updates"})
            turns.append(Turn(role=turn.role, prompt_ids=prompt_ids, completion=Completion(**fields)))
            seen[turn.role] = prompt_ids + turn.token_ids
        return Episode(problem=Problem(**self.problem.model_dump()), turns=tuple(turns), stop=self.stop)


class TrainingLine(EpisodeLine):
    """An episode of a training step, with its total reward and advantage by role and the reward's terms.

    `gaps`, for roles that were trained on it: the learner's log-prob minus the engine's of each token
    (TorchLearner.gaps).
    """

    step: int
    reward: dict[str, float]
    terms: dict[str, float]
    advantages: dict[str, float]
    gaps: dict[str, list[float]] = {}


def episode_row(episode: Episode) -> dict[str, Any]:
    """Return the JSON form of an episode; the writer adds what else it knows (step, reward, verdict)."""
    return EpisodeLine.of(episode).model_dump(exclude_defaults=True)
