"""Ray: engines and learners as actors, supervised from the driver. The only module that imports ray.

    driver (asyncio) --submit/collect--> EngineActor  (one per policy: vLLM or transformers, its own process)
                     --update----------> LearnerActor (one per policy: torch)   --weights (object store)--> EngineActor

An engine that dies or gives no sign of life is replaced, given the current weights, and asked again for every turn it owed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

if "ray" not in sys.modules and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
    # Whoever can talk to Ray can run code: a cluster of our own gets a secret token. Ray reads both once, while it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from longshort.backends.engine_loop import EngineLoop, make_core
from longshort.config import EngineConfig, LongShortConfig
from longshort.types import Completion, LongShortError, Sample, Sampling

ENGINE_FAILURES = (RayActorError, RayError, GetTimeoutError, TimeoutError, RuntimeError)


def start(config: LongShortConfig) -> Callable[[], None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine that listens on loopback only; returns what undoes it."""
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= _private_cluster()
    ray.init(**options)
    return ray.shutdown


def _private_cluster() -> dict[str, Any]:
    """Settings of a cluster for this process alone: no dashboard (it runs code on request) and nothing listening but on loopback.

    Ray replaces 127.0.0.1 by the machine's outside address before it starts anything; the line that prevents it touches a private
    function because there is no setting for it (ray 2.60).
    """
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    return {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}


class EngineActor:
    """Hosts one engine in its own process; the methods are called from several threads at once."""

    def __init__(self, backend: str, model: str, config: EngineConfig, seed: int):
        self._loop = EngineLoop(lambda: make_core(backend, model, config, seed))

    def ready(self) -> int:
        return os.getpid()

    def submit(self, requests: Sequence[tuple[str, tuple[int, ...], Sampling]]) -> None:
        self._loop.submit(requests)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._loop.abort(request_ids)

    def collect(self) -> list[tuple[str, Completion]]:
        return self._loop.collect(timeout=1.0)

    def load_weights(self, weights: dict[str, Any], version: int) -> None:
        self._loop.load_weights(weights, version)

    def stats(self) -> dict[str, float]:
        return self._loop.stats()


class LearnerActor:
    """Hosts one TorchLearner in its own process."""

    def __init__(self, role: str, model: str, config: LongShortConfig, total_updates: int, threads: int):
        import torch

        from longshort.backends.torch_learner import TorchLearner

        torch.set_num_threads(threads)
        self._learner = TorchLearner(role, model, config, total_updates, reference_folder=config.role(role).model)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._learner, method)(*arguments)


def cpu_share() -> float:
    """CPUs to reserve per actor: one each where the cluster has them, else an equal part (a laptop still runs all of them)."""
    return math.floor(min(1.0, ray.cluster_resources().get("CPU", 1) / 5) * 100) / 100


def engine_backend(config: EngineConfig) -> str:
    """`vllm` or `transformers` for `auto`, by what is installed."""
    from importlib.util import find_spec

    if config.backend != "auto":
        return config.backend
    return "vllm" if find_spec("vllm") else "transformers"


def make_learner(role: str, model: str, config: LongShortConfig, total_updates: int, threads: int = 1):
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    options = {"num_cpus": cpu_share(), "num_gpus": config.learner_gpus, "runtime_env": {"env_vars": environment}}
    return RemoteLearner(ray.remote(LearnerActor).options(**options).remote(role, model, config, total_updates, threads))


async def in_process(function: Callable[..., Any], *arguments: Any, threads: int = 1) -> Any:
    """Run a function in a worker process of its own and await its result; a LongShortError arrives as itself."""
    options = {
        "num_cpus": cpu_share(),
        "max_retries": 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}},
    }
    return await _unwrap(ray.remote(function).options(**options).remote(*arguments))


async def _unwrap(reference) -> Any:
    try:
        return await reference
    except RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, LongShortError) else error from None


class RemoteLearner:
    """The driver's handle on a LearnerActor: every method of TorchLearner, awaited."""

    def __init__(self, actor):
        self._actor = actor

    async def call(self, method: str, *arguments: Any) -> Any:
        return await _unwrap(self._actor.call.remote(method, *arguments))

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        return await self.call("update", list(samples))

    def weights(self):
        """A reference to the weights in the object store, not the weights."""
        return self._actor.call.remote("weights")

    def close(self) -> None:
        ray.kill(self._actor)


