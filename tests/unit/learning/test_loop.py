"""The loop against doubles on a virtual clock: what waits for what, which weights write a token, who is rolled out in
whose place.
"""

import asyncio
import functools
import random
from dataclasses import replace

import pytest

from longshort.dialogue.rollout import Admission, Decoding, run_group, stable_seed
from longshort.learning.loop import role_schedule, train_loop, training_samples
from longshort.types import LONG, ROLES, SHORT, LongShortError, Reward
from tests.support.loop_cases import (
    EXCHANGES,
    GROUP,
    PER_STEP,
    PROBLEMS,
    Alternate,
    Policy,
    on_virtual_clock,
    one_each,
    rollouts,
    score,
    train,
)


async def by_hand(policies, steps):
    """What the papers say, in their order: all rollouts of a step, then both updates."""
    for index in range(steps):
        groups = [
            await run_group(
                problem,
                policies,
                Alternate(),
                score,
                GROUP,
                Decoding(),
                stable_seed(3, index, position),
                index / steps,
                Admission(live=GROUP, starting=GROUP),
            )
            for position, problem in enumerate(PROBLEMS[PER_STEP * index :][:PER_STEP])
        ]
        for role in ROLES:
            await policies[role].update(training_samples(groups, role, one_each))


def test_without_staleness_the_samples_are_those_of_rollouts_and_updates_in_turn():
    expected = {role: Policy(role) for role in ROLES}
    on_virtual_clock(by_hand(expected, 3))
    policies, seen, _ = train(3, 0)
    for role in ROLES:
        assert policies[role].samples == expected[role].samples and len(policies[role].samples) == 3
        assert policies[role].ages == [{0}] * 3
        assert [learned for learned, _ in policies[role].asked] == [0] * 32 + [1] * 32 + [2] * 32, (
            "nobody is asked during an update"
        )
    assert [step.index for step in seen] == [0, 1, 2]


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_tokens_are_at_most_staleness_updates_old_and_the_episodes_are_the_same(staleness):
    synchronous, _, slow = train(6, 0)
    policies, seen, fast = train(6, staleness)
    assert fast < slow and [step.index for step in seen] == list(range(6))
    for role in ROLES:
        oldest = [max(ages) for ages in policies[role].ages]
        assert oldest[: staleness + 1] == list(range(staleness + 1)) and max(oldest) == staleness
        without_versions = [[replace(sample, version=0) for sample in step] for step in policies[role].samples]
        assert without_versions == [
            [replace(sample, version=0) for sample in step] for step in synchronous[role].samples
        ]


def test_the_next_rollout_goes_on_during_an_update_and_ends_with_the_new_weights():
    """A rollout takes 40 s (4 turns of 10 s); the second begins when the first's first turns are over, so it is in
    its last turn when the
    first is learned from at 40 s; at 45.5 s the new weights arrive, when that turn has five of its ten tokens."""
    _, seen, seconds = train(2, 1, policies={role: Policy(role, update_s=5.5) for role in ROLES})
    turns = [turn.completion for turn in seen[1].groups[0].episodes[0].turns]
    assert [(turn.version, turn.updates) for turn in turns] == [(0, ()), (0, ()), (0, ()), (0, (5,))]
    assert turns[3].versions == (0,) * 5 + (1,) * 5
    assert seconds == pytest.approx(10 + 40 + 5.5)


def test_a_list_of_rounds_trains_one_role_at_a_time():
    rounds = role_schedule(["long", "long", "short"], 6, ROLES)
    assert [rounds(index) for index in range(6)] == [("long",), ("long",), ("long",), ("long",), ("short",), ("short",)]
    policies, _, _ = train(3, 0, schedule=["long", "short", "long"])
    assert (policies[LONG].learned, policies[SHORT].learned) == (2, 1)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_stop_ends_the_loop_between_updates_and_leaves_no_rollout_behind(staleness):
    policies, seen, seconds = train(9, staleness, stop_after=1)
    assert [step.index for step in seen] == [0, 1] and {policy.learned for policy in policies.values()} == {2}
    assert all(
        turn["future"].cancelled() for policy in policies.values() for turn in [*policy._writing, *policy._queue]
    )
    assert seconds < train(9, staleness)[2] / 2


def test_a_stop_during_a_rollout_drops_the_rollout():
    seen, policies = [], {role: Policy(role, seconds=1e6) for role in ROLES}

    async def go():
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(5.0, stop.set)
        await train_loop(
            start=0,
            steps=3,
            roll_out=rollouts(policies, 3),
            policies=policies,
            advantage=one_each,
            schedule=lambda index: ROLES,
            staleness=1,
            after=seen.append,
            stop=stop,
        )

    assert on_virtual_clock(go())[1] == 5.0 and seen == []


