"""Ray: engines and learners as actors, supervised from the driver. The only module that imports ray.

    driver (asyncio) --submit/collect--> EngineActor  (one per policy: vLLM or transformers, its own process)
                     --update----------> LearnerActor (one per policy: torch)   --weights----------------> EngineActor
                                      or RankActors   (learner.ranks per policy: DeepSpeed)

How the weights travel is told in weight_transfer.py. An engine that dies or gives no sign of life is replaced, given the current weights,
and asked again for every turn it owed.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from longshort.backends.remote import cause_of

if "ray" not in sys.modules and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
    # Whoever can talk to Ray can run code: a cluster of our own gets a secret token. Ray reads both once, while it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import psutil
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from longshort.backends.devices import check_devices, engine_backend, shares_gpu
from longshort.backends.engines.adapter_engine import AdapterEngine
from longshort.backends.engines.engine_loop import EngineLoop, make_core
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.backends.remote import reason_of
from longshort.recipe.roles import LoraSection
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import LongShortError


def start(config: LongShortConfig) -> Callable[[], None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine that listens on loopback only; returns what undoes it."""
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # Ray's 15 lets engines and learners starve beside any ordinary process
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

    def __init__(
        self,
        backend: str,
        model: str,
        config: EngineConfig,
        seed: int,
        stuck_s: float,
        adapters: Mapping[str, LoraSection] | None = None,
    ):
        super().__init__(lambda: make_core(backend, model, config, seed, adapters), stuck_s)

    def ready(self) -> int:
        return os.getpid()


class LearnerActor:
    """Hosts one learner in its own process."""

    _outbox: Any = None

    def __init__(self, role: str, model: str, config: LongShortConfig, total_updates: int, threads: int):
        import torch

        from longshort.backends.learners.lora_learner import learner_class

        torch.set_num_threads(threads)
        self._learner = learner_class(config, role)(
            role, model, config, total_updates, reference_folder=config.role(role).model
        )

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method of the learner; "ready" only proves that it could be made."""
        return None if method == "ready" else getattr(self._learner, method)(*arguments)

    def send(self, step: str, *arguments: Any) -> Any:
        """A step of the learner's half of a weight transfer; what CUDA or NCCL say there is no failure of the engine."""
        from longshort.backends.weights.weight_outbox import Outbox

        self._outbox = self._outbox or Outbox(self._learner)
        try:
            return getattr(self._outbox, step)(*arguments)
        except RuntimeError as error:
            raise LongShortError(
                f"the learner cannot send its weights ({step}: {error}); resume from the last checkpoint"
            ) from error

    def address(self) -> tuple[str, int]:
        """This node and a port of it that nobody uses."""
        with socket.create_server((ray.util.get_node_ip_address(), 0)) as free:
            return free.getsockname()[:2]


class RankActor(LearnerActor):
    """Hosts one rank of a DeepSpeedLearner in its own process."""

    def __init__(self, rank: int, *arguments: Any):
        self._rank, self._arguments = rank, arguments

    def listen(self) -> tuple[str, int]:
        """Where rank 0 awaits the others: on loopback in a cluster of our own."""
        self._socket = socket.create_server((ray.util.get_node_ip_address(), 0))
        return self._socket.getsockname()[:2]

    def join(self, address: tuple[str, int]) -> None:
        """Meet the other ranks, then load the model."""
        import torch

        from longshort.backends.learners.deepspeed_learner import DeepSpeedLearner, join

        role, model, config, total_updates, threads = self._arguments
        torch.set_num_threads(threads)
        ranks, timeout_s = config.learner.ranks, config.learner.timeout_s
        listening = {} if self._rank else {"master_listen_fd": self._socket.detach()}
        store = torch.distributed.TCPStore(
            *address, ranks, self._rank == 0, timedelta(seconds=timeout_s), wait_for_workers=False, **listening
        )
        join(store, self._rank, ranks, timeout_s, gpu=bool(config.learner_gpus))
        self._learner = DeepSpeedLearner(role, model, config, total_updates, reference_folder=config.role(role).model)


def cpu_share(ranks: int = 1) -> float:
    """CPUs to reserve per actor: one each where the cluster has them, else an equal part (a laptop still runs all of them); `ranks`
    actors that work as one share its part."""
    return math.floor(min(1.0, ray.cluster_resources().get("CPU", 1) / 5 / ranks) * 100) / 100


def room() -> int:
    """How many actors the cluster runs at once; one more would wait for ever."""
    return int(ray.cluster_resources().get("CPU", 1) / cpu_share())


