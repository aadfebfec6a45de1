"""Episodes: two policies alternate on one problem. One coroutine per episode, so no episode ever waits for another one's turn."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from longshort.types import Completion, Episode, Group, Problem, Reward, Sampling, Turn


class Engine(Protocol):
    """What a rollout needs of a policy: token ids in; ids, log-probs and weight version out."""

    tokenizer: Any
    context: int

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion: ...


RewardFunction = Callable[[Problem, Sequence[Episode], float], list[Reward] | Awaitable[list[Reward]]]
"""`(problem, episodes of that problem, progress of the run in [0, 1]) -> one Reward per episode`, plain or async."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Sampling settings shared by every turn of a rollout; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


AT_ONCE = contextlib.nullcontext()


PLENTY = 1.5
"""Episodes at once, for each that the engines decode at once: some are on their way between two messages, and none is as often with one
model as with the other, yet both engines shall have all they can decode."""


def live_episodes(decoded: int) -> int:
    """How many episodes to have going on over engines that decode so many at once, all together."""
    return math.ceil(PLENTY * decoded)


class Admission:
    """How many episodes go on at once, so that both engines work and their caches need not hold everybody's dialogues.

    `live` bounds all of them (`live_episodes`). `starting` bounds those in their first turn: with one step's episodes
    there at most, the next step's begin when these have moved on to the partner, so the two sets take opposite turns. Begun together they
    would swing together, everyone at one engine and then everyone at the other (tests/test_loop.py measures both).
    """

    def __init__(self, *, live: int, starting: int):
        self.live, self.starting = asyncio.Semaphore(live), asyncio.Semaphore(starting)


async def run_episode(
    problem: Problem,
    policies: Mapping[str, Engine],
    protocol,
    decoding: Decoding,
    seed: int,
    first_turn: contextlib.AbstractAsyncContextManager = AT_ONCE,
) -> Episode:
    """Let the policies alternate until the protocol names a reason to stop; the first turn is sampled inside `first_turn`."""
    turns: list[Turn] = []
    while (speaker := protocol.next(turns)) in policies:
        policy = policies[speaker]
        prompt = protocol.render(problem, turns, speaker, policy.tokenizer)
        max_tokens, limit = protocol.budget(turns, speaker, len(prompt), policy.context)
        if max_tokens < 1:
            return Episode(problem=problem, turns=tuple(turns), stop=limit)
        stop, stop_token_ids = protocol.stops(speaker, policy.tokenizer)
        sampling = Sampling(
            max_tokens=max_tokens,
            stop=stop,
            stop_token_ids=stop_token_ids,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            seed=stable_seed(seed, len(turns)),
        )
        async with AT_ONCE if turns else first_turn:
            completion = await policy.generate(prompt, sampling)
        if completion.stop == "length":
            completion = replace(completion, stop=limit)
        turns.append(Turn(role=speaker, prompt_ids=prompt, completion=completion))
    return Episode(problem=problem, turns=tuple(turns), stop=speaker)


async def run_group(
    problem: Problem,
    policies: Mapping[str, Engine],
    protocol,
    reward: RewardFunction,
    group_size: int,
    decoding: Decoding,
    seed: int,
    progress: float,
    admission: Admission,
) -> Group:
    """`group_size` independent episodes of one problem, scored together (length rewards compare the episodes of a problem)."""

    async def admitted(number: int) -> Episode:
        async with admission.live:
            return await run_episode(
                problem, policies, protocol, decoding, stable_seed(seed, problem.id, number), admission.starting
            )

    episodes = await asyncio.gather(*map(admitted, range(group_size)))
    rewards = reward(problem, episodes, progress)
    if inspect.isawaitable(rewards):
        rewards = await rewards
    return Group(problem=problem, episodes=tuple(episodes), rewards=tuple(rewards))


def stable_seed(*parts: object) -> int:
    """A 31-bit seed that is the same on every machine and in every process (Python's `hash` of a string is not)."""
    return zlib.crc32("/".join(map(str, parts)).encode()) & 0x7FFFFFFF
