"""Turns per second with one coroutine per episode, against lock-step and against engines that never wait for one
another.

Two engines in processes of their own, one thread each, and longshort's own `run_episode`. The lengths of all turns
are drawn before, so that each of these does the same work, token by token:

- ours: as the trainer rolls out, at most half as many episodes again at once as both engines decode together;
- lock-step: all episodes take their first turn, then all take their second, and so on: a barrier after each turn;
- an engine alone: the turns of one role with the very same prompts, as if its partner answered at once. The longer of
  the two is the bound: no order of the turns can beat it;
- both alone at once: what this machine makes of the bound when both engines compute at the same time.

First with vLLM on this machine's cores, then with engines in the same processes whose work is a sleep: the
framework's part, which two cores do not limit.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

from longshort.dialogue.rollout import Admission, Decoding, live_episodes, run_episode, stable_seed
from longshort.types import ROLES, Sampling
from tests.benchmarks.common import Figure, leave, options, say, spread
from tests.benchmarks.scripted import Scripted, config, draw_lengths, engines, make_models, problems

SLOTS, EPISODES, EXCHANGES, SHORTEST, LONGEST, SLEEP_S = 8, 64, 2, 8, 56, 0.001


async def ours(policies, asked, lengths, seed):
    """Episodes as `run_group` admits them."""
    admission = Admission(live=live_episodes(2 * SLOTS), starting=EPISODES)

    async def one(number):
        async with admission.live:
            return await run_episode(
                asked[number],
                policies,
                Scripted(lengths[number]),
                Decoding(),
                stable_seed(seed, number),
                admission.starting,
            )

    return await asyncio.gather(*map(one, range(len(lengths))))


class LockStep:
    """A policy for one episode among `count`: nobody's next turn begins before everybody's last turn has ended."""

    def __init__(self, policy, barrier):
        self.policy, self.barrier, self.tokenizer, self.context = policy, barrier, policy.tokenizer, policy.context

    async def generate(self, prompt_ids, sampling):
        completion = await self.policy.generate(prompt_ids, sampling)
        await self.barrier.wait()
        return completion


async def lock_step(policies, asked, lengths, seed):
    """The same episodes with a barrier after each turn."""
    barrier = asyncio.Barrier(len(lengths))
    together = {role: LockStep(policy, barrier) for role, policy in policies.items()}
    return await asyncio.gather(
        *(
            run_episode(asked[i], together, Scripted(lengths[i]), Decoding(), stable_seed(seed, i))
            for i in range(len(lengths))
        )
    )


async def alone(policy, episodes, seed):
    """One role's turns of all episodes, as many at once as its engine decodes; an episode's next turn follows its
    last at once.
    """

    async def one(number):
        for position, turn in enumerate(episodes[number].turns):
            if turn.role == policy.role:
                dice = stable_seed(stable_seed(seed, number), position)
                same = await policy.generate(
                    turn.prompt_ids, Sampling(max_tokens=len(turn.completion.token_ids), stop=(), seed=dice)
                )
                tokens.append(len(same.token_ids))

    tokens = []
    await asyncio.gather(*map(one, range(len(episodes))))
    return sum(tokens)


async def timed(forget, work):
    """(seconds, processor seconds of this process, result) of a coroutine, from empty prefix caches."""
    await forget()
    began, used = time.perf_counter(), time.process_time()
    result = await work
    return time.perf_counter() - began, time.process_time() - used, result


async def one_run(policies, forget, lengths, seed):
    """Seconds of each way to do the same turns."""
    asked = problems(len(lengths))
    seconds, driver = {}, {}
    seconds["ours"], driver["ours"], episodes = await timed(forget, ours(policies, asked, lengths, seed))
    seconds["lock-step"], _, same = await timed(forget, lock_step(policies, asked, lengths, seed))
    wanted = {role: sum(episode.tokens(role) for episode in episodes) for role in ROLES}
    if {role: sum(episode.tokens(role) for episode in same) for role in ROLES} != wanted:
        raise AssertionError("lock-step did not sample as many tokens: not the same work")
    for role in ROLES:
        seconds[role], _, tokens = await timed(forget, alone(policies[role], episodes, seed))
        if tokens != wanted[role]:
            raise AssertionError(f"{role} alone sampled {tokens} tokens, not {wanted[role]}: not the same work")
    both = asyncio.gather(*(alone(policies[role], episodes, seed) for role in ROLES))
    seconds["both"], _, _ = await timed(forget, both)
    return seconds, driver["ours"]


async def compare(policies, forget, runs, name):
    """Seconds of each way in each run, and the driver's processor seconds."""
    await one_run(policies, forget, draw_lengths(2 * SLOTS, 1, SHORTEST, 2 * SHORTEST, 0), 0)
    rows, driver = [], []
    for run in range(1, runs + 1):
        lengths = draw_lengths(EPISODES, EXCHANGES, SHORTEST, LONGEST, run)
        seconds, used = await one_run(policies, forget, lengths, run)
        say(f"{name}, run {run} of {runs}: " + ", ".join(f"{way} {value:.2f} s" for way, value in seconds.items()))
        rows.append(seconds)
        driver.append(used)
    return rows, driver