class RemoteEngine:
    """The driver's handle on an EngineActor, behind the `Engine` contract of longshort/team/rollout.py.

    Requests made in one tick of the event loop travel in one call, finished turns come back in one call per engine step.
    """

    def __init__(self, role: str, model: str, config: LongShortConfig, tokenizer, threads: int = 1):
        self.role, self.tokenizer, self.context = role, tokenizer, config.role(role).engine.max_model_len
        self._model, self._config, self._threads = model, config, threads
        self.backend = engine_backend(config.role(role).engine)
        self.restarts = 0
        self._weights: tuple[Any, int] | None = None
        self._pending: dict[str, tuple[tuple[int, ...], Sampling, asyncio.Future]] = {}
        self._outbox: list[str] = []
        self._ids = itertools.count()
        self._collector: asyncio.Task | None = None
        self._actor = self._spawn()

    def _spawn(self):
        engine = self._config.role(self.role).engine
        environment = {"OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false"}
        if self.backend == "vllm":
            from longshort.backends.vllm_engine import environment as vllm_environment

            environment = vllm_environment(engine, self._threads)
        options = {"num_cpus": cpu_share(), "num_gpus": engine.num_gpus, "max_concurrency": 8, "runtime_env": {"env_vars": environment}}
        return ray.remote(EngineActor).options(**options).remote(self.backend, self._model, engine, self._config.seed)

    async def start(self) -> int:
        """Wait until the engine has loaded its model; returns its process id. Raises LongShortError with the engine's own reason."""
        try:
            return await asyncio.wait_for(_resolve(self._actor.ready.remote()), timeout=max(300.0, self._config.engine_timeout_s))
        except ENGINE_FAILURES as error:
            raise LongShortError(
                f"the {self.role} engine ({self.backend}, {self._model}) did not start: {_reason(error)}; if memory ran out, lower "
                f"{self.role}.engine.kv_cache_gib ({self._config.role(self.role).engine.kv_cache_gib}), max_model_len or max_num_seqs"
            ) from error

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        loop = asyncio.get_running_loop()
        request_id, future = f"{self.role}-{next(self._ids)}", loop.create_future()
        self._pending[request_id] = (tuple(prompt_ids), sampling, future)
        if not self._outbox:
            loop.call_soon(self._flush)
        self._outbox.append(request_id)
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(request_id, None):
                self._actor.abort.remote([request_id])
            raise

    def _flush(self) -> None:
        requests = [(i, *self._pending[i][:2]) for i in self._outbox if i in self._pending]
        self._outbox.clear()
        if requests:
            self._actor.submit.remote(requests)
        if self._pending and (self._collector is None or self._collector.done()):
            self._collector = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        while self._pending:
            try:
                finished = await asyncio.wait_for(_resolve(self._actor.collect.remote()), self._config.engine_timeout_s)
                for request_id, completion in finished:
                    if request_id in self._pending:
                        self._deliver(request_id, completion)
            except ENGINE_FAILURES as error:
                try:
                    await self.restart(error)
                except LongShortError as final:
                    for _, _, future in self._pending.values():
                        future.set_exception(final)
                    self._pending.clear()

    def _deliver(self, request_id: str, completion: Completion) -> None:
        _, sampling, _ = self._pending[request_id]
        if not 0 < len(completion.token_ids) <= sampling.max_tokens or not all(map(math.isfinite, completion.logprobs)):
            raise RuntimeError(
                f"a broken completion: {len(completion.token_ids)} tokens (allowed 1 to {sampling.max_tokens}), "
                f"log-probs {completion.logprobs[:3]}"
            )
        future = self._pending.pop(request_id)[2]
        if not future.done():
            future.set_result(completion)

    async def restart(self, reason: BaseException) -> None:
        """Replace the engine's process, push the current weights, ask again for every turn it owed. LongShortError beyond the cap."""
        self.restarts += 1
        if self.restarts > self._config.max_engine_restarts:
            raise LongShortError(
                f"the {self.role} engine failed {self.restarts} times (max_engine_restarts is {self._config.max_engine_restarts}); "
                f"last: {_reason(reason)}"
            ) from reason
        print(f"! {self.role} engine failed ({_reason(reason)}); restart {self.restarts} of {self._config.max_engine_restarts}", flush=True)
        ray.kill(self._actor)
        self._actor = self._spawn()
        await self.start()
        if self._weights:
            await _resolve(self._actor.load_weights.remote(*self._weights))
        self._actor.submit.remote([(i, prompt, sampling) for i, (prompt, sampling, _) in self._pending.items()])

    async def load_weights(self, weights, version: int) -> None:
        """Give the engine the weights behind a reference; a refusal (LongShortError) leaves it as it was, a crash restarts it with them."""
        try:
            await _resolve(self._actor.load_weights.remote(weights, version))
        except ENGINE_FAILURES as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, LongShortError):
                raise cause from None
            self._weights = (weights, version)
            await self.restart(error)
        self._weights = (weights, version)

    async def stats(self) -> dict[str, float]:
        return await _resolve(self._actor.stats.remote())

    def close(self) -> None:
        ray.kill(self._actor)


async def _resolve(reference) -> Any:
    return await reference


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "cause", None) or error) or type(error).__name__
    return text.strip().splitlines()[-1][:300]
