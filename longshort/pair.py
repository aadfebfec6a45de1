"""A live pair: two policies in their own processes, a protocol between them, and a grader.

async with Pair(config, {"long": "models/a", "short": "models/b"}) as pair:
    await run_group(problem, pair.policies, pair.protocol, …)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import compress
from statistics import fmean
from typing import Any, Self

from longshort import console
from longshort.backends import devices, ray_cluster, weight_transfer
from longshort.backends.engines.adapter_engine import AdapterEngine
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.backends.time_share import NoTimeShare, TimeShare
from longshort.backends.weight_transfer import ObjectStore, Route
from longshort.backends.weights.weight_sync import check_canary
from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.turns import TurnProtocol
from longshort.grading.pool import GradingPool
from longshort.recipe.schema import LongShortConfig
from longshort.types import Completion, LongShortError, Sample, Sampling

CANARY_TOKENS = 8
CANARY_QUESTION = "What is 1+1?"
Score = Callable[[Sequence[int], Sequence[int], float], Awaitable[list[float]]]
"""`(prompt ids, ids written after it, temperature) -> the log-prob of each`"""


class FrozenPolicy:
    """One role's engine, with the weights that it started with."""

    def __init__(self, role: str, engine: RemoteEngine | AdapterEngine):
        self.role, self.engine, self.version = role, engine, 0
        self.tokenizer, self.context = engine.tokenizer, engine.context

    async def start(self) -> None:
        """Wait until the policy can answer."""
        await self.engine.start()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        return await self.engine.generate(prompt_ids, sampling)


class LivePolicy(FrozenPolicy):
    """One role's engine and learner. After every update the engine holds the learner's weights, proven by a canary."""

    def __init__(
        self,
        role: str,
        engine: RemoteEngine | AdapterEngine,
        learner: RemoteLearner,
        config: LongShortConfig,
        route: Route,
        time_share: NoTimeShare,
    ):
        super().__init__(role, engine)
        self.learner, self.config = learner, config
        self._route, self._time_share = route, time_share
        self._fresh: list[bool] = []

    async def start(self) -> None:
        """Wait for engine and learner. An engine that starts from the base alone gets the learner's adapter, proven."""
        await asyncio.gather(self.engine.start(), self.learner.ready())
        lora = self.config.role(self.role).lora
        if self.config.share_engine or (lora and lora.adapter):
            self.version = -1
            await self.publish()

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from the samples, then publish. Samples with a token more than `staleness` updates older than the
        learner are dropped and counted.

        An update without an optimizer step (nothing to learn, not finite) publishes nothing, unless the engine dropped
        its weights meanwhile (`time_share`).
        """
        began = time.perf_counter()
        ages = [self.version - sample.version for sample in samples]
        self._fresh = [age <= self.config.staleness for age in ages]
        async with self._time_share.learning(self.role):
            metrics = await self.learner.update(list(compress(samples, self._fresh)))
        metrics |= {
            "stale_dropped": self._fresh.count(False),
            "staleness/mean": fmean(ages or [0]),
            "staleness/max": max(ages, default=0),
        }
        learned = time.perf_counter()
        if metrics["optimizer_steps"] or self._time_share.dropped_weights(self.role):
            metrics["weight_sync/canary_gap"] = await self.publish()
        return metrics | {"perf/learn_s": learned - began, "perf/weight_sync_s": time.perf_counter() - learned}

    async def gaps(self) -> list[list[float] | None]:
        """Return TorchLearner.gaps for the samples of the last update; None for those that were dropped."""
        learned = iter(await self.learner.gaps())
        return [next(learned) if fresh else None for fresh in self._fresh]

    async def publish(self) -> float:
        """Push the learner's weights and prove that the engine samples from them; return the canary's gap in nats.

        An engine that fails the proof is restarted once with the same weights; LongShortError if it fails again.
        """
        self.version += 1
        delivery = await self._route.delivery(self.version)
        async with self._time_share.receiving(self.role):
            await self.engine.receive(delivery)
        return await proven(self.engine, self._prove)

    async def _prove(self) -> float:
        return await canary_gap(self, self.learner.score, self.config)


async def proven(engine: RemoteEngine | AdapterEngine, prove: Callable[[], Awaitable[float]]) -> float:
    """Return what `prove` does; restart the engine once if it raises RuntimeError. LongShortError the second time."""
    try:
        return await prove()
    except RuntimeError as error:
        await engine.restart(error)
    try:
        return await prove()
    except RuntimeError as error:
        raise LongShortError(f"{error}, even after a restart; resume from the last checkpoint") from error


async def canary_gap(policy: FrozenPolicy, score: Score, config: LongShortConfig) -> float:
    """Let the engine write a canary and compare its log-probs with those of the weights that it should hold.

    Returns the mean gap in nats; RuntimeError when it is too large, or the engine answers with another version.
    """
    role, version = policy.role, policy.version
    prompt = encode_problem(policy.tokenizer, "", CANARY_QUESTION)
    sampling = Sampling(max_tokens=CANARY_TOKENS, stop=(), temperature=1.0, seed=version)
    canary = await policy.engine.generate(prompt, sampling)
    if canary.version != version:
        raise RuntimeError(f"the {role} engine answers with version {canary.version}, the learner holds {version}")
    scores = await score(prompt, canary.token_ids, 1.0)
    loosest = config.role(role).engine.dtype if config.dtype == "float32" else config.dtype
    return check_canary(canary.logprobs, scores, loosest, role, version)


class Pair:
    """Frozen policies: starts the roles' engines side by side, and closes them on the way out."""

    policies: Mapping[str, FrozenPolicy]

    def __init__(self, config: LongShortConfig, models: Mapping[str, str], *, protocol: TurnProtocol | None = None):
        self.config, self.models, self.protocol = config, dict(models), protocol or make_protocol(config)
        self._undo = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._undo.close()

    async def _start(self) -> None:
        from transformers import AutoTokenizer

        self._undo.callback(ray_cluster.start(self.config))
        self.pool = self._undo.enter_context(GradingPool.of(self.config.grading))
        tokenizers = {role: AutoTokenizer.from_pretrained(self.models[role]) for role in self.protocol.roles}
        self.policies = self._make_policies(tokenizers)
        backends = ", ".join(f"{role}: {policy.engine.backend}" for role, policy in self.policies.items())
        async with console.heartbeat(lambda: f"starting engines ({backends})"):
            await asyncio.gather(*(policy.start() for policy in self.policies.values()))

    def _make_policies(self, tokenizers: Mapping[str, Any]) -> Mapping[str, FrozenPolicy]:
        return {role: FrozenPolicy(role, self._engine(role, tokenizer)) for role, tokenizer in tokenizers.items()}

    def _engine(self, role: str, tokenizer: Any, **options: Any) -> RemoteEngine:
        engine = ray_cluster.make_engine(role, self.models[role], self.config, tokenizer, **options)
        self._undo.callback(engine.close)
        return engine


