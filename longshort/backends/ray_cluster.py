"""Engines and learners as Ray actors, supervised from the driver. Only this module and local_cluster.py import ray.

    driver (asyncio) --submit/collect--> EngineActor  (one per policy: vLLM or transformers, its own process)
                     --update----------> LearnerActor (one per policy: torch)   --weights-----------------> EngineActor
                                      or RankActors   (learner.ranks per policy: DeepSpeed)

weight_transfer.py describes how the weights travel. RemoteEngine replaces an engine that dies or stops answering.
"""

from __future__ import annotations

from longshort.backends.local_cluster import start as start  # before ray, which reads its token when it is imported

# isort: split
import contextlib
import math
import os
import signal
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

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
from longshort.backends.remote import reason_of, result_of
from longshort.recipe.plugins import environment as plugin_environment
from longshort.recipe.plugins import import_from_environment
from longshort.recipe.roles import LoraSection
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import LongShortError

if TYPE_CHECKING:
    from longshort.backends.learners.torch_learner import TorchLearner
    from longshort.backends.weights.weight_outbox import Outbox

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ONE_COPY = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
"""A learner's weights are copied into shared memory once; Ray would copy them several times."""


class EngineActor(EngineLoop):
    """Hosts one engine in its own process; its methods are called from several threads at once."""

    def __init__(self, make: Callable[[], Any], stuck_s: float, driver_node: str):
        import_from_environment()
        self._driver_node = driver_node
        super().__init__(make, stuck_s)

    def ready(self) -> int | None:
        """Once the engine has loaded its model, return the process id; on another node the driver has no use for it."""
        return os.getpid() if ray.get_runtime_context().get_node_id() == self._driver_node else None


class LearnerActor:
    """Hosts one learner in its own process."""

    _learner: TorchLearner

    def __init__(self, role: str, model: str, config: LongShortConfig, total_updates: int):
        import torch

        from longshort.backends.learners.lora_learner import learner_class

        torch.set_num_threads(1)
        import_from_environment()
        make = learner_class(config, role).from_pretrained
        self._learner = make(role, model, config, total_updates, reference_folder=config.role(role).model)

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method of the learner; "ready" only proves that the learner was made."""
        return None if method == "ready" else getattr(self._learner, method)(*arguments)

    @cached_property
    def _outbox(self) -> Outbox:
        from longshort.backends.weights.weight_outbox import Outbox

        return Outbox(self._learner)

    def send(self, step: str, *arguments: Any) -> Any:
        """Run a step of the learner's half of a weight transfer. Its CUDA or NCCL errors are not the engine's."""
        try:
            return getattr(self._outbox, step)(*arguments)
        except RuntimeError as error:
            raise LongShortError(
                f"the learner cannot send its weights ({step}: {error}); resume from the last checkpoint"
            ) from error

    def address(self) -> tuple[str, int]:
        """Return this node's address and a free port."""
        with socket.create_server((ray.util.get_node_ip_address(), 0)) as free:
            return free.getsockname()[:2]


class RankActor(LearnerActor):
    """Hosts one rank of a DeepSpeedLearner in its own process. The learner is made in `join`, when all ranks meet."""

    def __init__(self, rank: int, role: str, model: str, config: LongShortConfig, total_updates: int):
        import_from_environment()
        self._rank, self._config = rank, config
        self._arguments = role, model, config, total_updates

    def listen(self) -> tuple[str, int]:
        """Open the port where rank 0 awaits the others: on loopback in a cluster of our own."""
        self._socket = socket.create_server((ray.util.get_node_ip_address(), 0))
        return self._socket.getsockname()[:2]

    def join(self, address: tuple[str, int]) -> None:
        """Meet the other ranks, then load the model."""
        import torch

        from longshort.backends.learners.deepspeed_learner import DeepSpeedLearner, join

        torch.set_num_threads(1)
        ranks, timeout_s = self._config.learner.ranks, self._config.learner.timeout_s
        store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage] - public, in torch's manual
            *address,
            ranks,
            is_master=self._rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=None if self._rank else self._socket.detach(),
        )
        join(store, self._rank, ranks, timeout_s, gpu=bool(self._config.learner_gpus))
        role = self._arguments[0]
        reference_folder = self._config.role(role).model
        self._learner = DeepSpeedLearner.from_pretrained(*self._arguments, reference_folder=reference_folder)


def cpu_share(ranks: int = 1) -> float:
    """Return the CPUs to reserve per actor: 1, or less so that five fit (a laptop still runs them all); `ranks` actors
    that work as one share it.
    """
    return math.floor(min(1.0, ray.cluster_resources().get("CPU", 1) / 5 / ranks) * 100) / 100


def room() -> int:
    """Return how many actors the cluster runs at once; one more would wait forever."""
    return int(ray.cluster_resources().get("CPU", 1) / cpu_share())


def gpus() -> float:
    """Return the GPUs of the whole cluster, taken or free."""
    return ray.cluster_resources().get("GPU", 0.0)


def shared_place(config: LongShortConfig, role: str) -> PlacementGroup | None:
    """Reserve one GPU for a role's engine and learner, where each has a share of it; Ray alone might pick two GPUs."""
    if not shares_gpu(config, role):
        return None
    share = config.role(role).engine.num_gpus + config.learner_gpus
    return placement_group([{"CPU": 2 * cpu_share(), "GPU": share}])


