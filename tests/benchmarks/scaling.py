"""How a step's time grows with its problems, the generations of each, and the exchanges: exponents of straight lines
in log-log.

- rollout: the loop's `roll_out` with both vLLM engines and graded rewards, seconds from the first prompt to the last
  reward. All sizes are more than the engines' places, else more episodes would cost nothing.
- the framework alone: processor time of this process for everything of a step but engines, learners and grading
  (prompts, delivery, rewards, advantages, training samples, metrics, lines of the log), with engines that answer at
  once, up to sizes of real runs. What grows with the square of a step shows here and nowhere else.

The ideal is the exponent of the sampled tokens of the same steps.
"""

import asyncio
import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from longshort.dialogue.metrics import group_metrics
from longshort.dialogue.rewards import SynergyReward
from longshort.dialogue.rollout import Admission, Decoding
from longshort.learning.advantages import advantages
from longshort.learning.loop import roll_out, training_samples
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.sections import RewardConfig
from longshort.runs.episodes import episode_row
from longshort.types import ROLES, Completion
from tests.benchmarks.common import Figure, leave, options, say, slope, spread
from tests.benchmarks.scripted import Scripted, config, engines, make_models, problems

SLOTS, PRICES = 8, dict.fromkeys(ROLES, 1.0)
AXES = ("problems", "group size", "exchanges")
REAL = {"base": (4, 4, 1), "factors": (1, 2, 4), "tokens": 24}
FRAMEWORK = {"base": (16, 8, 2), "factors": (1, 2, 4, 8), "tokens": 32}


class Instant:
    """A policy that answers at once, with digits and signs."""

    def __init__(self, role):
        self.tokenizer, self.context, self.dice = build_tokenizer(role), 10**6, random.Random(role)

    async def generate(self, prompt_ids, sampling):
        await asyncio.sleep(0)
        text = "".join(self.dice.choices("0123456789+-*=", k=sampling.max_tokens))
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Completion(token_ids=ids, logprobs=(-0.5,) * len(ids), text=text, stop="length", version=0)


class AllWrong:
    """Grades without a process of its own."""

    async def grade(self, gold, text):
        return SimpleNamespace(correct=False)


async def rolled_out(policies, pool, sizes, tokens, seed):
    """The groups of a step of (problems, group size, exchanges), all turns of `tokens` tokens."""
    count, group_size, exchanges = sizes
    protocol = Scripted([tokens] * (2 * exchanges))
    rollout = await roll_out(
        0,
        steps=1,
        problems=lambda index: problems(count),
        spares=lambda index: [],
        zero_variance=lambda index, group: False,
        policies=policies,
        protocol=protocol,
        reward=SynergyReward(RewardConfig(), PRICES, protocol, pool),
        group_size=group_size,
        decoding=Decoding(),
        seed=seed,
        admission=Admission(live=2 * SLOTS, starting=count * group_size),
    )
    return rollout.groups, protocol


def sampled(groups):
    return sum(episode.tokens(role) for group in groups for episode in group.episodes for role in ROLES)


async def real_step(pair, forget, seed, sizes):
    """(seconds, sampled tokens)."""
    await forget()
    began = time.perf_counter()
    groups, _ = await rolled_out(pair.policies, pair.pool, sizes, REAL["tokens"], seed)
    return time.perf_counter() - began, sampled(groups)


async def framework_step(policies, seed, sizes):
    """(processor seconds of this process, sampled tokens)."""
    began = time.process_time()
    groups, protocol = await rolled_out(policies, AllWrong(), sizes, FRAMEWORK["tokens"], seed)
    for role in ROLES:
        training_samples(groups, role, lambda groups, role: advantages(groups, role, "team", "group"))
    group_metrics(groups, protocol, PRICES)
    for group in groups:
        for episode in group.episodes:
            json.dumps(episode_row(episode))
    return time.process_time() - began, sampled(groups)


async def grown(step, base, factors):
    """By axis the (seconds, tokens) of each size; sizes that are on two axes are measured once."""
    found = {}
    for axis in range(len(AXES)):
        for factor in factors:
            sizes = tuple(size * factor if at == axis else size for at, size in enumerate(base))
            if sizes not in found:
                found[sizes] = await step(sizes)
    return {
        name: [
            found[tuple(size * factor if at == axis else size for at, size in enumerate(base))] for factor in factors
        ]
        for axis, name in enumerate(AXES)
    }


async def main(runs, results):
    rows = {"rollout": [], "framework": []}
    instant = {role: Instant(role) for role in ROLES}
    with tempfile.TemporaryDirectory() as scratch:
        settings = config(make_models(Path(scratch)), max_num_seqs=SLOTS)
        async with engines(settings) as (pair, forget):
            say("warming up")
            await real_step(pair, forget, 0, REAL["base"])
            await framework_step(instant, 0, FRAMEWORK["base"])
            for run in range(1, runs + 1):
                rows["rollout"].append(
                    await grown(partial(real_step, pair, forget, run), REAL["base"], REAL["factors"])
                )
                rows["framework"].append(
                    await grown(partial(framework_step, instant, run), FRAMEWORK["base"], FRAMEWORK["factors"])
                )
                say(f"run {run} of {runs}: " + ", ".join(f"{kind} {exponents(rows[kind][-1], kind)}" for kind in rows))
    figures = [figure(kind, axis, rows[kind]) for kind in rows for axis in AXES]
    leave(
        "scaling",
        __doc__,
        figures,
        results,
        [note("rollout", REAL, rows["rollout"]), note("framework", FRAMEWORK, rows["framework"])],
    )


def factors_of(kind):
    return (REAL if kind == "rollout" else FRAMEWORK)["factors"]


def exponents(row, kind):
    return "/".join(f"{slope(factors_of(kind), [seconds for seconds, _ in row[axis]]):.2f}" for axis in AXES)


def figure(kind, axis, rows):
    seconds, tokens = (
        tuple(slope(factors_of(kind), [point[part] for point in row[axis]]) for row in rows) for part in (0, 1)
    )
    what = "rollout seconds" if kind == "rollout" else "the framework's processor seconds"
    cause = "This benchmark does not tell where the time went; if the framework's own seconds grow straight, not there."
    return Figure(
        what=f"{what} against {axis}, exponent",
        values=seconds,
        ideal=tokens,
        limit="sampled tokens",
        at_most=1.1,
        cause=cause,
    )


def note(kind, sizes, rows):
    base, last = (median(row["problems"][at][0] for row in rows) for at in (0, -1))
    listed = ", ".join(
        f"{name} {size} to {size * sizes['factors'][-1]}" for name, size in zip(AXES, sizes["base"], strict=True)
    )
    growth = [row["problems"][-1][0] / row["problems"][0][0] for row in rows]
    return (
        f"{kind}: {listed}, turns of {sizes['tokens']} tokens; {base:.2f} s at the smallest, {last:.2f} s "
        f"({spread(growth, '{:.1f} x')}) with all problems."
    )


if __name__ == "__main__":
    asked_for = options(__doc__)
    asyncio.run(main(asked_for.runs, asked_for.results))