class LearningPair(Pair):
    """Policies that learn: as Pair, with a learner for each role.

    Engines start from `models`, learners from `learner_models` (default: the same). An engine whose process is replaced
    starts from `models` again before it gets the current weights, so those must outlive the run: a recipe's models, not
    a checkpoint's. `total_updates` by role are the length of its learning rate schedule.
    """

    policies: Mapping[str, LivePolicy]

    def __init__(
        self,
        config: LongShortConfig,
        models: Mapping[str, str],
        *,
        total_updates: Mapping[str, int],
        learner_models: Mapping[str, str] | None = None,
        protocol: TurnProtocol | None = None,
    ):
        super().__init__(config, models, protocol=protocol)
        self.total_updates, self.learner_models = total_updates, dict(learner_models or models)

    def _make_policies(self, tokenizers: Mapping[str, Any]) -> Mapping[str, LivePolicy]:
        return self._sharing_engine(tokenizers) if self.config.share_engine else self._with_own_engines(tokenizers)

    def _sharing_engine(self, tokenizers: Mapping[str, Any]) -> dict[str, LivePolicy]:
        """Make policies that are adapters of one model, in one engine."""
        model = self.models[self.protocol.roles[0]]
        policies = {}
        for role, engine in ray_cluster.make_shared_engine(model, self.config, tokenizers).items():
            self._undo.callback(engine.close)
            learner = self._learner(role)
            policies[role] = LivePolicy(role, engine, learner, self.config, ObjectStore(learner), NoTimeShare())
        return policies

    def _with_own_engines(self, tokenizers: Mapping[str, Any]) -> dict[str, LivePolicy]:
        """Make policies that have an engine each, and the routes by which their weights travel."""
        policies, engines, learners = {}, {}, {}
        time_share = TimeShare(engines, learners) if self.config.time_share else NoTimeShare()
        for role, tokenizer in tokenizers.items():
            devices.check_time_share(self.config, role)
            settings = self.config.role(role).engine
            name, reason = weight_transfer.choose(self.config, role, devices.engine_backend(settings))
            console.say(f"{role}: new weights travel by {name} ({reason})")
            extra = weight_transfer.engine_options(self.config, name, role) | settings.extra
            place = ray_cluster.shared_place(self.config, role)
            if place:
                self._undo.callback(ray_cluster.remove_placement_group, place)
            settings = settings.model_copy(update={"extra": extra})
            engines[role] = self._engine(role, tokenizer, engine=settings, place=place)
            learners[role] = self._learner(role, place)
            route = weight_transfer.make_route(self.config, name, role, learners[role])
            policies[role] = LivePolicy(role, engines[role], learners[role], self.config, route, time_share)
        return policies

    def _learner(self, role: str, place: Any = None) -> RemoteLearner:
        model, updates = self.learner_models[role], self.total_updates[role]
        learner = ray_cluster.make_learner(role, model, self.config, updates, place=place)
        self._undo.callback(learner.close)
        return learner