def _options(
    config: LongShortConfig,
    cpus: float,
    gpus: float,
    environment: Mapping[str, str],
    place: PlacementGroup | None,
    bundle: int = 0,
) -> dict[str, Any]:
    """Return Ray's options for an actor or task: what it reserves, its environment, and its bundle of a place."""
    # What a process starts with `python -m`, as vLLM does, would import a file of the working folder first.
    variables = {"PYTHONSAFEPATH": "1"} | dict(environment) | plugin_environment(config.plugins)
    options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
    if place is None:
        return options
    return options | {
        "scheduling_strategy": PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=bundle)
    }


def make_learner(
    role: str, model: str, config: LongShortConfig, total_updates: int, place: PlacementGroup | None = None
) -> RemoteLearner:
    """Make the role's learner: one process, or `learner.ranks` of them with DeepSpeed.

    Raises LongShortError where the cluster lacks devices.
    """
    arguments = (role, model, config, total_updates)
    if config.learner.backend == "deepspeed":
        return _make_ranks(config, arguments, place)
    options = _options(config, cpu_share(), config.learner_gpus, ONE_THREAD | ONE_COPY, place)
    actor = ray.remote(LearnerActor).options(**options).remote(*arguments)
    return RemoteLearner(role, [actor], kill=_kill, death=RayActorError)


def _make_ranks(
    config: LongShortConfig, arguments: tuple[str, str, LongShortConfig, int], place: PlacementGroup | None
) -> RemoteLearner:
    """Reserve a place for all ranks at once, packed on one node if possible, and start them."""
    ranks, gpus_each = config.learner.ranks, config.learner_gpus
    check_devices(config, ray.cluster_resources())
    environment = ONE_THREAD | ONE_COPY
    if not gpus_each:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if ray.util.get_node_ip_address().startswith("127."):
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    cpus = cpu_share(ranks)
    reserved = place or placement_group(
        [{"CPU": cpus} | ({"GPU": gpus_each} if gpus_each else {})] * ranks, strategy="PACK"
    )
    options = [_options(config, cpus, gpus_each, environment, reserved, rank) for rank in range(ranks)]
    actors = [ray.remote(RankActor).options(**options[rank]).remote(rank, *arguments) for rank in range(ranks)]
    address = actors[0].listen.remote()
    joined = [actor.join.remote(address) for actor in actors]

    def kill(actor: Any, pid: int | None) -> None:
        _kill(actor, pid)
        remove_placement_group(reserved)

    return RemoteLearner(arguments[0], actors, kill=kill, death=RayActorError, joined=joined)


async def in_process(function: Callable[..., Any], config: LongShortConfig, *arguments: Any, gpus: float = 0.0) -> Any:
    """Run function(config, *arguments) in its own process and await the result; a LongShortError arrives as itself."""
    options = _options(config, cpu_share(), gpus, ONE_THREAD, None)
    run: Any = ray.remote(_run_job)
    task = run.options(name=function.__name__, max_retries=0, **options)
    try:
        return await result_of(task.remote(function, config, *arguments))
    except RayError as error:
        raise LongShortError(f"{function.__name__} failed in its process: {reason_of(error)}") from error


def _run_job(function: Callable[..., Any], *arguments: Any) -> Any:
    import_from_environment()
    return function(*arguments)


def make_engine(
    name: str,
    model: str,
    config: LongShortConfig,
    tokenizer: Any,
    engine: EngineConfig | None = None,
    adapters: Mapping[str, LoraSection] | None = None,
    place: PlacementGroup | None = None,
) -> RemoteEngine:
    """Make an engine in its own process, supervised from here; `start` it before use.

    `name` is a role, or what errors call an engine that has its own settings (`engine`). With `adapters` by role, these
    roles share it (`make_shared_engine`).
    """
    settings = engine or config.role(name).engine
    backend = engine_backend(settings)
    environment = ONE_THREAD
    if backend == "vllm":
        from longshort.backends.engines.vllm_engine import ENVIRONMENT as environment
    options = _options(config, cpu_share(), settings.num_gpus, environment, place)
    actor = ray.remote(EngineActor).options(max_concurrency=8, **options)
    core = partial(make_core, backend, model, settings, config.seed, adapters)
    spawn = partial(actor.remote, core, config.engine_timeout_s, ray.get_runtime_context().get_node_id())
    return RemoteEngine(name, config, tokenizer, settings, backend, model, spawn=spawn, kill=_kill, failure=RayError)


def make_shared_engine(model: str, config: LongShortConfig, tokenizers: Mapping[str, Any]) -> dict[str, AdapterEngine]:
    """Make one engine that holds `model`, and each role's view of it. A role gets its adapter before its first turn."""
    roles = list(tokenizers)
    adapters = {role: lora for role in roles if (lora := config.role(role).lora)}
    settings = config.role(roles[0]).engine
    engine = make_engine("+".join(roles), model, config, tokenizers[roles[0]], engine=settings, adapters=adapters)
    return {role: AdapterEngine(role, engine) for role in roles}


def _kill(actor: Any, pid: int | None) -> None:
    """End an actor's process. Ray cannot end a stopped one (SIGSTOP): a local process that lasts a second is killed."""
    with contextlib.suppress(RayError):
        ray.kill(actor)
    with contextlib.suppress(psutil.Error):
        if pid and "ray::" in " ".join(psutil.Process(pid).cmdline()):
            with contextlib.suppress(psutil.TimeoutExpired):
                psutil.Process(pid).wait(1.0)
                return
            os.kill(pid, signal.SIGKILL)
