"""The framework's share of a rollout: one less the share of the time in which the engine that must be working is
working.

- one dialogue at a time: always one of the two engines must be working, nothing hides the way of a turn from one to
  the other (the driver, two messages, two processes that wake up). Turns are as short as the target allows: an engine
  is busy for 100 ms with each.
- an engine with all its places taken: its own share of time at work, when each episode's next turn is asked for as
  soon as the last one has come.

Both with vLLM on this machine's cores, which the driver needs too, and with engines in the same processes whose work
is a sleep.
"""

import asyncio
import math
import tempfile
import time
from pathlib import Path
from statistics import median

from longshort.dialogue.rollout import Decoding, run_episode, stable_seed
from longshort.types import LONG, ROLES, Sampling
from tests.benchmarks import sleeping
from tests.benchmarks.common import Figure, leave, options, say, spread
from tests.benchmarks.scripted import Scripted, config, engines, make_models, problems

SLOTS, TURN_S, DIALOGUES, TURNS, SLEEP_S, PROBE = 16, 0.1, 4, 8, 0.004, 8


async def busy(policies):
    """Seconds of work so far, by role."""
    return {role: (await policy.engine.stats())["busy_s"] for role, policy in policies.items()}


async def one_at_a_time(policies, tokens, seed):
    """(the framework's share, busy seconds per turn) of dialogues that follow one another."""
    before, began = await busy(policies), time.perf_counter()
    for number, problem in enumerate(problems(DIALOGUES)):
        await run_episode(problem, policies, Scripted([tokens] * TURNS), Decoding(), stable_seed(seed, number))
    wall, after = time.perf_counter() - began, await busy(policies)
    worked = sum(after[role] - before[role] for role in ROLES)
    return 1 - worked / wall, worked / DIALOGUES / TURNS


async def places_taken(policies, tokens, seed):
    """The framework's share of the long engine's time with one episode per place, all of one length."""
    policy = policies[LONG]
    prompts = [Scripted([tokens]).render(problem, (), LONG, policy.tokenizer) for problem in problems(SLOTS)]

    async def chain(number):
        for turn in range(TURNS // 2):
            early = (number * tokens) // SLOTS if turn == 0 else 0  # so that they do not all end at once
            sampling = Sampling(max_tokens=tokens - early, stop=(), seed=stable_seed(seed, number, turn))
            completion = await policy.generate(prompts[number], sampling)
            prompts[number] += completion.token_ids

    before, began = await busy(policies), time.perf_counter()
    await asyncio.gather(*map(chain, range(SLOTS)))
    wall, after = time.perf_counter() - began, await busy(policies)
    return 1 - (after[LONG] - before[LONG]) / wall


async def measure(policies, runs, name):
    """Both shares in each run, and busy seconds of a turn."""
    probes = [(await one_at_a_time(policies, PROBE, f"probe {number}"))[1] for number in range(4)]
    tokens = math.ceil(
        TURN_S / (min(probes[1:]) / PROBE)
    )  # the first one is a warm-up; what others do to a probe makes it slower
    say(f"{name}: {1000 * min(probes[1:]) / PROBE:.1f} ms per token, so turns of {tokens}")
    rows = [
        (*await one_at_a_time(policies, tokens, run), await places_taken(policies, tokens, run)) for run in range(runs)
    ]
    for share, turn_s, taken in rows:
        say(f"{name}: one at a time {share:.1%} at {1000 * turn_s:.0f} ms a turn, places taken {taken:.1%}")
    alone, seconds, taken = zip(*rows, strict=True)
    way = 1000 * median(share * turn_s / (1 - share) for share, turn_s, _ in rows)
    lone = spread([1000 * one for one in seconds], "{:.0f}")
    return (
        alone,
        taken,
        way,
        f"{name}: turns of {tokens} tokens, an engine busy for {lone} ms with a lone one, its way {way:.1f} ms.",
    )


async def main(runs, results):
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        settings = config(make_models(Path(scratch)), max_num_seqs=SLOTS)
        async with engines(settings) as (pair, _):
            found["vLLM"] = await measure(pair.policies, runs, "vLLM")
            with sleeping.policies(settings, seconds=SLEEP_S) as policies:
                await sleeping.start(policies)
                found["sleeping engines"] = await measure(policies, runs, "sleeping engines")
    figures = []
    for name, (alone, taken, way, _) in found.items():
        one = (
            f"A turn travels for {way:.1f} ms: a message to the engine's process, its thread waking up, a message back."
        )
        full = "Between its steps the engine's process takes requests in, hands turns out and waits for a core."
        shared = {"form": "{:.1%}", "at_most": 0.05, "ideal": (0.0,), "limit": "always at work"}
        figures += [
            Figure(what=f"framework's share of the time, one dialogue, {name}", values=alone, cause=one, **shared),
            Figure(what=f"framework's share of the time, places taken, {name}", values=taken, cause=full, **shared),
        ]
    leave("overhead", __doc__, figures, results, [note for *_, note in found.values()])


if __name__ == "__main__":
    asked_for = options(__doc__)
    asyncio.run(main(asked_for.runs, asked_for.results))
