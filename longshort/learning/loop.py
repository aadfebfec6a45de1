"""The training loop, as the papers say it: roll out groups with both policies, then update the scheduled roles from the same episodes.

Nothing here knows about devices, processes or engines: a policy generates turns and takes samples, wherever it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from longshort.learning.samples import sample_of
from longshort.team.rollout import Decoding, Engine, RewardFunction, run_group, stable_seed
from longshort.types import Episode, Group, Problem, Sample

T = TypeVar("T")


class Policy(Engine, Protocol):
    """An engine that also learns: `update` takes optimizer steps, then publishes the new weights to its engine, verified."""

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]: ...


AdvantageFunction = Callable[[Sequence[Group], str], list[list[float]]]
"""`(groups, role) -> one advantage per episode of each group`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass of the loop did: the scored groups, each updated role's metrics, and seconds spent."""

    index: int
    groups: tuple[Group, ...]
    updates: Mapping[str, Mapping[str, float]]
    rollout_s: float
    update_s: float


async def train_loop(
    *,
    start: int,
    steps: int,
    problems: Callable[[int], Sequence[Problem]],
    policies: Mapping[str, Policy],
    protocol,
    reward: RewardFunction,
    advantage: AdvantageFunction,
    schedule: Callable[[int], Sequence[str]],
    group_size: int,
    decoding: Decoding,
    seed: int,
    after: Callable[[Step], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Run steps `start` to `steps`; `after` sees each finished step (log, save, evaluate).

    `stop` ends the loop between two updates: a rollout under way is dropped, an update under way is finished, so that both policies
    always stand at the same step.
    """
    for index in range(start, steps):
        began = time.perf_counter()
        arguments = (policies, protocol, reward, group_size, decoding)
        rollouts = [
            run_group(problem, *arguments, stable_seed(seed, index, position), index / steps)
            for position, problem in enumerate(problems(index))
        ]
        groups = await unless(stop, asyncio.gather(*rollouts))
        if groups is None:
            return
        rolled = time.perf_counter()
        roles = schedule(index)
        updates = await asyncio.gather(*(policies[role].update(training_samples(groups, role, advantage)) for role in roles))
        done = time.perf_counter()
        await after(
            Step(
                index=index,
                groups=tuple(groups),
                updates=dict(zip(roles, updates, strict=True)),
                rollout_s=rolled - began,
                update_s=done - rolled,
            )
        )


async def unless(stop: asyncio.Event, rollout: asyncio.Future) -> list[Group] | None:
    """The rollout's groups, or None if `stop` was set first."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((rollout, stopped), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        rollout.cancel()
        await asyncio.wait((rollout,))
        return None
    stopped.cancel()
    return await rollout


def training_samples(groups: Sequence[Group], role: str, advantage: AdvantageFunction) -> list[Sample]:
    """One sample per episode in which the role spoke, in the order of the groups."""
    return [sample_of(episode, role, value) for episode, value in spoken(groups, role, advantage(groups, role))]


def spoken(groups: Sequence[Group], role: str, values: Sequence[Sequence[T]]) -> Iterator[tuple[Episode, T]]:
    """Each episode in which the role sampled something, with its entry of `values` (in the shape of `groups`), in the order of the groups.

    So whatever a policy says about its training samples, one by one, can be put beside the episodes that they came from.
    """
    for group, of_group in zip(groups, values, strict=True):
        for episode, value in zip(group.episodes, of_group, strict=True):
            if episode.tokens(role):
                yield episode, value


def role_schedule(schedule: str | Sequence[str], steps: int, roles: Sequence[str]) -> Callable[[int], Sequence[str]]:
    """Which roles learn at a step: all of them (`joint`), or the paper's rounds of equal length, the partner frozen."""
    if schedule == "joint":
        return lambda index: roles
    return lambda index: (schedule[min(index * len(schedule) // steps, len(schedule) - 1)],)
