"""A live pair: two policies, each an engine and (when training) a learner, a protocol between them, and a grader.

async with Pair(config, {"long": "models/a", "short": "models/b"}) as pair:
    await pair.evaluate(problems)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from itertools import compress
from statistics import fmean
from typing import Any

from longshort import console
from longshort.backends import devices, ray_cluster, weight_transfer
from longshort.backends.engines.adapter_engine import AdapterEngine
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.backends.time_share import InTurns, Resident
from longshort.backends.weight_transfer import ObjectStore
from longshort.backends.weights.weight_sync import check_canary
from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.protocols import make_protocol
from longshort.recipe.schema import LongShortConfig
from longshort.types import Completion, LongShortError, Sample, Sampling

CANARY_TOKENS = 8
CANARY_QUESTION = "What is 1+1?"


class LivePolicy:
    """One role's engine and learner. After every update the engine holds the learner's weights, proven by a canary."""

    def __init__(
        self,
        role: str,
        engine: RemoteEngine | AdapterEngine,
        learner: RemoteLearner | None,
        config: LongShortConfig,
        sync: Any = None,
        turns: Resident | None = None,
    ):
        self.role, self.engine, self.learner, self.config = role, engine, learner, config
        self._sync, self._turns = sync or ObjectStore(learner), turns or Resident()
        self.tokenizer, self.context, self.version = engine.tokenizer, engine.context, 0
        self._fresh: list[bool] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        return await self.engine.generate(prompt_ids, sampling)

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from the samples, then publish. An update without an optimizer step (nothing to learn, not finite) publishes nothing,
        unless the engine forgot its weights meanwhile (`time_share`).

        Samples with a token more than `staleness` updates older than the learner are dropped and counted.
        """
        began = time.perf_counter()
        ages = [self.version - sample.version for sample in samples]
        self._fresh = [age <= self.config.staleness for age in ages]
        async with self._turns.learning(self.role):
            metrics = await self.learner.update(list(compress(samples, self._fresh)))
        metrics |= {
            "stale_dropped": self._fresh.count(False),
            "staleness/mean": fmean(ages or [0]),
            "staleness/max": max(ages, default=0),
        }
        learned = time.perf_counter()
        if metrics["optimizer_steps"] or self._turns.forgot(self.role):
            metrics["weight_sync/canary_gap"] = await self.publish()
        return metrics | {"perf/learn_s": learned - began, "perf/weight_sync_s": time.perf_counter() - learned}

    async def gaps(self) -> list[list[float] | None]:
        """The learner's gaps (TorchLearner.gaps), one entry per sample given to the last update; None also for those that were dropped."""
        learned = iter(await self.learner.gaps())
        return [next(learned) if fresh else None for fresh in self._fresh]

    async def begin(self) -> None:
        """Give an engine that starts with the base alone what the learner starts from, as version 0, proven."""
        self.version = -1
        await self.publish()

    async def publish(self) -> float:
        """Push the learner's weights and prove that the engine samples from them; returns the canary's gap in nats.

        An engine that fails the proof is restarted once with the same weights; LongShortError if it fails again.
        """
        self.version += 1
        delivery = await self._sync.delivery(self.version)
        async with self._turns.receiving(self.role):
            await self.engine.receive(delivery)
        try:
            return await self._prove()
        except RuntimeError as error:
            await self.engine.restart(error)
        try:
            return await self._prove()
        except RuntimeError as error:
            raise LongShortError(f"{error}, even after a restart; resume from the last checkpoint") from error

    async def _prove(self) -> float:
        prompt = encode_problem(self.tokenizer, "", CANARY_QUESTION)
        canary = await self.engine.generate(
            prompt, Sampling(max_tokens=CANARY_TOKENS, stop=(), temperature=1.0, seed=self.version)
        )
        if canary.version != self.version:
            raise RuntimeError(
                f"the {self.role} engine answers with version {canary.version}, the learner holds {self.version}"
            )
        scores = await self.learner.score(prompt, canary.token_ids, 1.0)
        engine_dtype, learner_dtype = self.config.role(self.role).engine.dtype, self.config.dtype
        loosest = engine_dtype if learner_dtype == "float32" else learner_dtype
        return check_canary(canary.logprobs, scores, loosest, self.role, self.version)


