"""Where the time of one RL step goes: rollout, reward, samples, forward and backward, optimizer, publish, logging.

The loop, the pair, the learners and what surrounds a step are the product's own, on the miniature's two models after
a few supervised steps (they close their turns and know nothing else): 16 problems times 8 episodes, both roles learn
from all of them, nothing is saved or evaluated. Clocks stand around the calls, in the driver and in the learners'
processes. The parts follow one another, so that they can add up to the step; what goes on beside them is in none:

- rollout: until the last turn of the step has come; rewards: what is left of grading then (the rest is hidden behind
  the sampling)
- samples: advantages, sequences and, in the learner, their packing
- forward and backward, optimizer, publish (verified): of the role whose update ended last, the other one's ends
  beside it. The clipping of the gradient counts as backward; what packing and learning leave of the learner's own
  time counts as samples
- logging: metrics, the gaps asked of the learners, the episodes' file
- remainder: the way of the samples to the learner's process and of its report back, and the loop itself
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from longshort.dialogue.rewards import SynergyReward
from longshort.learning.loop import train_loop
from longshort.learning.step import Process
from longshort.recorder import Recorder
from longshort.trainer import LongShortTrainer
from tests.benchmarks.common import Figure, leave, options, say, spread
from tests.support import tiny_models

PARTS = ("rollout", "reward", "samples", "forward and backward", "optimizer", "publish", "logging", "remainder")
MOST_REMAINDER = 0.05
PROBLEMS, GENERATIONS = 16, 8


class TimedProcess(Process):
    """Counts the seconds of the passes over the model, the optimizer's included."""

    def __init__(self, dtype: str):
        super().__init__(dtype)
        self.seconds = 0.0

    def optimizer_step(self, *arguments):
        began = time.perf_counter()
        result = super().optimizer_step(*arguments)
        self.seconds += time.perf_counter() - began
        return result


def set_clocks(actor) -> None:
    """In a learner's process: from now on the report of an update also says where its time went."""
    learner, clock, optimizing = actor._learner, TimedProcess(actor._learner.process.dtype), []
    learner.process, update = clock, learner.update
    learner.optimizer.register_step_pre_hook(lambda *_: optimizing.append(-time.perf_counter()))
    learner.optimizer.register_step_post_hook(lambda *_: optimizing.append(time.perf_counter()))

    def timed(samples) -> dict[str, float]:
        clock.seconds = 0.0
        optimizing.clear()
        began = time.perf_counter()
        report = update(samples)
        spent = {"packing": time.perf_counter() - began - clock.seconds, "optimizer": sum(optimizing)}
        spent["passes"] = clock.seconds - spent["optimizer"]
        return report | {f"clock/{name}": seconds for name, seconds in spent.items()}

    learner.update = timed


class Clocks:
    """When what ended in the current step, and the parts of the steps finished."""

    def __init__(self):
        self.at: dict[str, float] = {}
        self.updates: dict[str, tuple[float, dict]] = {}
        self.steps: list[dict[str, float]] = []

    def stamped(self, name: str, call):
        """`call`, after which the time is kept under `name`: the last one stays."""

        async def wrapped(*arguments):
            result = await call(*arguments)
            self.at[name] = time.perf_counter()
            return result

        return wrapped

    def around_update(self, role: str, update):
        async def wrapped(samples):
            self.at.setdefault("updates begin", time.perf_counter())
            report = await update(samples)
            self.updates[role] = time.perf_counter(), report
            return report

        return wrapped

    def around_after(self, after):
        async def wrapped(step):
            self.at["updates end"] = time.perf_counter()
            await after(step)
            self.at["end"] = time.perf_counter()
            self.finish()

        return wrapped

    def finish(self) -> None:
        """The parts of this step, seconds; a step without an update teaches nothing here and is an error."""
        at, (_, report) = self.at, max(self.updates.values(), key=lambda ended: ended[0])
        if not report["optimizer_steps"]:
            raise SystemExit(
                "the role that ended last found nothing to learn in this step: its parts would not be those of a step"
            )
        parts = {
            "rollout": at["last turn"] - at["begin"],
            "reward": at["rolled out"] - at["last turn"],
            "samples": at["updates begin"] - at["rolled out"] + report["clock/packing"],
            "forward and backward": report["clock/passes"],
            "optimizer": report["clock/optimizer"],
            "publish": report["perf/weight_sync_s"],
            "logging": at["end"] - at["updates end"],
        }
        wall = at["end"] - at["begin"]
        self.steps.append(parts | {"remainder": wall - sum(parts.values()), "wall": wall})
        say(
            f"  step {len(self.steps)}: {wall:.2f} s, "
            + ", ".join(f"{name} {self.steps[-1][name] / wall:.1%}" for name in PARTS)
        )
        self.at, self.updates = {"begin": at["end"]}, {}


async def measure(folder: Path, runs: int) -> Clocks:
    """The steps' parts, after two steps of warm-up."""
    models = tiny_models.make_speaking(folder)
    steps = runs + 2
    config = tiny_models.config(
        folder,
        models,
        max_steps=steps,
        num_problems=PROBLEMS,
        num_generations=GENERATIONS,
        save_steps=0,
        sample_steps=0,
        long=tiny_models.role(models["long"], max_num_seqs=128, kv_cache_gib=0.25),
        short=tiny_models.role(models["short"], max_num_seqs=128, kv_cache_gib=0.25),
    )
    trainer, clocks = LongShortTrainer(args=config), Clocks()
    (trainer.output_dir / "episodes").mkdir(parents=True)
    async with trainer.pair() as pair:
        for role, policy in pair.policies.items():
            policy.generate = clocks.stamped("last turn", policy.generate)
            policy.update = clocks.around_update(role, policy.update)
            await policy.learner._actors[0].__ray_call__.remote(set_clocks)
        trainer.reward = SynergyReward(config.reward, config.prices, trainer.protocol, pair.pool)
        clocks.at["begin"] = time.perf_counter()
        await train_loop(
            start=0,
            steps=steps,
            roll_out=clocks.stamped("rolled out", trainer.rollouts(pair)),
            policies=pair.policies,
            advantage=trainer.advantage,
            schedule=trainer.schedule,
            staleness=0,
            after=clocks.around_after(Recorder(trainer.config, steps, trainer.protocol, trainer.advantage, pair).after),
            stop=asyncio.Event(),
        )
    del clocks.steps[:2]
    return clocks


def main() -> None:
    asked = options(__doc__, runs=8)
    with tempfile.TemporaryDirectory() as temporary:
        clocks = asyncio.run(measure(Path(temporary), asked.runs))
    shares: dict[str, tuple[float, ...]] = defaultdict(tuple)
    for step in clocks.steps:
        for name in PARTS:
            shares[name] += (step[name] / step["wall"],)
    figures = [Figure(what=f"share of an RL step: {name}", values=shares[name], form="{:.2%}") for name in PARTS[:-1]]
    figures.append(
        Figure(
            what="share of an RL step in none of these parts",
            values=shares["remainder"],
            ideal=(0.0,),
            limit="the parts add up to the step",
            at_most=MOST_REMAINDER,
            form="{:.2%}",
            cause="Samples and reports travel between processes, which wait for a core while both engines and both "
            "learners want two.",
        )
    )
    notes = [
        f"seconds per step {spread([step['wall'] for step in clocks.steps])}",
        f"the medians add up to {sum(median(values) for values in shares.values()):.1%} (each step's shares to 100 %)",
    ]
    leave("step_breakdown", __doc__, figures, asked.results, notes)


if __name__ == "__main__":
    main()