def figures(name, rows):
    """The two ratios, each with its limit."""
    bound = [max(row["long"], row["short"]) for row in rows]
    ours, lock, both = ([row[way] for row in rows] for way in ("ours", "lock-step", "both"))
    over = lambda above, below: tuple(a / b for a, b in zip(above, below, strict=True))  # noqa: E731
    reached, there = over(bound, ours), over(bound, both)
    cause = (
        f"Two engines at once that wait for nobody reach {median(there):.2f} of what the busier one does alone: they "
        "share cores with each "
        "other, with the driver and with whoever else is on the machine. Of what they reach, ours is "
        f"{median(over(both, ours)):.2f}; the "
        "rest is the beginning, when one engine has no turn yet, the end, when few episodes are left, and in between "
        "an engine with fewer "
        "turns than places."
    )
    return [
        Figure(
            what=f"turns per second, times lock-step's, {name}",
            values=over(lock, ours),
            ideal=over(lock, bound),
            limit="the busier engine never waits",
            at_least=1.5,
            cause=cause,
        ),
        Figure(
            what=f"turns per second, share of the busier engine's alone, {name}",
            values=reached,
            ideal=there,
            limit="both engines at once, neither waiting for the other",
            at_least=0.85,
            cause=cause,
        ),
    ]


def notes(name, rows, driver):
    turns = EPISODES * 2 * EXCHANGES
    ours, lock = ([turns / row[way] for row in rows] for way in ("ours", "lock-step"))
    return (
        f"{name}: {spread(ours, '{:.1f}')} turns a second, lock-step {spread(lock, '{:.1f}')}; the driver's "
        "processor time per turn "
        f"{spread([1000 * used / turns for used in driver], '{:.1f}')} ms."
    )


async def nothing():
    """Sleeping engines keep nothing."""


async def main(runs, results):
    from tests.benchmarks import (
        sleeping,
    )  # loads Ray, which whoever imports this module for its arithmetic need not wait for

    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        settings = config(make_models(Path(scratch)), max_num_seqs=SLOTS)
        async with engines(settings) as (pair, forget):
            found["vLLM"] = await compare(pair.policies, forget, runs, "vLLM")
            with sleeping.policies(settings, seconds=SLEEP_S) as policies:
                await sleeping.start(policies)
                found["work a sleep"] = await compare(policies, nothing, runs, "work a sleep")
    sizes = (
        f"{EPISODES} episodes of {2 * EXCHANGES} turns, {SHORTEST} to {LONGEST} tokens each; {SLOTS} slots an engine."
    )
    listed = [figure for name, (rows, _) in found.items() for figure in figures(name, rows)]
    leave("turns", __doc__, listed, results, [sizes, *(notes(name, *of_name) for name, of_name in found.items())])


if __name__ == "__main__":
    asked_for = options(__doc__)
    asyncio.run(main(asked_for.runs, asked_for.results))
