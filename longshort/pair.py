"""A live pair: two policies, each an engine and (when training) a learner, a protocol between them, and a grader.

async with Pair(config, {"long": "models/a", "short": "models/b"}) as pair:
    await pair.evaluate(problems)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from longshort import console
from longshort.backends import ray_cluster
from longshort.backends.weight_sync import check_canary
from longshort.config import LongShortConfig
from longshort.evaluation.runner import Evaluation, evaluate
from longshort.team.grading import GradingPool
from longshort.team.protocols import PROTOCOLS, encode_problem
from longshort.team.rollout import Decoding
from longshort.types import Completion, Problem, Sample, Sampling

CANARY_TOKENS = 8
CANARY_QUESTION = "What is 1+1?"


class LivePolicy:
    """One role's engine and learner. After every update the engine holds the learner's weights, proven by a canary."""

    def __init__(self, role: str, engine: ray_cluster.RemoteEngine, learner: ray_cluster.RemoteLearner | None, config: LongShortConfig):
        self.role, self.engine, self.learner, self.config = role, engine, learner, config
        self.tokenizer, self.context, self.version = engine.tokenizer, engine.context, 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        return await self.engine.generate(prompt_ids, sampling)

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from the samples, then publish. A skipped step (nothing to learn, or not finite) publishes nothing."""
        began = time.perf_counter()
        metrics = await self.learner.update(samples)
        learned = time.perf_counter()
        if not metrics.get("skipped") and not metrics.get("skipped_empty"):
            metrics["weight_sync/canary_gap"] = await self.publish()
        return metrics | {"perf/learn_s": learned - began, "perf/weight_sync_s": time.perf_counter() - learned}

    async def publish(self) -> float:
        """Push the learner's weights and prove that the engine samples from them; returns the canary's gap in nats.

        An engine that fails the proof is restarted once with the same weights; RuntimeError if it fails again.
        """
        self.version += 1
        await self.engine.load_weights(self.learner.weights(), self.version)
        try:
            return await self._prove()
        except RuntimeError as error:
            await self.engine.restart(error)
            return await self._prove()

    async def _prove(self) -> float:
        prompt = encode_problem(self.tokenizer, "", CANARY_QUESTION)
        canary = await self.engine.generate(prompt, Sampling(max_tokens=CANARY_TOKENS, stop=(), temperature=1.0, seed=self.version))
        if canary.version != self.version:
            raise RuntimeError(f"the {self.role} engine answers with version {canary.version}, the learner holds {self.version}")
        scores = await self.learner.call("score", prompt, canary.token_ids, 1.0)
        engine_dtype, learner_dtype = self.config.role(self.role).engine.dtype, self.config.dtype
        loosest = engine_dtype if learner_dtype == "float32" else learner_dtype
        return check_canary(canary.logprobs, scores, loosest, self.role, self.version)

    async def close(self) -> None:
        self.engine.close()
        if self.learner:
            self.learner.close()


def make_protocol(config: LongShortConfig):
    """The recipe's turn protocol with its budgets and instructions."""
    section = config.protocol
    if section.name == "solo":
        return PROTOCOLS["solo"](turn_tokens=config.long.turn_tokens, instructions=config.long.instructions or "")
    options = {"final_notice": section.final_notice} if section.final_notice is not None else {}
    instructions = {role: config.role(role).instructions for role in ("long", "short")}
    return PROTOCOLS[section.name](
        max_exchanges=section.max_exchanges,
        turn_tokens={role: config.role(role).turn_tokens for role in ("long", "short")},
        episode_tokens=section.episode_tokens,
        tags=section.tags,
        instructions={role: text for role, text in instructions.items() if text is not None},
        **options,
    )


class Pair:
    """Starts the roles' engines (and learners, if `total_updates` is given) side by side; closes all of them on the way out."""

    def __init__(
        self, config: LongShortConfig, models: Mapping[str, str], *, total_updates: Mapping[str, int] | None = None, protocol=None
    ):
        self.config, self.models, self.total_updates = config, dict(models), total_updates
        self.protocol = protocol or make_protocol(config)
        self.policies: dict[str, LivePolicy] = {}

    async def __aenter__(self) -> Pair:
        self._undo = ray_cluster.start(self.config)
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        from transformers import AutoTokenizer

        self.pool = GradingPool(
            workers=self.config.grading.workers, timeout_s=self.config.grading.timeout_s, memory_mb=self.config.grading.memory_mb
        )
        for role in self.protocol.roles:
            model = self.models[role]
            engine = ray_cluster.RemoteEngine(role, model, self.config, AutoTokenizer.from_pretrained(model))
            learner = ray_cluster.make_learner(role, model, self.config, self.total_updates[role]) if self.total_updates else None
            self.policies[role] = LivePolicy(role, engine, learner, self.config)
        backends = ", ".join(f"{role}: {policy.engine.backend}" for role, policy in self.policies.items())
        async with console.heartbeat(lambda: f"starting engines ({backends})"):
            await asyncio.gather(*(policy.engine.start() for policy in self.policies.values()))

    async def __aexit__(self, *_: object) -> None:
        for policy in self.policies.values():
            await policy.close()
        if hasattr(self, "pool"):
            self.pool.close()
        self._undo()

    async def evaluate(self, problems: Sequence[Problem], *, temperature: float, num_samples: int = 1, seed: int = 0) -> Evaluation:
        """Run held-out problems with the pair as it is now."""
        decoding = Decoding(
            temperature=temperature, top_p=self.config.top_p if temperature else 1.0, top_k=self.config.top_k if temperature else 0
        )
        async with console.heartbeat(lambda: f"evaluating {len(problems)} problems at temperature {temperature:g}"):
            return await evaluate(self.policies, self.protocol, problems, self.pool, decoding, num_samples=num_samples, seed=seed)
