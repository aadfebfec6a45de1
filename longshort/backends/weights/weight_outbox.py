"""The learner's half of a weight transfer from GPU to GPU: every weight whole, checked, one parcel at a time.

Every method is called on all ranks of a learner, in the same order: with ZeRO-3 all of them gather one weight after the
other, never the whole model. Rank 0 sends; the return values of the others are ignored. Rank 0 holds one buffer of
`buffer_bytes` beside its model (NCCL: two).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from itertools import islice
from typing import Any, Protocol

import torch
from torch.multiprocessing.reductions import reduce_tensor

from longshort.backends.weights.vllm_inbox import BUFFERS, description, gpu_id
from longshort.backends.weights.weight_sync import Manifest
from longshort.learning.step import Process
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

BUFFER_BYTES = 2**28
"""Size of a parcel (256 MiB), unless one tensor is larger."""


class StreamingLearner(Protocol):
    """What an outbox needs of a learner: see TorchLearner."""

    role: str
    config: LongShortConfig
    device: torch.device
    process: Process

    def stream(self) -> Generator[tuple[str, torch.Tensor]]: ...


class Outbox:
    """Sends what `learner.stream()` yields, in the type that the recipe's `dtype` names."""

    def __init__(self, learner: StreamingLearner):
        self._learner = learner
        self._dtype: torch.dtype = getattr(torch, learner.config.dtype)
        self._manifest: Manifest = []
        self._stream: Generator[tuple[str, torch.Tensor]] = self._whole()
        self._sent = 0
        self._buffer: torch.Tensor | None = None
        self._group: Any = None

    def manifest(self) -> Manifest:
        """Begin an update, dropping one that was cut off; return the weights in the order in which they will be sent.

        Refuses, before anything is sent, a weight that is not finite in the type it is sent in.
        """
        self.release()
        self._manifest = []
        with contextlib.closing(self._whole()) as stream:
            for name, tensor in stream:
                if not bool(tensor.isfinite().all()):
                    raise LongShortError(
                        f"weight update refused: the {self._learner.role} learner's {name} holds NaN or infinite values"
                    )
                self._manifest.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
        self._stream, self._sent = self._whole(), 0
        return self._manifest

    def wire(self) -> dict[str, Any]:
        """Return where the weights are and how large a parcel is; the engine needs it after the first `manifest`."""
        return {"gpu": gpu_id(), "buffer_bytes": max(BUFFER_BYTES, *self._sizes())}

    def pack(self, buffer_bytes: int) -> dict[str, Any]:
        """Return the next parcel, a handle to this GPU's memory that the engine's process opens (CUDA IPC).

        It is empty when everything was sent. The next call overwrites the memory, so the engine must have copied it.
        """
        first, sizes = self._sent, self._sizes()
        self._sent += parcel(sizes[first:], buffer_bytes)
        if self._buffer is None and self._learner.process.writes_files:
            self._buffer = torch.empty(buffer_bytes, dtype=torch.uint8, device=self._learner.device)
        at = 0
        for _, tensor in islice(self._stream, self._sent - first):
            if self._buffer is not None:
                flat = tensor.contiguous().view(-1).view(torch.uint8)
                self._buffer[at : at + len(flat)].copy_(flat)
                at += len(flat)
        if self._sent == len(self._manifest):
            self._stream.close()
        if not at:
            return {}
        return description(self._manifest[first : self._sent]) | {
            "ipc_handles": self._export(),
            "tensor_sizes": sizes[first : self._sent],
        }

    def _export(self) -> dict[str, tuple]:
        """Return a new handle to the buffer: the receiver gives back one reference for each handle that it opens."""
        torch.cuda.current_stream().synchronize()
        return {gpu_id(): reduce_tensor(self._buffer)[1]}

    def release(self) -> None:
        """Give back the buffer, which the engine has closed, and the weight that was gathered last."""
        self._stream.close()
        self._buffer = None
        if self._learner.device.type == "cuda":
            torch.cuda.ipc_collect()

    def meet(self, address: tuple[str, int], world_size: int) -> None:
        """Join the engine's processes over NCCL as rank 0, while they run `Inbox.connect`."""
        if self._learner.process.writes_files:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init

            self._group = trainer_init(
                {"master_address": address[0], "master_port": address[1], "world_size": world_size}
            )

    def broadcast(self, buffer_bytes: int) -> None:
        """Send everything that the manifest announced, while the engine runs `Inbox.update`."""
        if not self._learner.process.writes_files:
            for _ in self._stream:
                pass
            return
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            self._stream,
            self._group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=buffer_bytes,
            num_buffers=BUFFERS,
        )
        torch.cuda.synchronize()

    def _sizes(self) -> list[int]:
        """Return the bytes of each tensor."""
        return [math.prod(shape) * self._dtype.itemsize for _, _, shape in self._manifest]

    def _whole(self) -> Generator[tuple[str, torch.Tensor]]:
        """Yield every weight. Close it before another one or an update: a suspended one holds a gathered weight."""
        with contextlib.closing(self._learner.stream()) as stream:
            for name, tensor in stream:
                yield name, tensor.detach().to(self._learner.device, self._dtype)


def parcel(sizes: list[int], capacity: int) -> int:
    """Return how many tensors, from the first on, fit into a buffer; none may be larger than it."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > capacity:
            return count
    return len(sizes)
