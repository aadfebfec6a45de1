"""The engine's half of vLLM's native weight transfer: CUDA IPC on a shared GPU, NCCL between GPUs.

vLLM's worker takes an update in four phases: `init_weight_transfer_engine`, `start_weight_update`, `update_weights` as
often as needed, `finish_weight_update`. The driver calls them in this order (longshort/backends/weight_transfer.py).
Nothing may be decoded between start and finish, because the weights are half old, half new. vLLM 0.26 and 0.31 take the
settings of the connection in different places, so each record is given those that it has a field for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from longshort.backends.weights.weight_sync import Manifest, check_manifest
from longshort.types import LongShortError

BUFFERS = 2
"""Buffers in flight over NCCL at once."""


class Inbox:
    """Receives weights for a vLLM engine that was made with `weight_transfer_config`."""

    def __init__(self, engine: Any, backend: str, expected: Mapping[str, tuple[int, ...]]):
        self._engine, self._backend, self._expected = engine, backend, expected
        self._wire: dict[str, Any] = {}
        self._manifest: Manifest = []
        self.open = False
        """Between start and finish of an update."""

    def connect(self, wire: Mapping[str, Any]) -> None:
        """Meet the learner: `buffer_bytes`, for IPC `gpu` (its id), for NCCL `address` and `world_size`."""
        self._wire = {"packed": True, "packed_buffer_size_bytes": wire["buffer_bytes"], "packed_num_buffers": BUFFERS}
        init, _ = infos(self._backend)
        if self._backend == "ipc":
            self._check_gpu(wire["gpu"])
            return self._rpc("init_weight_transfer_engine", known_to(init, self._wire))
        host, port = wire["address"]
        place = {"master_address": host, "master_port": port, "rank_offset": 1, "world_size": wire["world_size"]}
        return self._rpc("init_weight_transfer_engine", known_to(init, place | self._wire))

    def start(self, manifest: Manifest) -> None:
        """Begin an update; refuse tensors that are not this model's before the engine is touched."""
        check_manifest(manifest, self._expected)
        self._manifest, self.open = manifest, True
        self._rpc("start_weight_update")

    def update(self, parcel: Mapping[str, Any]) -> None:
        """Load the tensors that `parcel` describes; for NCCL, which sends an empty one, those of the manifest."""
        _, update = infos(self._backend)
        tensors = dict(parcel) or description(self._manifest)
        self._rpc("update_weights", known_to(update, tensors | self._wire))

    def finish(self) -> None:
        """End the update; the engine may decode again."""
        self._rpc("finish_weight_update")
        self.open = False

    def _rpc(self, method: str, *arguments: Any) -> None:
        self._engine.collective_rpc(method, args=arguments)

    def _check_gpu(self, learners: str) -> None:
        if (mine := gpu_id()) != learners:
            raise LongShortError(
                f"weight_sync is ipc, but the engine is on GPU {mine} and its learner on {learners}; give both a share "
                "of one GPU (engine.num_gpus and learner_gpus that add up to 1 or less), or set weight_sync: nccl"
            )


def infos(backend: str) -> tuple[type, type]:
    """Return vLLM's records of the settings for connecting and for each update."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine as Engine
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine as Engine
    return Engine.init_info_cls, Engine.update_info_cls


def known_to(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that the record has a field for."""
    names = {field.name for field in dataclasses.fields(record)}
    return {name: value for name, value in values.items() if name in names}


def description(entries: Manifest) -> dict[str, Any]:
    """Describe tensors as vLLM expects: names, types and shapes, in the order in which they are sent."""
    names, dtypes, shapes = (list(column) for column in zip(*entries, strict=True))
    return {"names": names, "dtype_names": dtypes, "shapes": [list(shape) for shape in shapes]}


def gpu_id() -> str:
    """Return the id of this process's GPU, the same in every process that sees it."""
    import torch

    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