def test_an_update_that_fails_ends_the_rollouts_beside_it():
    policies = {role: Policy(role) for role in ROLES}

    async def fail(samples):
        raise LongShortError("the learner died")

    policies[SHORT].update = fail
    with pytest.raises(LongShortError, match="the learner died"):
        train(5, 1, policies=policies)
    assert all(
        turn["future"].cancelled() for policy in policies.values() for turn in [*policy._writing, *policy._queue]
    )


def same(problem, episodes, progress):
    """Problems with an odd number score the same in all their episodes."""
    return [
        Reward(totals={LONG: float(i * (int(problem.id[1:]) % 2 == 0)), SHORT: 0.0}, terms={})
        for i, _ in enumerate(episodes)
    ]


def ids(groups):
    return [group.problem.id for group in groups]


def no_difference(index, group):
    return len({reward.totals[LONG] for reward in group.rewards}) == 1


@pytest.mark.parametrize(
    ("spares", "groups", "replaced"),
    [
        ([], ["p0", "p1", "p2", "p3"], []),
        (["p20"], ["p0", "p20", "p2", "p3"], ["p1"]),
        (["p21", "p23", "p25", "p22", "p24"], ["p0", "p24", "p2", "p22"], ["p1", "p3", "p21", "p23", "p25"]),
        (["p20", "p22", "p24", "p26"], ["p0", "p20", "p2", "p22"], ["p1", "p3"]),
    ],
)
def test_groups_that_teach_nothing_give_their_places_to_spare_problems_up_to_the_cap(spares, groups, replaced):
    policies = {role: Policy(role) for role in ROLES}
    by_id = {problem.id: problem for problem in PROBLEMS}
    run = rollouts(
        policies, 1, spares=lambda index: [by_id[name] for name in spares], zero_variance=no_difference, reward=same
    )
    rollout, _ = on_virtual_clock(run(0))
    assert (ids(rollout.groups), ids(rollout.replaced)) == (groups, replaced)


def test_which_problem_takes_a_place_does_not_depend_on_who_is_faster():
    """The same step with episodes that take their time at random: seeds, places and replacements are the same."""

    class Unsteady(Policy):
        async def generate(self, prompt_ids, sampling):
            await asyncio.sleep(random.Random(f"{self.role}/{sampling.seed}").random() * 99)
            return await super().generate(prompt_ids, sampling)

    spares = [problem for problem in PROBLEMS if problem.id in ("p21", "p23", "p25", "p22", "p24")]
    run = functools.partial(rollouts, steps=1, spares=lambda index: spares, zero_variance=no_difference, reward=same)
    steady, _ = on_virtual_clock(run({role: Policy(role) for role in ROLES})(0))
    unsteady, _ = on_virtual_clock(run({role: Unsteady(role) for role in ROLES}, live=7, starting=2)(0))
    assert steady == unsteady


def rollout_seconds(steps, staleness, **admission):
    """Seconds per step when learning takes none, and the long engine's idle share."""
    policies = {role: Policy(role, update_s=0.0) for role in ROLES}
    seconds = train(steps, staleness, policies=policies, **admission)[2]
    return seconds / steps, 1 - policies[LONG].busy_s / seconds


def test_asynchrony_alone_gains_nothing_when_both_engines_swing_in_phase():
    """Either engine alone needs 20 s for a step's turns (2 exchanges of 10 s). Synchronously they take turns: the
    sum, 40 s. So they do
    when two steps' episodes begin together; when they begin one after the other, a step takes little more than one
    engine's time."""
    assert rollout_seconds(8, 0) == pytest.approx((40.0, 0.5))
    assert rollout_seconds(8, 1, starting=10**6) == pytest.approx((40.0, 0.5))
    seconds, idle = rollout_seconds(8, 1)
    assert (seconds, idle) == (pytest.approx(21.25), pytest.approx(1 / 17)), (
        "10 s too many in the whole run: the first turn"
    )


def test_live_episodes_are_bounded_and_the_bound_costs_no_time():
    """Engines that decode 8 turns at once hold 16 dialogues between them, of 32 that are wanted."""

    class Counting(Alternate):
        live = most = 0

        def next(self, turns):
            Counting.live += not turns
            Counting.live -= len(turns) == 2 * EXCHANGES
            Counting.most = max(Counting.most, Counting.live)
            return super().next(turns)

    def run(live):
        Counting.live = Counting.most = 0
        policies = {role: Policy(role, capacity=8, update_s=0.0) for role in ROLES}

        async def go():
            step = rollouts(policies, 4, live=live)
            step.keywords["protocol"] = Counting()
            await train_loop(
                start=0,
                steps=4,
                roll_out=step,
                policies=policies,
                advantage=one_each,
                schedule=lambda index: ROLES,
                staleness=1,
                after=lambda step: asyncio.sleep(0),
                stop=asyncio.Event(),
            )

        return on_virtual_clock(go())[1], Counting.most

    unbounded, bounded = run(10**6), run(16)
    assert bounded[1] == 16 < unbounded[1] and bounded[0] <= unbounded[0]
