"""Episodes as JSON lines: what training and evaluations write, and what reports and interrupted evaluations read back.

    {"problem": {"id": …, "question": …, "answer": …}, "stop": "answered",
     "turns": [{"role": "long", "text": …, "stop": "</think>", "version": 3, "context_ids": […], "token_ids": […], "logprobs": […]}, …]}

`context_ids` are the prompt's ids that the role had not seen or written before this turn. Rendering is append-only, so prompts can be put
together again exactly, and a line is as long as its dialogue, not as long as all its prompts. Log-probs are kept to four decimals.
A turn during which new weights arrived also has "updates": how many of its tokens stood at each arrival; `version` began it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from longshort.types import Completion, Episode, Problem, Turn

DECIMALS = 4


def episode_row(episode: Episode) -> dict[str, Any]:
    """The JSON form of an episode; what else is known about it (step, reward, verdict) is added by who writes it."""
    seen: dict[str, tuple[int, ...]] = {}
    turns = []
    for turn in episode.turns:
        before, completion = seen.get(turn.role, ()), turn.completion
        if turn.prompt_ids[: len(before)] != before:
            raise ValueError(
                f"problem {episode.problem.id}: a prompt of {turn.role!r} does not begin with the {len(before)} ids that it read and wrote "
                "before; rendering must be append-only (dialogue/protocols.py)"
            )
        turns.append(
            {
                "role": turn.role,
                "text": completion.text,
                "stop": completion.stop,
                "version": completion.version,
                "context_ids": turn.prompt_ids[len(before) :],
                "token_ids": completion.token_ids,
                "logprobs": [round(value, DECIMALS) for value in completion.logprobs],
            }
        )
        if completion.updates:
            turns[-1]["updates"] = completion.updates
        seen[turn.role] = turn.prompt_ids + completion.token_ids
    return {"problem": asdict(episode.problem), "stop": episode.stop, "turns": turns}


def episode_of(row: Mapping[str, Any]) -> Episode:
    """The episode of a line, whatever else stands in it. Raises KeyError, TypeError or ValueError for a line that is none."""
    seen: dict[str, tuple[int, ...]] = {}
    turns = []
    for turn in row["turns"]:
        prompt_ids = seen.get(turn["role"], ()) + tuple(turn["context_ids"])
        completion = Completion(
            token_ids=tuple(turn["token_ids"]),
            logprobs=tuple(turn["logprobs"]),
            text=turn["text"],
            stop=turn["stop"],
            version=turn["version"],
            updates=tuple(turn.get("updates", ())),
        )
        turns.append(Turn(role=turn["role"], prompt_ids=prompt_ids, completion=completion))
        seen[turn["role"]] = prompt_ids + completion.token_ids
    return Episode(problem=Problem(**row["problem"]), turns=tuple(turns), stop=row["stop"])
