"""LongShortTrainer: two different models, one training run.

    args = LongShortConfig(output_dir="runs/x", max_steps=100)
    LongShortTrainer(long="models/a", short="models/b", train_dataset=problems, args=args).train()

`longshort train recipe.yaml` and a Ray job make exactly this object.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort import console, interruption
from longshort.data import load_problems, problems_of
from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.rewards import make_reward
from longshort.dialogue.rollout import Admission, Decoding, RewardFunction, live_episodes
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.benchmarks import evaluation_problems
from longshort.grading.golds import gradable
from longshort.interruption import Interrupted
from longshort.learning.advantages import advantages, zero_variance
from longshort.learning.loop import Rollout, role_schedule, roll_out, train_loop
from longshort.pair import LearningPair
from longshort.preflight.checks import check, check_output, check_sampling
from longshort.recipe.paths import expand
from longshort.recipe.schema import LongShortConfig, dump, parse
from longshort.recorder import Recorder
from longshort.runs import checkpoint, lock
from longshort.runs.checkpoint import VerifiedCheckpoint
from longshort.runs.files import move_aside, write_whole
from longshort.runs.layout import RunFolder
from longshort.runs.resuming import checkpoint_to_resume, last_metrics
from longshort.team.folder import save_team
from longshort.types import ROLES, Group, LongShortError, Problem


class LongShortTrainer:
    """Trains the pair by multi-turn RL.

    `long`, `short`: model folders or hub names (default: the recipe's). `train_dataset`: problems, or dicts with the
    columns that longshort/problem_rows.py knows (default: the recipe's `dataset`). `reward`: `(problem, episodes,
    progress) -> [Reward]`, plain or async (default: the recipe's reward). `protocol`: a TurnProtocol (default: the
    recipe's).
    Raises LongShortError before anything starts if the settings, models or data cannot work.
    """

    def __init__(
        self,
        *,
        long: str | None = None,
        short: str | None = None,
        train_dataset: Sequence[Problem] | Sequence[Mapping[str, Any]] | None = None,
        reward: RewardFunction | None = None,
        protocol: TurnProtocol | None = None,
        args: LongShortConfig | None = None,
    ):
        args = args or LongShortConfig()
        models = {role: model for role, model in zip(ROLES, (long, short), strict=True) if model}
        changes = {role: args.role(role).model_dump() | {"model": model} for role, model in models.items()}
        self.config = parse(args.model_dump() | changes)
        self.protocol = protocol or make_protocol(self.config)
        self.problems = _problems(train_dataset, self.config)
        if reward is None and self.config.reward.name == "synergy":
            self.problems = gradable(self.problems, "the training problems")
        self.reward, self.folder = reward, RunFolder.of(self.config)
        self.steps = self.config.max_steps
        self.schedule = role_schedule(self.config.schedule, self.steps, self.protocol.roles)
        self._epoch, self._permutation = -1, list[int]()
        for role in self.protocol.roles:
            if not self.config.role(role).model:
                raise LongShortError(f"{role}.model is empty: name a model folder or a hub name for the {role} role")

    @property
    def output_dir(self) -> Path:
        return self.folder.root

    def train(self, resume: bool | str | Path = False) -> dict[str, float]:
        """Train to `max_steps`; return the last step's metrics.

        `resume`: True (the newest checkpoint; without one from the beginning), or a checkpoint folder. SIGINT, SIGTERM
        and SIGHUP save a checkpoint and raise Interrupted. No process outlives the call.
        """
        return interruption.run(self._train(resume))

    async def _train(self, resume: bool | str | Path) -> dict[str, float]:
        check_output(self.config)
        with lock.hold(self.output_dir):
            start = self.checkpoint_to_resume(resume)
            if start and start.facts["step"] >= self.steps:
                console.say(f"{start.folder}: all {self.steps} steps are done; a larger max_steps goes on")
                return last_metrics(self.folder)
            self.check()
            async with self.pair(start) as pair:
                return await self.run(pair, start)

    def save_model(self, folder: str | Path | None = None) -> Path:
        """Write the pair as it was last saved (`train` saves at its end) as a team folder; return it, by default
        `output_dir`/team.

        The folder holds both models, their tokenizers, the protocol and a card; `Team.from_pretrained` and `longshort
        serve` read it (longshort/team/folder.py). Raises LongShortError if nothing was saved yet, or if the protocol
        is not the recipe's.
        """
        if type(self.protocol) is not type(make_protocol(self.config)):
            raise LongShortError(
                "a team folder holds a protocol that a recipe can name, "
                f"not {type(self.protocol).__name__}; the models are in {checkpoint.latest(self.output_dir)}"
            )
        if not checkpoint.steps(self.output_dir):
            raise LongShortError(f"nothing to save: {self.output_dir} holds no checkpoint yet; train first")
        return save_team(expand(folder or self.folder.team, "folder"), self.config, checkpoint.latest(self.output_dir))

    def check(self) -> None:
        """Refuse, before anything starts, what cannot work: see longshort/preflight/checks.py."""
        console.say("checking models, tokenizers, data and memory")
        check_sampling(self.config)
        held_out = evaluation_problems(self.config)
        check(
            self.config, training=self.problems, held_out=held_out, protocol=self.protocol, graded=self.reward is None
        )

    def checkpoint_to_resume(self, resume: bool | str | Path) -> VerifiedCheckpoint | None:
        """Return the verified checkpoint to continue from, or None for the beginning (longshort/runs/resuming.py)."""
        return checkpoint_to_resume(self.config, resume)

    def pair(self, start: VerifiedCheckpoint | None = None) -> LearningPair:
        """Make the engines and learners of this run, from the recipe's models or from a checkpoint."""
        models = {role: self.config.role(role).model for role in self.protocol.roles}
        learner_models = {role: str(start.folder / role) for role in models} if start else None
        updates = {role: sum(role in self.schedule(step) for step in range(self.steps)) for role in self.protocol.roles}
        return LearningPair(
            self.config, models, learner_models=learner_models, total_updates=updates, protocol=self.protocol
        )

    async def run(self, pair: LearningPair, start: VerifiedCheckpoint | None = None) -> dict[str, float]:
        """Train with a live pair, from the checkpoint `start` if given.

        On a signal, drop the rollouts under way, save, raise Interrupted.
        """
        if aside := move_aside(self.output_dir, self.folder.of_steps(start.facts["step"] if start else 0)):
            console.say(f"what an earlier run left of the steps to come is now in {aside}")
        write_whole(self.folder.recipe, dump(self.config))
        recorder = Recorder(self.config, self.steps, self.protocol, self.advantage, pair)
        if start:
            await self._restore(pair, start, recorder)
        stop = asyncio.Event()
        with interruption.graceful(stop) as received:
            async with console.heartbeat(recorder.status):
                await train_loop(
                    start=recorder.done,
                    steps=self.steps,
                    roll_out=self.rollouts(pair),
                    policies=pair.policies,
                    advantage=self.advantage,
                    schedule=self.schedule,
                    staleness=self.config.staleness,
                    after=recorder.after,
                    stop=stop,
                )
            if received:
                raise Interrupted(
                    received[0],
                    f"saved {await recorder.save_once()}; continue with --resume (`longshort run` continues by itself)",
                )
        await recorder.save_once()
        return recorder.metrics

    def rollouts(self, pair: LearningPair) -> Callable[[int], Awaitable[Rollout]]:
        """Return the function that rolls out a step, with as many live episodes as keep both engines decoding."""
        config = self.config
        decoded = sum(engine.max_num_seqs for engine in config.engines(self.protocol.roles))
        return functools.partial(
            roll_out,
            steps=self.steps,
            problems=self.step_problems,
            spares=self.spare_problems,
            zero_variance=lambda step, group: all(
                zero_variance(group, role, config.advantage) for role in self.schedule(step)
            ),
            policies=pair.policies,
            protocol=self.protocol,
            reward=self.reward or make_reward(config, self.protocol, pair.pool),
            group_size=config.num_generations,
            decoding=Decoding(temperature=config.temperature, top_p=config.top_p, top_k=config.top_k),
            seed=config.seed,
            admission=Admission(live=live_episodes(decoded), starting=config.num_problems * config.num_generations),
        )

    async def _restore(self, pair: LearningPair, start: VerifiedCheckpoint, recorder: Recorder) -> None:
        """Restore the learners' state (they hold the checkpoint's weights already) and publish their weights to the
        engines.
        """
        folder, facts = start.folder, start.facts
        recorder.continue_from(facts["step"])
        await asyncio.gather(*(policy.learner.load(folder / "state" / role) for role, policy in pair.policies.items()))
        for role, policy in pair.policies.items():
            policy.version = facts["versions"][role] - 1
        await asyncio.gather(*(policy.publish() for policy in pair.policies.values()))
        console.say(f"resumed {folder} after step {recorder.done}")

    def step_problems(self, step: int) -> list[Problem]:
        """Return the problems of a step, in epochs of seeded permutations: the step alone decides the place in the
        data.
        """
        size, count = len(self.problems), self.config.num_problems
        picked = []
        for position in range(step * count, (step + 1) * count):
            epoch, offset = divmod(position, size)
            picked.append(self.problems[self._order(epoch)[offset]])
        return picked

    def spare_problems(self, step: int) -> list[Problem]:
        """Return at most `refill` problems that are not in the step; seeded separately, so refills never change the
        regular order.
        """
        if not self.config.refill:
            return []
        taken = {problem.id for problem in self.step_problems(step)}
        others = [problem for problem in self.problems if problem.id not in taken]
        return random.Random(f"{self.config.seed}/refill/{step}").sample(others, min(self.config.refill, len(others)))

    def _order(self, epoch: int) -> list[int]:
        """Return the order of the problems in an epoch; the newest one is kept."""
        if self._epoch != epoch:
            self._epoch, self._permutation = epoch, list(range(len(self.problems)))
            random.Random(f"{self.config.seed}/{epoch}").shuffle(self._permutation)
        return self._permutation

    def advantage(self, groups: Sequence[Group], role: str) -> list[list[float]]:
        return advantages(groups, role, self.config.advantage, self.config.scale_rewards)


def _problems(
    dataset: Sequence[Problem] | Sequence[Mapping[str, Any]] | None, config: LongShortConfig
) -> list[Problem]:
    """Return the training problems, from the argument if given, else from the recipe."""
    if dataset is not None:
        return problems_of(dataset, "train_dataset")
    if not config.dataset:
        raise LongShortError("no training problems: set `dataset` in the recipe, or pass train_dataset=")
    return load_problems(config.dataset)
