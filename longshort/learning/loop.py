"""The training loop, as the papers say it: roll out groups with both policies, then update the scheduled roles from the same episodes.

Whether rollouts and updates take turns or go on side by side is only a matter of when a rollout is begun (`staleness`).
Nothing here knows about devices, processes or engines: a policy generates turns and takes samples, wherever it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from longshort.dialogue.rollout import Admission, Decoding, Engine, RewardFunction, run_group, stable_seed
from longshort.learning.samples import sample_of
from longshort.types import Episode, Group, Problem, Sample

T = TypeVar("T")


class Policy(Engine, Protocol):
    """An engine that also learns: `update` takes optimizer steps, then publishes the new weights to its engine, verified."""

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]: ...


AdvantageFunction = Callable[[Sequence[Group], str], list[list[float]]]
"""`(groups, role) -> one advantage per episode of each group`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The scored groups of a step, and those whose places were given to other problems because they teach nothing."""

    groups: tuple[Group, ...]
    replaced: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass of the loop did: what was rolled out, each updated role's metrics, and seconds spent.

    `rollout_s` is how long learning waited for the groups; with staleness they were begun in earlier steps.
    """

    index: int
    groups: tuple[Group, ...]
    replaced: tuple[Group, ...] = ()
    updates: Mapping[str, Mapping[str, float]]
    rollout_s: float
    update_s: float


async def train_loop(
    *,
    start: int,
    steps: int,
    roll_out: Callable[[int], Awaitable[Rollout]],
    policies: Mapping[str, Policy],
    advantage: AdvantageFunction,
    schedule: Callable[[int], Sequence[str]],
    staleness: int,
    after: Callable[[Step], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Run steps `start` to `steps`; `after` sees each finished step (log, save, evaluate).

    A step's rollout begins `staleness` steps early and goes on beside the updates in between, whose weights reach it in flight: at its own
    update no token is more updates old than that. With 0 nothing is rolled out while the policies learn.
    `stop` ends the loop between two updates: rollouts under way are dropped, an update under way is finished, so that both policies
    always stand at the same step.
    """
    ahead: deque[asyncio.Task[Rollout]] = deque()
    try:
        for index in range(start, steps):
            began = time.perf_counter()
            while len(ahead) <= staleness and index + len(ahead) < steps:
                ahead.append(asyncio.create_task(roll_out(index + len(ahead))))
            if await stopped_before(stop, ahead[0]):
                return
            rollout = await ahead.popleft()
            rolled = time.perf_counter()
            roles = schedule(index)
            updates = await asyncio.gather(
                *(policies[role].update(training_samples(rollout.groups, role, advantage)) for role in roles)
            )
            done = time.perf_counter()
            await after(
                Step(
                    index=index,
                    groups=rollout.groups,
                    replaced=rollout.replaced,
                    updates=dict(zip(roles, updates, strict=True)),
                    rollout_s=rolled - began,
                    update_s=done - rolled,
                )
            )
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def stopped_before(stop: asyncio.Event, rollout: asyncio.Task) -> bool:
    """Wait for either; whether `stop` is set."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((rollout, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return stop.is_set()


async def roll_out(
    index: int,
    *,
    steps: int,
    problems: Callable[[int], Sequence[Problem]],
    spares: Callable[[int], Sequence[Problem]],
    dull: Callable[[int, Group], bool],
    policies: Mapping[str, Engine],
    protocol,
    reward: RewardFunction,
    group_size: int,
    decoding: Decoding,
    seed: int,
    admission: Admission,
) -> Rollout:
    """A step's groups. Where one teaches nothing (`dull`), a spare problem is rolled out in its place, as long as there are any.

    Places are filled round by round and in order, so that which problem stands where does not depend on which episode ends first.
    """

    async def groups_of(chosen: Sequence[Problem], first: int) -> list[Group]:
        arguments = (policies, protocol, reward, group_size, decoding)
        return await asyncio.gather(
            *(
                run_group(problem, *arguments, stable_seed(seed, index, position), index / steps, admission)
                for position, problem in enumerate(chosen, first)
            )
        )

    groups, replaced, spare = await groups_of(problems(index), 0), [], spares(index)
    while places := [place for place, group in enumerate(groups) if dull(index, group)][: len(spare) - len(replaced)]:
        chosen = spare[len(replaced) : len(replaced) + len(places)]
        for place, group in zip(places, await groups_of(chosen, len(groups) + len(replaced)), strict=True):
            replaced.append(groups[place])
            groups[place] = group
    return Rollout(groups=tuple(groups), replaced=tuple(replaced))


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
