"""LongShortTrainer: two different models, one training run.

    args = LongShortConfig(output_dir="runs/x", max_steps=100)
    LongShortTrainer(long="models/a", short="models/b", train_dataset=problems, args=args).train()

The command line's `longshort train recipe.yaml` and a Ray job make exactly this object.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longshort import checkpoint, console
from longshort.config import LongShortConfig, dump, parse
from longshort.learning.advantages import advantages
from longshort.learning.loop import role_schedule, train_loop
from longshort.pair import Pair, make_protocol
from longshort.progress import Progress
from longshort.team.rewards import SynergyReward
from longshort.team.rollout import Decoding, RewardFunction
from longshort.types import Group, LongShortError, Problem

RESUMABLE_CHANGES = {
    "output_dir", "stages", "save_steps", "save_total_limit", "eval_steps", "logging_steps", "sample_steps", "report_to", "eval", "grading",
    "max_engine_restarts", "engine_timeout_s", "max_skipped_steps",
}  # fmt: skip
"""Settings that may differ between a checkpoint and the run that resumes it; any other change would train something else."""


class Interrupted(LongShortError):
    """SIGINT or SIGTERM arrived; everything is saved. `code` is the exit status that shells expect."""

    def __init__(self, number: int, folder: Path):
        super().__init__(f"stopped by {signal.Signals(number).name}; saved {folder}; continue with --resume")
        self.code = 128 + number


class LongShortTrainer:
    """Trains the pair by multi-turn RL.

    `long`, `short`: model folders or hub names (default: the recipe's). `train_dataset`: problems, or dicts with the columns that
    longshort/data.py knows (default: the recipe's `dataset`). `reward`: `(problem, episodes, progress) -> [Reward]`, plain or async
    (default: the recipe's synergy reward). `protocol`: an object like those in longshort/team/protocols.py (default: the recipe's).
    Raises LongShortError before anything starts if the settings, models or data cannot work.
    """

    def __init__(
        self,
        *,
        long: str | None = None,
        short: str | None = None,
        train_dataset: Sequence[Problem] | Sequence[dict[str, Any]] | None = None,
        reward: RewardFunction | None = None,
        protocol=None,
        args: LongShortConfig | None = None,
    ):
        args = args or LongShortConfig()
        changes = {role: args.role(role).model_dump() | {"model": model} for role, model in (("long", long), ("short", short)) if model}
        self.config = parse(args.model_dump() | changes)
        self.protocol = protocol or make_protocol(self.config)
        self.problems = _problems(train_dataset, self.config)
        self.reward, self.output_dir = reward, Path(self.config.output_dir)
        self.steps = self.config.max_steps
        self.schedule = role_schedule(self.config.schedule, self.steps, self.protocol.roles)
        for role in self.protocol.roles:
            if not self.config.role(role).model:
                raise LongShortError(f"{role}.model is empty: name a model folder or a hub name for the {role} role")

    def train(self, resume: bool | str | Path = False) -> dict[str, float]:
        """Train to `max_steps`; returns the last step's metrics. `resume`: True (output_dir's newest checkpoint), or a checkpoint folder.

        SIGINT and SIGTERM save a checkpoint and raise Interrupted. No process outlives the call.
        """
        return asyncio.run(self._train(resume))

    async def _train(self, resume: bool | str | Path) -> dict[str, float]:
        folder = self.checkpoint_to_resume(resume)
        self.check()
        async with self.pair(folder) as pair:
            return await self.run(pair, folder)

    def check(self) -> None:
        """Refuse, before anything starts, what cannot work (LongShortError): see longshort/plan.py."""
        from longshort.plan import check

        check(self.config, problems=self.problems, protocol=self.protocol, graded=self.reward is None)

    def checkpoint_to_resume(self, resume: bool | str | Path) -> Path | None:
        """The verified checkpoint to continue from, or None; raises LongShortError if it is damaged, foreign or of another recipe."""
        if not resume:
            return None
        folder = checkpoint.latest(self.output_dir) if resume is True else Path(resume)
        saved = checkpoint.verify(folder)["recipe"]
        current = self.config.model_dump(mode="json")
        for key in sorted(current.keys() - RESUMABLE_CHANGES):
            if saved.get(key) != current[key]:
                raise LongShortError(
                    f"cannot resume {folder}: {key} was {saved.get(key)!r} and is now {current[key]!r}; restore it, or start a new run "
                    "in another output_dir"
                )
        return folder

    def pair(self, folder: Path | None = None) -> Pair:
        """The engines and learners of this run, from the recipe's models or from a checkpoint."""
        models = {role: str(folder / role) if folder else self.config.role(role).model for role in self.protocol.roles}
        updates = {role: sum(role in self.schedule(step) for step in range(self.steps)) for role in self.protocol.roles}
        return Pair(self.config, models, total_updates=updates, protocol=self.protocol)

    async def run(self, pair: Pair, folder: Path | None = None) -> dict[str, float]:
        """Train with a live pair; on a signal, drop the rollout under way, save what is learned, raise Interrupted."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / "episodes").mkdir(exist_ok=True)
        (self.output_dir / "recipe.yaml").write_text(dump(self.config))
        progress = Progress(self, pair)
        if folder:
            facts = checkpoint.verify(folder)
            progress.done = facts["step"]
            await asyncio.gather(*(policy.learner.call("load", str(folder / "state" / role)) for role, policy in pair.policies.items()))
            for role, policy in pair.policies.items():
                policy.version = facts["versions"][role]
            console.say(f"resumed {folder} after step {progress.done}")
        reward = self.reward or SynergyReward(self.config.reward, self.config.prices, self.protocol, pair.pool)
        stop = asyncio.Event()
        with _signals(stop) as received:
            async with console.heartbeat(progress.status):
                await train_loop(
                    start=progress.done,
                    steps=self.steps,
                    problems=self.step_problems,
                    policies=pair.policies,
                    protocol=self.protocol,
                    reward=reward,
                    advantage=self.advantage,
                    schedule=self.schedule,
                    group_size=self.config.num_generations,
                    decoding=Decoding(temperature=self.config.temperature, top_p=self.config.top_p, top_k=self.config.top_k),
                    seed=self.config.seed,
                    after=progress.after,
                    stop=stop,
                )
            if received and progress.done < self.steps:
                raise Interrupted(received[0], await progress.save())
        if progress.saved != progress.done:
            await progress.save()
        return progress.metrics

    def step_problems(self, step: int) -> list[Problem]:
        """The problems of a step: epoch after epoch of seeded permutations, so that the step alone says where in the data a run is."""
        size, wanted = len(self.problems), self.config.num_problems
        picked = []
        for position in range(step * wanted, (step + 1) * wanted):
            epoch, offset = divmod(position, size)
            picked.append(self.problems[self._order(epoch)[offset]])
        return picked

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_cached_epoch", None) != epoch:
            self._cached_epoch, self._cached_order = epoch, list(range(len(self.problems)))
            random.Random(f"{self.config.seed}/{epoch}").shuffle(self._cached_order)
        return self._cached_order

    def advantage(self, groups: Sequence[Group], role: str) -> list[list[float]]:
        return advantages(groups, role, self.config.advantage, self.config.scale_rewards)


def _problems(dataset, config: LongShortConfig) -> list[Problem]:
    from longshort.data import load_problems, normalise

    if dataset is None:
        if not config.dataset:
            raise LongShortError("no training problems: set `dataset` in the recipe, or pass train_dataset=")
        problems = load_problems(config.dataset)
    else:
        problems = [row if isinstance(row, Problem) else normalise(row, f"train_dataset[{i}]") for i, row in enumerate(dataset)]
    if not problems:
        raise LongShortError(f"the training set {config.dataset or 'train_dataset'} is empty")
    return problems


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[list[int]]:
    """While the block runs in the main thread, the first SIGINT or SIGTERM sets `stop`; a second one ends the process as usual."""
    loop, received, handled = asyncio.get_running_loop(), [], (signal.SIGINT, signal.SIGTERM)

    def arrived(number: int) -> None:
        console.say(f"{signal.Signals(number).name}: saving before leaving (again: leave at once) …")
        received.append(number)
        stop.set()
        loop.remove_signal_handler(number)

    if threading.current_thread() is threading.main_thread():
        for number in handled:
            loop.add_signal_handler(number, arrived, number)
    try:
        yield received
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
