"""What surrounds a training run's loop: log lines, metrics, episodes, checkpoints."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort import console
from longshort.dialogue.metrics import group_metrics
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.command import measure
from longshort.evaluation.names import TRAINING
from longshort.evaluation.tasks import Prepared, prepare_benchmarks
from longshort.learning.advantages import zero_variance
from longshort.learning.loop import AdvantageFunction, Step, spoken
from longshort.pair import Pair
from longshort.recipe.schema import LongShortConfig
from longshort.runs import checkpoint
from longshort.runs.episodes import episode_row
from longshort.runs.tracking import open_trackers
from longshort.types import Group
from longshort.version import __version__


class Recorder:
    """What surrounds the loop: log lines, metrics, episodes, checkpoints."""

    def __init__(
        self,
        config: LongShortConfig,
        output_dir: Path,
        steps: int,
        protocol: TurnProtocol,
        advantage: AdvantageFunction,
        pair: Pair,
    ):
        self.config, self.output_dir, self.steps, self.protocol = config, output_dir, steps, protocol
        self.advantage, self.pair = advantage, pair
        self.done, self.saved, self.metrics = 0, -1, {}
        self._log = open_trackers(self.config)
        self._began, self._started_at = time.monotonic(), None
        self._engines: dict[str, dict[str, float]] = {}
        self._measured = time.monotonic()
        self._benchmarks: list[Prepared] = []

    def continue_from(self, step: int) -> None:
        """This run goes on after `step`, which is saved; later rows of an interrupted run's metrics are dropped."""
        self.done = self.saved = step
        path = self.output_dir / "metrics.jsonl"
        if path.is_file():
            rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

    def status(self) -> str:
        waiting = {role: policy.engine.waiting for role, policy in self.pair.policies.items()}
        return f"step {self.done + 1}/{self.steps}, turns being sampled: {waiting}"

    async def after(self, step: Step) -> None:
        if self._started_at is None:
            self._started_at = step.index
        self.done = step.index + 1
        self.metrics = await self._metrics(step)
        if self.config.eval_steps and self.done % self.config.eval_steps == 0:
            self.metrics |= await self._evaluate()
        self._log(self.done, self.metrics)
        self._write_episodes(step, await self._gaps(step))
        self._print(step)
        if self.config.save_steps and self.done % self.config.save_steps == 0:
            await self.save()

    async def _metrics(self, step: Step) -> dict[str, float]:
        metrics = group_metrics([*step.groups, *step.replaced], self.protocol, self.config.prices)
        metrics["team/refilled_groups"] = len(step.replaced)
        since, self._measured = self._measured, time.monotonic()
        for role, update in step.updates.items():
            metrics |= {f"{role}/{name}": value for name, value in update.items()}
            metrics[f"{role}/zero_variance_groups"] = sum(
                zero_variance(group, role, self.config.advantage) for group in step.groups
            )
        for role, policy in self.pair.policies.items():
            stats, before = await policy.engine.stats(), self._engines.get(role, {})
            if any(stats[name] < value for name, value in before.items()):  # a new process counts from 0
                before = {}
            delta = {name: value - before.get(name, 0) for name, value in stats.items()}
            self._engines[role] = stats
            metrics[f"rollout/idle_frac/{role}"] = (
                max(0.0, 1 - delta["busy_s"] / (self._measured - since)) if before else 0.0
            )
            metrics[f"rollout/prefix_cache_hits/{role}"] = delta["cached_tokens"] / max(1, delta["prompt_tokens"])
            metrics[f"rollout/engine_restarts/{role}"] = policy.engine.restarts
        metrics |= {f"grading/{reason}": count for reason, count in self.pair.pool.counts.items()}
        return metrics | {
            "perf/rollout_s": step.rollout_s,
            "perf/update_s": step.update_s,
            "perf/step_s": step.rollout_s + step.update_s,
        }

    async def _evaluate(self) -> dict[str, float]:
        """The pair as it is now: on the first benchmark as `eval/…`, on all of them in `eval/training.json`."""
        if not self._benchmarks:
            self._benchmarks, _ = await asyncio.to_thread(prepare_benchmarks, self.config, self.pair.pool)
        options = {"evaluation": TRAINING, "benchmarks": self._benchmarks, "greedy": False}
        summary = await measure(self.config, self.pair, f"step-{self.done}", title=f"pair, step {self.done}", **options)
        console.say(
            f"  evaluation on {summary['n']} problems: accuracy {summary['accuracy']:.3f}  cost {summary['cost']:.1f}"
        )
        return {f"eval/{name}": value for name, value in summary.items() if isinstance(value, int | float)}

    def _print(self, step: Step) -> None:
        if self.done % self.config.logging_steps == 0:
            taken = time.monotonic() - self._began
            per_step = taken / (self.done - self._started_at)
            console.say(console.step_line(step.index, self.steps, self.metrics, per_step * (self.steps - self.done)))
        if all(update.get("skipped_empty") for update in step.updates.values()):
            console.say(
                "! every group scored the same: nothing to learn from this step; harder problems, a higher temperature or more "
                "generations help"
            )
        for role, update in step.updates.items():
            if update.get("skipped"):
                console.say(
                    f"! {role}: loss or gradient was not finite; the step was skipped "
                    f"(max_skipped_steps is {self.config.max_skipped_steps})"
                )
        if self.config.sample_steps and self.done % self.config.sample_steps == 0:
            group = step.groups[0]
            reward = group.rewards[0]
            mean = sum(reward.totals.values()) / len(reward.totals)
            console.say(console.dialogue(group.episodes[0], mean, reward.terms.get("correct", mean) > 0))

    async def _gaps(self, step: Step) -> dict[str, list[list[float] | None]]:
        """By role updated in this step: how far its learner and its engine disagreed on each token, one entry per training sample."""
        gaps = await asyncio.gather(*(self.pair.policies[role].gaps() for role in step.updates))
        return dict(zip(step.updates, gaps, strict=True))

    def _write_episodes(self, step: Step, gaps: Mapping[str, Sequence[list[float] | None]]) -> None:
        """All episodes of the step with rewards, advantages and, for roles that were trained on them, the gaps (TorchLearner.gaps).

        "gaps" lacks a role that was frozen, said nothing, had advantage 0, was dropped as stale, or whose update was skipped as not
        finite; a line without any has no "gaps". Groups whose places were refilled come last: they trained nobody.
        The file gets its name when it is complete, so a reader never sees half of it.
        """
        sets = (step.groups, step.replaced)
        groups = [group for part in sets for group in part]
        values = {role: [row for part in sets for row in self.advantage(part, role)] for role in self.protocol.roles}
        extra = [[{} for _ in group.episodes] for group in groups]
        for role, of_role in gaps.items():
            for (_, row), gap in zip(spoken(step.groups, role, extra[: len(step.groups)]), of_role, strict=True):
                if gap is not None:
                    row.setdefault("gaps", {})[role] = gap
        path = self.output_dir / "episodes" / f"step-{self.done:06d}.jsonl"
        partial = path.with_suffix(".tmp")
        with partial.open("w", encoding="utf-8") as stream:
            for i, group in enumerate(groups):
                for j in range(len(group.episodes)):
                    advantages = {role: value[i][j] for role, value in values.items()}
                    row = _episode_row(self.done, group, j) | {"advantages": advantages} | extra[i][j]
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.replace(path)

    async def save_once(self) -> Path:
        """The checkpoint of the last finished step, saved unless it is already."""
        return self.output_dir / f"checkpoint-{self.done}" if self.saved == self.done else await self.save()

    async def save(self) -> Path:
        """Commit both policies as they are now."""
        folder = checkpoint.begin(self.output_dir, self.done)
        calls = (
            policy.learner.save(folder / role, folder / "state" / role) for role, policy in self.pair.policies.items()
        )
        await asyncio.gather(*calls)
        facts = {
            "step": self.done,
            "versions": {role: policy.version for role, policy in self.pair.policies.items()},
            "longshort": __version__,
            "recipe": self.config.model_dump(mode="json"),
        }
        final = await asyncio.to_thread(checkpoint.commit, folder, facts)
        checkpoint.prune(self.output_dir, self.config.save_total_limit)
        self.saved = self.done
        return final


def _step_of(line: str) -> float:
    """The step of a metrics row; a half-written last line counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf


def _episode_row(step: int, group: Group, index: int) -> dict[str, Any]:
    reward = group.rewards[index]
    return (
        {"step": step}
        | episode_row(group.episodes[index])
        | {"reward": dict(reward.totals), "terms": dict(reward.terms)}
    )
