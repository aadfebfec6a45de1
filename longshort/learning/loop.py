"""The training loop as in the papers: both policies roll out groups, then the scheduled roles learn from the episodes.

Whether rollouts and updates alternate or run side by side depends only on when a rollout is begun (`staleness`).
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
from longshort.dialogue.turns import TurnProtocol
from longshort.learning.samples import sample_of
from longshort.types import Episode, Group, Problem, Sample
from longshort.waiting import cancel_and_wait

T = TypeVar("T")


class Policy(Engine, Protocol):
    """An engine that also learns: `update` takes optimizer steps, then publishes the new weights, verified."""

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]: ...


AdvantageFunction = Callable[[Sequence[Group], str], list[list[float]]]
"""`(groups, role) -> one advantage per episode of each group`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The scored groups of a step, and the zero-variance groups that were replaced by other problems."""

    groups: tuple[Group, ...]
    replaced: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one pass of the loop did: its groups, each updated role's metrics, and seconds spent.

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

    A step's rollout begins `staleness` steps early and runs beside the updates in between, whose weights reach it in
    flight: at its own update no token is older than that many updates. With 0, nothing is rolled out during an update.
    `stop` ends the loop between two updates: rollouts under way are dropped, an update under way is finished, so that
    both policies always stand at the same step.
    """
    ahead: deque[asyncio.Future[Rollout]] = deque()
    try:
        for index in range(start, steps):
            began = time.perf_counter()
            while len(ahead) <= staleness and index + len(ahead) < steps:
                ahead.append(asyncio.ensure_future(roll_out(index + len(ahead))))
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
        await cancel_and_wait(ahead)


async def stopped_before(stop: asyncio.Event, rollout: asyncio.Future) -> bool:
    """Wait for either; tell whether `stop` is set."""
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
    zero_variance: Callable[[int, Group], bool],
    policies: Mapping[str, Engine],
    protocol: TurnProtocol,
    reward: RewardFunction,
    group_size: int,
    decoding: Decoding,
    seed: int,
    admission: Admission,
) -> Rollout:
    """Roll out a step's groups, replacing those with zero variance by spare problems while there are any.

    Places are filled round by round and in order, so the result does not depend on which episode ends first.
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
    while True:
        places = [place for place, group in enumerate(groups) if zero_variance(index, group)]
        if not (places := places[: len(spare) - len(replaced)]):
            return Rollout(groups=tuple(groups), replaced=tuple(replaced))
        chosen = spare[len(replaced) : len(replaced) + len(places)]
        for place, group in zip(places, await groups_of(chosen, len(groups) + len(replaced)), strict=True):
            replaced.append(groups[place])
            groups[place] = group


def training_samples(groups: Sequence[Group], role: str, advantage: AdvantageFunction) -> list[Sample]:
    """Return one sample per episode in which the role spoke, in the order of the groups."""
    speaking = speaking_episodes(groups, role, advantage(groups, role))
    return [sample for episode, value in speaking if (sample := sample_of(episode, role, value))]


def speaking_episodes(groups: Sequence[Group], role: str, values: Sequence[Sequence[T]]) -> Iterator[tuple[Episode, T]]:
    """Yield each episode in which the role sampled something, with its entry of `values` (in the shape of `groups`).

    They come in the order of a policy's training samples.
    """
    for group, of_group in zip(groups, values, strict=True):
        for episode, value in zip(group.episodes, of_group, strict=True):
            if episode.tokens(role):
                yield episode, value


def role_schedule(schedule: str | Sequence[str], steps: int, roles: Sequence[str]) -> Callable[[int], Sequence[str]]:
    """Return which roles learn at a step: all (`joint`), or one per round of equal length, the partner frozen."""
    if schedule == "joint":
        return lambda index: roles
    return lambda index: (schedule[min(index * len(schedule) // steps, len(schedule) - 1)],)
