"""Ray: engines and learners as actors, supervised from the driver. The only module that imports ray.

    driver (asyncio) --submit/collect--> EngineActor  (one per policy: vLLM or transformers, its own process)
                     --update----------> LearnerActor (one per policy: torch)   --weights (object store)--> EngineActor

An engine that dies or gives no sign of life is replaced, given the current weights, and asked again for every turn it owed.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

if "ray" not in sys.modules and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
    # Whoever can talk to Ray can run code: a cluster of our own gets a secret token. Ray reads both once, while it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import psutil
import ray
from ray.exceptions import RayActorError, RayError

from longshort.backends.engine_loop import EngineLoop, make_core
from longshort.backends.remote_engine import RemoteEngine, reason_of
from longshort.config import LongShortConfig
from longshort.sections import EngineConfig
from longshort.types import LongShortError, Sample


def start(config: LongShortConfig) -> Callable[[], None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine that listens on loopback only; returns what undoes it."""
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= _private_cluster()
    mine = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if mine:
        signal.signal(signal.SIGTERM, handler)  # ray.init puts its own there, which leaves without saving
    return ray.shutdown


def _private_cluster() -> dict[str, Any]:
    """Settings of a cluster for this process alone: no dashboard (it runs code on request) and nothing listening but on loopback.

    Ray replaces 127.0.0.1 by the machine's outside address before it starts anything; the line that prevents it touches a private
    function because there is no setting for it (ray 2.60).
    """
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    return {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}


class EngineActor(EngineLoop):
    """Hosts one engine in its own process; its methods are called from several threads at once."""

    def __init__(self, backend: str, model: str, config: EngineConfig, seed: int, stuck_s: float):
        super().__init__(lambda: make_core(backend, model, config, seed), stuck_s)

    def ready(self) -> int:
        return os.getpid()


class LearnerActor:
    """Hosts one TorchLearner in its own process."""

    def __init__(self, role: str, model: str, config: LongShortConfig, total_updates: int, threads: int):
        import torch

        from longshort.backends.torch_learner import TorchLearner

        torch.set_num_threads(threads)
        self._learner = TorchLearner(role, model, config, total_updates, reference_folder=config.role(role).model)

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method of the learner; "ready" only proves that it could be made."""
        return None if method == "ready" else getattr(self._learner, method)(*arguments)


def cpu_share() -> float:
    """CPUs to reserve per actor: one each where the cluster has them, else an equal part (a laptop still runs all of them)."""
    return math.floor(min(1.0, ray.cluster_resources().get("CPU", 1) / 5) * 100) / 100


def room() -> int:
    """How many actors the cluster runs at once; one more would wait for ever."""
    return int(ray.cluster_resources().get("CPU", 1) / cpu_share())


def gpus() -> float:
    """GPUs of the whole cluster, taken or free."""
    return ray.cluster_resources().get("GPU", 0.0)


def engine_backend(config: EngineConfig) -> str:
    """`vllm` or `transformers` for `auto`, by what is installed."""
    from importlib.util import find_spec

    if config.backend != "auto":
        return config.backend
    return "vllm" if find_spec("vllm") else "transformers"


def make_learner(role: str, model: str, config: LongShortConfig, total_updates: int, threads: int = 1):
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    options = {"num_cpus": cpu_share(), "num_gpus": config.learner_gpus, "runtime_env": {"env_vars": environment}}
    return RemoteLearner(role, ray.remote(LearnerActor).options(**options).remote(role, model, config, total_updates, threads))


async def in_process(function: Callable[..., Any], *arguments: Any, threads: int = 1, gpus: float = 0.0) -> Any:
    """Run a function in a worker process of its own and await its result; a LongShortError arrives as itself."""
    options = {
        "num_cpus": cpu_share(),
        "num_gpus": gpus,
        "max_retries": 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}},
    }
    try:
        return await _unwrap(ray.remote(function).options(**options).remote(*arguments))
    except RayError as error:
        raise LongShortError(f"{function.__name__} failed in its process: {reason_of(error)}") from error


async def _unwrap(reference) -> Any:
    try:
        return await reference
    except RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, LongShortError) else error from None


class RemoteLearner:
    """The driver's handle on a LearnerActor: every method of TorchLearner, awaited. A learner that dies is a LongShortError."""

    def __init__(self, role: str, actor):
        self.role, self._actor = role, actor

    async def call(self, method: str, *arguments: Any) -> Any:
        try:
            return await _unwrap(self._actor.call.remote(method, *arguments))
        except RayActorError as error:
            raise LongShortError(f"the {self.role} learner died: {reason_of(error)}; resume from the last checkpoint") from error

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        return await self.call("update", list(samples))

    def weights(self):
        """A reference to the weights in the object store, not the weights."""
        return self._actor.call.remote("weights")

    def close(self) -> None:
        _kill(self._actor, None)


def make_engine(
    name: str, model: str, config: LongShortConfig, tokenizer, threads: int = 1, engine: EngineConfig | None = None
) -> RemoteEngine:
    """An engine in a process of its own, supervised from here; `start` it before use. `name` is a role, or whose `engine` this is."""
    engine = engine or config.role(name).engine
    backend = engine_backend(engine)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if backend == "vllm":
        from longshort.backends.vllm_engine import environment as vllm_environment

        environment = vllm_environment(engine, threads)
    options = {"num_cpus": cpu_share(), "num_gpus": engine.num_gpus, "max_concurrency": 8, "runtime_env": {"env_vars": environment}}
    actor = ray.remote(EngineActor).options(**options)
    return RemoteEngine(
        name,
        config,
        tokenizer,
        engine=engine,
        backend=backend,
        model=model,
        spawn=lambda: actor.remote(backend, model, engine, config.seed, config.engine_timeout_s),
        kill=_kill,
        failures=(RayError,),
    )


def _kill(actor, pid: int | None) -> None:
    """End an actor's process: a local one directly if it is still there a second later; a stopped one (SIGSTOP) does not hear Ray."""
    with contextlib.suppress(RayError):
        ray.kill(actor)
    with contextlib.suppress(psutil.Error):
        if pid and "ray::" in " ".join(psutil.Process(pid).cmdline()):
            with contextlib.suppress(psutil.TimeoutExpired):
                psutil.Process(pid).wait(1.0)
                return
            os.kill(pid, signal.SIGKILL)