def gpus() -> float:
    """GPUs of the whole cluster, taken or free."""
    return ray.cluster_resources().get("GPU", 0.0)


def shared_place(config: LongShortConfig, role: str) -> PlacementGroup | None:
    """A place for a role's engine and its learner on the same GPU, where both have a share of one; Ray alone might take two."""
    if not shares_gpu(config, role):
        return None
    share = config.role(role).engine.num_gpus + config.learner_gpus
    return placement_group([{"CPU": 2 * cpu_share(), "GPU": share}])


def _placed(place: PlacementGroup | None) -> dict[str, Any]:
    """Ray's options for an actor in a place made by `shared_place`."""
    return (
        {"scheduling_strategy": PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=0)}
        if place
        else {}
    )


def make_learner(
    role: str,
    model: str,
    config: LongShortConfig,
    total_updates: int,
    threads: int = 1,
    place: PlacementGroup | None = None,
) -> RemoteLearner:
    """The role's learner: one process, or with DeepSpeed `learner.ranks` of them. LongShortError where the cluster lacks devices."""
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = (
        "1"  # the weights' way: one copy into shared memory, where Ray would make several
    )
    arguments = (role, model, config, total_updates, threads)
    if config.learner.backend == "deepspeed":
        return _make_ranks(role, config, arguments, environment, place)
    options = {
        "num_cpus": cpu_share(),
        "num_gpus": config.learner_gpus,
        "runtime_env": {"env_vars": environment},
    } | _placed(place)
    return RemoteLearner(
        role, [ray.remote(LearnerActor).options(**options).remote(*arguments)], kill=_kill, death=RayActorError
    )


def _make_ranks(
    role: str, config: LongShortConfig, arguments: tuple, environment: dict[str, str], place: PlacementGroup | None
) -> RemoteLearner:
    """All ranks or none get their place, side by side where the cluster has one for them."""
    ranks, gpus_each = config.learner.ranks, config.learner_gpus
    check_devices(config, ray.cluster_resources())
    if not gpus_each:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if ray.util.get_node_ip_address().startswith("127."):
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    place = place or placement_group(
        [{"CPU": cpu_share(ranks)} | ({"GPU": gpus_each} if gpus_each else {})] * ranks, strategy="PACK"
    )
    actors = [
        ray.remote(RankActor)
        .options(
            num_cpus=cpu_share(ranks),
            num_gpus=gpus_each,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=rank),
        )
        .remote(rank, *arguments)
        for rank in range(ranks)
    ]
    address = actors[0].listen.remote()

    def kill(actor, pid: int | None) -> None:
        _kill(actor, pid)
        remove_placement_group(place)

    return RemoteLearner(
        role, actors, kill=kill, death=RayActorError, joined=[actor.join.remote(address) for actor in actors]
    )


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
        raise cause_of(error) from None


def make_engine(
    name: str,
    model: str,
    config: LongShortConfig,
    tokenizer,
    threads: int = 1,
    engine: EngineConfig | None = None,
    adapters: Mapping[str, LoraSection] | None = None,
    place: PlacementGroup | None = None,
) -> RemoteEngine:
    """An engine in a process of its own, supervised from here; `start` it before use. `name` is a role, or whose `engine` this is.

    With `adapters` by role it is one that these roles share (`make_shared_engine`).
    """
    engine = engine or config.role(name).engine
    backend = engine_backend(engine)
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if backend == "vllm":
        from longshort.backends.engines.vllm_engine import environment as vllm_environment

        environment = vllm_environment(engine, threads)
    options = {
        "num_cpus": cpu_share(),
        "num_gpus": engine.num_gpus,
        "max_concurrency": 8,
        "runtime_env": {"env_vars": environment},
    }
    options |= _placed(place)
    actor = ray.remote(EngineActor).options(**options)
    return RemoteEngine(
        name,
        config,
        tokenizer,
        engine=engine,
        backend=backend,
        model=model,
        spawn=lambda: actor.remote(backend, model, engine, config.seed, config.engine_timeout_s, adapters),
        kill=_kill,
        failures=(RayError,),
    )


def make_shared_engine(model: str, config: LongShortConfig, tokenizers: Mapping[str, Any]) -> dict[str, AdapterEngine]:
    """One engine in a process of its own that holds `model`, and each role's view of it; a role's adapter comes before its first turn."""
    adapters = {role: config.role(role).lora for role in tokenizers}
    first = next(iter(tokenizers))
    engine = make_engine(
        "+".join(tokenizers), model, config, tokenizers[first], engine=config.role(first).engine, adapters=adapters
    )
    return {role: AdapterEngine(role, engine) for role in tokenizers}


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
