"""What a training run writes beside its loop: metrics, log lines, episodes, evaluations, checkpoints."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort import console
from longshort.dialogue.metrics import group_metrics
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.command import measure
from longshort.evaluation.records import TRAINING
from longshort.evaluation.tasks import Prepared, prepare_benchmarks
from longshort.learning.advantages import zero_variance
from longshort.learning.loop import AdvantageFunction, Step, speaking_episodes
from longshort.pair import LearningPair
from longshort.recipe.schema import LongShortConfig
from longshort.runs import checkpoint
from longshort.runs.episodes import episode_row
from longshort.runs.files import open_whole, write_whole
from longshort.runs.layout import RunFolder
from longshort.runs.tracking import open_trackers
from longshort.types import Group
from longshort.version import __version__

Gaps = Mapping[str, Sequence[list[float] | None]]
"""By role: the learner's log-prob minus the engine's of each token, one list per training sample (TorchLearner.gaps).
"""


class Recorder:
    """Records each finished step of a training run in its folder and on the terminal."""

    def __init__(
        self,
        config: LongShortConfig,
        steps: int,
        protocol: TurnProtocol,
        advantage: AdvantageFunction,
        pair: LearningPair,
    ):
        self.config, self.steps, self.protocol = config, steps, protocol
        self.advantage, self.pair, self.folder = advantage, pair, RunFolder.of(config)
        self.done, self.saved = 0, -1
        """Steps finished, and the step of the newest checkpoint (-1: none)."""
        self.metrics: dict[str, float] = {}
        self._log = open_trackers(config)
        self._started = self._last_step = time.monotonic()
        self._done_before = 0
        """Steps that earlier processes of this run did."""
        self._engine_stats: dict[str, dict[str, float]] = {}
        self._benchmarks: list[Prepared] = []

    def continue_from(self, step: int) -> None:
        """Continue after `step`, which is saved; drop metrics rows that an interrupted run wrote after it."""
        self.done = self.saved = self._done_before = step
        if self.folder.metrics.is_file():
            lines = self.folder.metrics.read_text(encoding="utf-8").splitlines()
            write_whole(self.folder.metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def status(self) -> str:
        """Say what the run is waiting for, in one line."""
        waiting = {role: policy.engine.waiting for role, policy in self.pair.policies.items()}
        return f"step {self.done + 1}/{self.steps}, turns being sampled: {waiting}"

    async def after(self, step: Step) -> None:
        """Record a finished step; evaluate and save where the recipe asks for it."""
        self.done = step.index + 1
        self.metrics = await self._measure(step)
        if self.config.eval_steps and self.done % self.config.eval_steps == 0:
            self.metrics |= await self._evaluate()
        self._log(self.done, self.metrics)
        gaps = await asyncio.gather(*(self.pair.policies[role].gaps() for role in step.updates))
        await asyncio.to_thread(self.write_episodes, step, dict(zip(step.updates, gaps, strict=True)))
        self._print(step)
        if self.config.save_steps and self.done % self.config.save_steps == 0:
            await self.save()

    async def _measure(self, step: Step) -> dict[str, float]:
        metrics = group_metrics([*step.groups, *step.replaced], self.protocol, self.config.prices)
        metrics["team/refilled_groups"] = len(step.replaced)
        for role, update in step.updates.items():
            metrics |= {f"{role}/{name}": value for name, value in update.items()}
            flat = [group for group in step.groups if zero_variance(group, role, self.config.advantage)]
            metrics[f"{role}/zero_variance_groups"] = len(flat)
        metrics |= await self._engine_metrics()
        metrics |= {f"grading/{reason}": count for reason, count in self.pair.pool.counts.items()}
        seconds = {"rollout": step.rollout_s, "update": step.update_s, "step": step.rollout_s + step.update_s}
        return metrics | {f"perf/{name}_s": value for name, value in seconds.items()}

    async def _engine_metrics(self) -> dict[str, float]:
        """Return what each engine did since the step before."""
        metrics: dict[str, float] = {}
        before, self._last_step = self._last_step, time.monotonic()
        for role, policy in self.pair.policies.items():
            stats, old = await policy.engine.stats(), self._engine_stats.get(role, {})
            if any(stats[name] < value for name, value in old.items()):
                old = {}  # a new process counts from 0
            new = {name: value - old.get(name, 0) for name, value in stats.items()}
            idle = max(0.0, 1 - new["busy_s"] / (self._last_step - before)) if old else 0.0
            metrics[f"rollout/idle_frac/{role}"] = idle
            metrics[f"rollout/prefix_cache_hits/{role}"] = new["cached_tokens"] / max(1, new["prompt_tokens"])
            metrics[f"rollout/engine_restarts/{role}"] = policy.engine.restarts
            self._engine_stats[role] = stats
        return metrics

    async def _evaluate(self) -> dict[str, float]:
        """Evaluate the pair as it is now: return `eval/…` on the first benchmark, write all of them to
        `eval/training.json`.
        """
        if not self._benchmarks:
            self._benchmarks, _ = await asyncio.to_thread(prepare_benchmarks, self.config, self.pair.pool)
        summary = await measure(
            self.config,
            self.pair,
            f"step-{self.done}",
            title=f"pair, step {self.done}",
            evaluation=TRAINING,
            benchmarks=self._benchmarks,
            greedy=False,
        )
        accuracy, cost = summary["accuracy"], summary["cost"]
        console.say(f"  evaluation on {summary['n']} problems: accuracy {accuracy:.3f}  cost {cost:.1f}")
        return {f"eval/{name}": value for name, value in summary.items() if isinstance(value, int | float)}

    def _print(self, step: Step) -> None:
        config = self.config
        if self.done % config.logging_steps == 0:
            per_step = (time.monotonic() - self._started) / (self.done - self._done_before)
            console.say(console.step_line(step.index, self.steps, self.metrics, per_step * (self.steps - self.done)))
        if all(update.get("skipped_empty") for update in step.updates.values()):
            console.say(
                "! every group scored the same: nothing to learn from this step; "
                "harder problems, a higher temperature or more generations help"
            )
        for role, update in step.updates.items():
            if update.get("skipped"):
                limit = config.max_skipped_steps
                console.say(
                    f"! {role}: loss or gradient was not finite; the step was skipped (max_skipped_steps is {limit})"
                )
        if config.sample_steps and self.done % config.sample_steps == 0:
            episode, reward = step.groups[0].episodes[0], step.groups[0].rewards[0]
            mean = sum(reward.totals.values()) / len(reward.totals)
            console.say(console.dialogue(episode, mean, reward.terms.get("correct", mean) > 0))

    def write_episodes(self, step: Step, gaps: Gaps) -> None:
        """Write every episode of the step, one JSON line each. Groups that were replaced come last; no role learned
        from them.
        """
        path = self.folder.step_episodes(step.index + 1)
        with open_whole(path) as stream:
            for row in episode_rows(step, self.protocol.roles, self.advantage, gaps):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    async def save_once(self) -> Path:
        """Return the checkpoint of the last finished step; save it first unless that is done."""
        return self.folder.checkpoint(self.done) if self.saved == self.done else await self.save()

    async def save(self) -> Path:
        """Commit both policies as they are now, and remove checkpoints beyond `save_total_limit`."""
        folder = checkpoint.begin(self.folder.root, self.done)
        learners = {role: policy.learner for role, policy in self.pair.policies.items()}
        await asyncio.gather(
            *(learner.save(folder / role, folder / "state" / role) for role, learner in learners.items() if learner)
        )
        facts = {
            "step": self.done,
            "versions": {role: policy.version for role, policy in self.pair.policies.items()},
            "longshort": __version__,
            "recipe": self.config.model_dump(mode="json"),
        }
        final = await asyncio.to_thread(checkpoint.commit, folder, facts)
        checkpoint.prune(self.folder.root, self.config.save_total_limit)
        self.saved = self.done
        return final


def episode_rows(
    step: Step, roles: Sequence[str], advantage: AdvantageFunction, gaps: Gaps
) -> Iterator[dict[str, Any]]:
    """Yield a step's episodes with their rewards, advantages and gaps, in the order of the groups.

    A row has "gaps" for the roles that learned from its episode; a role that was frozen, said nothing, had advantage
    0, was dropped as stale or whose update was skipped is missing there.
    """
    places = [[(i, j) for j in range(len(group.episodes))] for i, group in enumerate(step.groups)]
    gaps_at: dict[tuple[int, int], dict[str, list[float]]] = defaultdict(dict)
    for role, of_role in gaps.items():
        for (_, place), gap in zip(speaking_episodes(step.groups, role, places), of_role, strict=True):
            if gap is not None:
                gaps_at[place][role] = gap
    for (i, j), row in _scored_rows(step.index + 1, step.groups, roles, advantage):
        yield row | ({"gaps": gaps_at[i, j]} if (i, j) in gaps_at else {})
    for _, row in _scored_rows(step.index + 1, step.replaced, roles, advantage):
        yield row


def _scored_rows(
    number: int, groups: Sequence[Group], roles: Sequence[str], advantage: AdvantageFunction
) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Yield (group, episode) positions and their rows without gaps."""
    advantages = {role: advantage(groups, role) for role in roles} if groups else {}
    for i, group in enumerate(groups):
        for j, (episode, reward) in enumerate(zip(group.episodes, group.rewards, strict=True)):
            scores = {"reward": dict(reward.totals), "terms": dict(reward.terms)}
            scores["advantages"] = {role: advantages[role][i][j] for role in roles}
            yield (i, j), {"step": number} | episode_row(episode) | scores


def _step_of(line: str) -> float:
    """Return the step of a metrics row; a half-written last line counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf
