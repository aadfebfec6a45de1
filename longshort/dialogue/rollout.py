"""Episodes: policies alternate on one problem. Each episode is a coroutine, so none waits for another one's turn."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from longshort.dialogue.turns import TurnProtocol
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


UNLIMITED = contextlib.nullcontext()


def live_episodes(slots: int) -> int:
    """Return how many episodes to keep live over all decode slots: 1.5 each, as one between turns uses none."""
    return math.ceil(1.5 * slots)


class Admission:
    """Limits how many episodes run at once, so that both engines have work and their caches do not overflow.

    `live` limits all episodes (`live_episodes`), `starting` those in their first turn. If `starting` is one step's
    episodes, the next step's begin when those have moved on to the partner, and the two sets take opposite turns.
    Without it, all episodes would move from one engine to the other together: tests/unit/learning/test_loop.py measures
    both.
    """

    def __init__(self, *, live: int, starting: int):
        self.live, self.starting = asyncio.Semaphore(live), asyncio.Semaphore(starting)


async def run_episode(
    problem: Problem,
    policies: Mapping[str, Engine],
    protocol: TurnProtocol,
    decoding: Decoding,
    seed: int,
    first_turn: contextlib.AbstractAsyncContextManager = UNLIMITED,
) -> Episode:
    """Let the policies alternate until the protocol names a reason to stop. The first turn runs inside `first_turn`."""
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
            seed=stable_seed(seed, len(turns)),
            **asdict(decoding),
        )
        async with UNLIMITED if turns else first_turn:
            completion = await policy.generate(prompt, sampling)
        if completion.stop == "length":
            completion = replace(completion, stop=limit)
        turns.append(Turn(role=speaker, prompt_ids=prompt, completion=completion))
    return Episode(problem=problem, turns=tuple(turns), stop=speaker)


async def run_group(
    problem: Problem,
    policies: Mapping[str, Engine],
    protocol: TurnProtocol,
    reward: RewardFunction,
    group_size: int,
    decoding: Decoding,
    seed: int,
    progress: float,
    admission: Admission,
) -> Group:
    """Run `group_size` independent episodes of a problem and score them together (length terms compare them)."""

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
    """Return a 31-bit seed that is the same in every process, unlike Python's `hash` of a string."""
    return zlib.crc32("/".join(map(str, parts)).encode()) & 0x7FFFFFFF
