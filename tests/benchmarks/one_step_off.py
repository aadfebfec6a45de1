"""Rollouts beside updates (staleness 1) against rollouts and updates in turn, of the ideal (R + L) / max(R, L).

R and L are the medians of rollout and update when they take turns, in the same run. A share may be above 1: the next
step's rollout also takes the places that the last long turns of this one leave empty, which R has to wait for.

- vLLM and the torch learner, real training steps, publishing and its proof included: one model that works alone
  (protocol `solo`), since two cores hold one engine and one learner at work, one thread each. The update's part of
  the work is set so that R and L are alike.
- the pair, with engines and learners of both roles in the same processes as always, whose work is a sleep: the
  framework's part, which two cores do not limit.
"""

import asyncio
import functools
import itertools
import tempfile
from pathlib import Path
from statistics import fmean, median

from longshort.dialogue.rollout import Admission, Decoding
from longshort.dialogue.solo import Solo
from longshort.learning.advantages import advantages
from longshort.learning.loop import roll_out, train_loop
from longshort.pair import LearningPair
from longshort.types import LONG, ROLES, Reward
from tests.benchmarks import sleeping
from tests.benchmarks.common import Figure, leave, options, say, spread
from tests.benchmarks.scripted import Scripted, config, draw_lengths, make_models, problems

STEPS, PROBLEMS, GROUP, SLOTS = 5, 4, 4, 8
SHORTEST, LONGEST = 8, 88
SLEEP_S, SLEEP_TOKENS, UPDATE_S = 0.002, 10, 0.6


class Drawn(Solo):
    """One model answers in one turn of a drawn length; every step has the same lengths."""

    def __init__(self):
        super().__init__(turn_tokens=LONGEST)
        self.lengths = itertools.cycle(tokens for tokens, _ in draw_lengths(PROBLEMS * GROUP, 1, SHORTEST, LONGEST, 0))

    def budget(self, turns, speaker, prompt_tokens, context):
        return next(self.lengths), "turn_length"


def alternate(problem, episodes, progress):
    """Rewards that differ, so that there is something to learn whatever was said."""
    return [Reward(totals=dict.fromkeys(ROLES, float(i % 2)), terms={"correct": 0.0}) for i in range(len(episodes))]


async def steps_of(policies, protocol, staleness, seed):
    """The Step records of `STEPS` steps, but for the first, which has no update before it, and the last, which has no
    rollout beside it.
    """
    seen = []

    async def after(step):
        seen.append(step)

    await train_loop(
        start=0,
        steps=STEPS,
        roll_out=functools.partial(
            roll_out,
            steps=STEPS,
            problems=lambda index: problems(PROBLEMS * STEPS)[PROBLEMS * index :][:PROBLEMS],
            spares=lambda index: [],
            zero_variance=lambda index, group: False,
            policies=policies,
            protocol=protocol,
            reward=alternate,
            group_size=GROUP,
            decoding=Decoding(),
            seed=seed,
            admission=Admission(live=SLOTS * len(policies), starting=PROBLEMS * GROUP),
        ),
        policies=policies,
        advantage=lambda groups, role: advantages(groups, role, "team", "group"),
        schedule=lambda index: tuple(policies),
        staleness=staleness,
        after=after,
        stop=asyncio.Event(),
    )
    return seen[1:-1]


async def compare(policies, protocol, runs, name):
    """For each run the speed-up, its ideal, and seconds of each part."""
    await steps_of(policies, protocol, 0, "warm")
    rows = []
    for run in range(1, runs + 1):
        in_turn, beside = [await steps_of(policies, protocol, staleness, run) for staleness in (0, 1)]
        rollout, update = median(step.rollout_s for step in in_turn), median(step.update_s for step in in_turn)
        before, now = (fmean(step.rollout_s + step.update_s for step in steps) for steps in (in_turn, beside))
        syncs = [
            median(max(part["perf/weight_sync_s"] for part in step.updates.values()) for step in steps)
            for steps in (in_turn, beside)
        ]
        rows.append(
            {"R": rollout, "L": update, "in turn": before, "beside": now, "sync": syncs[0], "sync beside": syncs[1]}
        )
        say(
            f"{name}, run {run} of {runs}: "
            + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in rows[-1].items())
        )
    return rows


async def real(folder, runs):
    """A model alone: its engine and its learner, one thread each."""
    models = make_models(folder)
    settings = config(models, max_num_seqs=SLOTS, protocol={"name": "solo"}, staleness=1, lr_scheduler_type="constant")
    protocol = Drawn()
    async with LearningPair(settings, {LONG: models[LONG]}, total_updates={LONG: 10**6}, protocol=protocol) as pair:
        return await compare(pair.policies, protocol, runs, "vLLM and torch")


async def slept(runs):
    """The pair without work."""
    settings = config(dict.fromkeys(ROLES, ""), max_num_seqs=SLOTS, staleness=1)
    undo = sleeping.cluster(settings)
    try:
        with sleeping.policies(settings, seconds=SLEEP_S, update_s=UPDATE_S) as policies:
            await sleeping.start(policies)
            return await compare(policies, Scripted([SLEEP_TOKENS] * 4), runs, "sleeping")
    finally:
        undo()


def figures(name, rows):
    ideal = tuple((row["R"] + row["L"]) / max(row["R"], row["L"]) for row in rows)
    values = tuple(row["in turn"] / row["beside"] for row in rows)
    longer = "R" if median(row["R"] - row["L"] for row in rows) > 0 else "L"
    medians = {part: median(row[part] for row in rows) for part in rows[0]}
    return [
        Figure(
            what=f"one step off, speed-up, {name}",
            values=values,
            ideal=ideal,
            limit="(R + L) / max(R, L)",
            form="{:.2f} x",
        ),
        Figure(
            what=f"one step off, share of the ideal speed-up, {name}",
            values=tuple(value / bound for value, bound in zip(values, ideal, strict=True)),
            ideal=(1.0,),
            limit="(R + L) / max(R, L)",
            at_least=0.9,
            cause=f"A step takes {medians['beside']:.2f} s where {longer} alone takes {medians[longer]:.2f} s; "
            "publishing takes "
            f"{medians['sync beside']:.2f} s beside a rollout and {medians['sync']:.2f} s without one.",
        ),
    ]


async def main(runs, results):
    with tempfile.TemporaryDirectory() as scratch:
        found = {"vLLM and torch, one model": await real(Path(scratch), runs)}
    found["the pair, work a sleep"] = await slept(runs)
    notes = []
    for name, rows in found.items():
        seconds = {part: spread([row[part] for row in rows]) for part in rows[0]}
        notes.append(
            f"{name}: R {seconds['R']} s, L {seconds['L']} s; a step takes {seconds['in turn']} s in turn and "
            f"{seconds['beside']} s one "
            f"step off; publishing in it {seconds['sync']} s and {seconds['sync beside']} s."
        )
    notes.append(f"{PROBLEMS * GROUP} episodes a step, {STEPS - 2} steps of {STEPS} counted.")
    leave("one_step_off", __doc__, [one for name, rows in found.items() for one in figures(name, rows)], results, notes)


if __name__ == "__main__":
    asked_for = options(__doc__)
    asyncio.run(main(asked_for.runs, asked_for.results))