class Pair:
    """Starts the roles' engines (and learners, if `total_updates` is given) side by side; closes all of them on the way out.

    Engines start from `models`, learners from `learner_models` (default: the same). An engine whose process is replaced starts from
    `models` again before it gets the current weights, so those must outlive the run: a recipe's models, not a checkpoint's.
    """

    def __init__(
        self,
        config: LongShortConfig,
        models: Mapping[str, str],
        *,
        learner_models: Mapping[str, str] | None = None,
        total_updates: Mapping[str, int] | None = None,
        protocol=None,
    ):
        self.config, self.models, self.total_updates = config, dict(models), total_updates
        self.learner_models = dict(learner_models or models)
        self.protocol = protocol or make_protocol(config)
        self.policies: dict[str, LivePolicy] = {}
        self._engines: dict[str, RemoteEngine] = {}
        self._learners: dict[str, RemoteLearner] = {}
        self._turns = InTurns(self._engines, self._learners) if config.time_share else Resident()
        self._undo = contextlib.ExitStack()

    async def __aenter__(self) -> Pair:
        try:
            await self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    async def _start(self) -> None:
        self._undo.callback(ray_cluster.start(self.config))
        self.pool = self._undo.enter_context(GradingPool.of(self.config.grading))
        self._make_policies()
        backends = ", ".join(f"{role}: {policy.engine.backend}" for role, policy in self.policies.items())
        async with console.heartbeat(lambda: f"starting engines ({backends})"):
            learners = [policy.learner.ready() for policy in self.policies.values() if policy.learner]
            await asyncio.gather(*(policy.engine.start() for policy in self.policies.values()), *learners)
            await asyncio.gather(
                *(policy.begin() for role, policy in self.policies.items() if self._begins_with_adapter(role))
            )

    def _make_policies(self) -> None:
        from transformers import AutoTokenizer

        tokenizers = {role: AutoTokenizer.from_pretrained(self.models[role]) for role in self.protocol.roles}
        if self._sharing:
            self.policies |= self._adapted(tokenizers)
            return
        make = self._learning if self.total_updates else self._frozen
        self.policies |= {role: make(role, tokenizer) for role, tokenizer in tokenizers.items()}

    def _begins_with_adapter(self, role: str) -> bool:
        """Whether the engine lacks, when it has started, an adapter that its learner has."""
        lora = self.config.role(role).lora
        return self._sharing or bool(self.total_updates and lora and lora.adapter)

    @property
    def _sharing(self) -> bool:
        """Whether one engine serves both roles. Without learners there are no adapters, and each model has its own."""
        return self.config.share_engine and bool(self.total_updates)

    def _frozen(self, role: str, tokenizer) -> LivePolicy:
        engine = ray_cluster.make_engine(role, self.models[role], self.config, tokenizer)
        self._undo.callback(engine.close)
        return LivePolicy(role, engine, None, self.config)

    def _adapted(self, tokenizers: Mapping[str, Any]) -> dict[str, LivePolicy]:
        """Policies that are adapters of one model, in one engine."""
        policies = {}
        for role, engine in ray_cluster.make_shared_engine(
            self.models[self.protocol.roles[0]], self.config, tokenizers
        ).items():
            self._undo.callback(engine.close)
            policies[role] = LivePolicy(role, engine, self._make_learner(role), self.config)
        return policies

    def _learning(self, role: str, tokenizer) -> LivePolicy:
        """A policy with its learner, and the way between the two."""
        devices.check_time_share(self.config, role)
        settings = self.config.role(role).engine
        way, why = weight_transfer.choose(self.config, role, ray_cluster.engine_backend(settings))
        console.say(f"{role}: new weights travel by {way} ({why})")
        settings = settings.model_copy(
            update={"extra": weight_transfer.engine_options(self.config, way, role) | settings.extra}
        )
        place = ray_cluster.shared_place(self.config, role)
        if place:
            self._undo.callback(ray_cluster.remove_placement_group, place)
        engine = ray_cluster.make_engine(role, self.models[role], self.config, tokenizer, engine=settings, place=place)
        self._undo.callback(engine.close)
        learner = self._make_learner(role, place)
        self._engines[role], self._learners[role] = engine, learner
        return LivePolicy(
            role, engine, learner, self.config, weight_transfer.make_sync(self.config, way, role, learner), self._turns
        )

    def _make_learner(self, role: str, place: Any = None) -> RemoteLearner:
        learner = ray_cluster.make_learner(
            role, self.learner_models[role], self.config, self.total_updates[role], place=place
        )
        self._undo.callback(learner.close)
        return learner

    async def __aexit__(self, *_: object) -> None:
        self._undo.close()
