"""How new weights travel from a learner's processes to its engine's: by which route, and in which order.

    route         learner                           engine, between two steps                  where
    object_store  a copy in host memory             load_weights                              always
    ipc           manifest, pack …, release         connect (once), start, update …, finish    both on the same GPU
    nccl          manifest, meet (once), broadcast  connect (once), start, update, finish      on different GPUs

The learner's half of ipc and nccl is weights/weight_outbox.py, the engine's is weights/vllm_inbox.py. On every route,
the learner checks that its values are finite and the engine agrees to names and shapes before it is touched; a canary
then proves the result (LivePolicy.publish). Free of ray, torch and vllm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from longshort.backends.devices import shares_gpu
from longshort.backends.engines.remote_engine import Delivery
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.backends.remote import reason_of, result_of
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError


class ObjectStore:
    """A copy of the weights in Ray's object store: shared memory on one node, the network between two."""

    def __init__(self, learner: RemoteLearner):
        self._learner = learner

    async def delivery(self, version: int) -> Delivery:
        """Return the function that delivers this version, once the learner is ready: its death is not the engine's."""
        weights = self._learner.weights()
        await self._learner.ready()
        return lambda actor: actor.between_steps.remote("load_weights", weights, version)


class CudaIpc:
    """The engine opens a buffer in the learner's GPU memory, and copies each parcel before the next one is packed."""

    def __init__(self, learner: RemoteLearner):
        self._learner = learner
        self._connected: Any = None
        self._wire: dict[str, Any] = {}

    async def delivery(self, version: int) -> Delivery:
        await self._learner.ready()
        return lambda actor: self._deliver(actor, version)

    async def _deliver(self, actor: Any, version: int) -> None:
        """Deliver the learner's weights; an engine replaced during an update gets those after it, under `version`."""
        manifest = await self._learner.send("manifest")
        if actor is not self._connected:
            self._wire = await self._learner.send("wire")
            await actor.between_steps.remote("connect", self._wire)
            self._connected = actor
        await actor.between_steps.remote("start_update", manifest)
        while parcel := await self._learner.send("pack", self._wire["buffer_bytes"]):
            await actor.between_steps.remote("update", parcel)
        await actor.between_steps.remote("finish_update", version)
        await self._learner.send("release")


class Nccl:
    """The learner broadcasts into the engine's GPUs. NCCL cannot be interrupted: a transfer cut off ends the run."""

    def __init__(self, learner: RemoteLearner, workers: int):
        self._learner, self._world_size = learner, workers + 1
        self._connected: Any = None
        self._wire: dict[str, Any] = {}
        self._under_way = False

    async def delivery(self, version: int) -> Delivery:
        await self._learner.ready()
        return lambda actor: self._deliver(actor, version)

    async def _deliver(self, actor: Any, version: int) -> None:
        if self._under_way:
            raise self._cut_off("it did not end in time")
        manifest = await self._learner.send("manifest")
        if actor is not self._connected:
            address = await self._learner.address()
            self._wire = await self._learner.send("wire") | {"address": address, "world_size": self._world_size}
            meeting = self._learner.send("meet", address, self._world_size)
            await self._both(actor.between_steps.remote("connect", self._wire), meeting)
            self._connected = actor
        await actor.between_steps.remote("start_update", manifest)
        sending = self._learner.send("broadcast", self._wire["buffer_bytes"])
        await self._both(actor.between_steps.remote("update", {}), sending)
        await actor.between_steps.remote("finish_update", version)

    async def _both(self, *halves: Awaitable[Any]) -> None:
        """Await two halves that wait for each other; when one fails, the other can only be left behind."""
        self._under_way = True
        tasks = [asyncio.ensure_future(result_of(half)) for half in halves]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if failed := [error for task in tasks if task.done() and (error := task.exception())]:
            for task in tasks:
                task.cancel()
            raise self._cut_off(reason_of(failed[0])) from failed[0]
        self._under_way = False

    def _cut_off(self, reason: str) -> LongShortError:
        return LongShortError(
            f"a transfer of the {self._learner.role} learner's weights over NCCL was cut off ({reason}), and the side "
            "that is left waits in it forever; resume from the last checkpoint, or set weight_sync: object_store"
        )


Route = ObjectStore | CudaIpc | Nccl


def choose(config: LongShortConfig, role: str, backend: str) -> tuple[str, str]:
    """Return the route of a role's weights to its engine, and why. LongShortError if the recipe's cannot work."""
    engine = config.role(role).engine
    if config.role(role).lora:
        fitting, reason = "object_store", "an adapter is merged, or sent by itself, in host memory"
    elif backend != "vllm":
        fitting, reason = "object_store", f"a {backend} engine takes them from there only"
    elif not engine.num_gpus or not config.learner_gpus:
        fitting, reason = "object_store", "the engine or its learner is on the CPU"
    elif shares_gpu(config, role):
        fitting, reason = "ipc", "the engine and its learner share a GPU"
    else:
        fitting, reason = "nccl", "the engine and its learner are on different GPUs"
    if config.weight_sync in ("auto", fitting):
        return fitting, reason
    if config.weight_sync == "object_store":
        return config.weight_sync, "the recipe says so"
    raise LongShortError(
        f"weight_sync is {config.weight_sync}, but the {role} role's weights can only travel by {fitting} "
        f"{'' if fitting == 'object_store' else 'or object_store '}({reason}); set weight_sync: auto"
    )


def make_route(config: LongShortConfig, name: str, role: str, learner: RemoteLearner) -> Route:
    """Return the route of that name."""
    if name == "nccl":
        extra = config.role(role).engine.extra
        return Nccl(learner, extra.get("tensor_parallel_size", 1) * extra.get("pipeline_parallel_size", 1))
    return {"object_store": ObjectStore, "ipc": CudaIpc}[name](learner)


def engine_options(config: LongShortConfig, name: str, role: str) -> dict[str, Any]:
    """Return what vLLM's EngineArgs need for the route, and for sleep (a CPU engine has no memory to give back)."""
    on_gpu = config.role(role).engine.num_gpus > 0
    transfer = {} if name == "object_store" else {"weight_transfer_config": {"backend": name}}
    return transfer | ({"enable_sleep_mode": True} if config.time_share and on_gpu else {})
