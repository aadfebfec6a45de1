"""The learner's half of a weight transfer from GPU to GPU: every weight whole, checked, one parcel at a time.

Every method is called on all ranks of a learner, in the same order: with ZeRO-3 each weight is gathered on all of them, one after the
other, never the model at once. Rank 0 sends; what the others return is of no account. Rank 0 holds one buffer of `buffer_bytes` beside
its model (NCCL: two).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from itertools import islice
from typing import Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from longshort.backends.weights.vllm_inbox import BUFFERS, described, gpu_id
from longshort.backends.weights.weight_sync import Manifest
from longshort.types import LongShortError

BUFFER_BYTES = 2**28
"""Of a parcel (256 MiB), unless one tensor is larger."""


class Outbox:
    """Sends what `learner.stream()` yields, in the type that the recipe's `dtype` names."""

    def __init__(self, learner: Any):
        self._learner, self._dtype = learner, getattr(torch, learner.config.dtype)
        self._manifest: Manifest = []
        self._stream: Generator[tuple[str, torch.Tensor]] = self._whole()
        self._sent = 0
        self._buffer: torch.Tensor | None = None
        self._group: Any = None

    def manifest(self) -> Manifest:
        """(name, type, shape) of every weight in the order in which they will come; begins an update, and forgets one that was cut off.

        Raises LongShortError, before anything is sent, for a weight that is not finite in the type it is sent in.
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
        """What the engine must know before the first update, after `manifest`: where the weights are, and how large a parcel gets."""
        return {"gpu": gpu_id(), "buffer_bytes": max(BUFFER_BYTES, *self._sizes())}

    def pack(self, buffer_bytes: int) -> dict[str, Any]:
        """The next parcel, as a handle to memory of this GPU that the engine's process opens (CUDA IPC); empty when all have been sent.

        The memory is written again by the next call, so the engine must have copied its parcel by then.
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
        return described(self._manifest[first : self._sent]) | {
            "ipc_handles": self._export(),
            "tensor_sizes": sizes[first : self._sent],
        }

    def _export(self) -> dict[str, tuple]:
        """A handle to the buffer, a new one for each parcel: the receiver gives back one reference for each that it opens."""
        torch.cuda.current_stream().synchronize()
        return {gpu_id(): reduce_tensor(self._buffer)[1]}

    def release(self) -> None:
        """Give the buffer back, once the engine has let go of it, and the weight that was gathered last."""
        self._stream.close()
        self._buffer = None
        if self._learner.device.type == "cuda":
            torch.cuda.ipc_collect()

    def meet(self, address: tuple[str, int], world_size: int) -> None:
        """Join the engine's processes over NCCL as their rank 0; they must do so at the same time (`Inbox.connect`)."""
        if self._learner.process.writes_files:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init

            self._group = trainer_init(
                {"master_address": address[0], "master_port": address[1], "world_size": world_size}
            )

    def broadcast(self, buffer_bytes: int) -> None:
        """Send everything that the manifest announced; the engine must receive it at the same time (`Inbox.update`)."""
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
        """Bytes of each tensor."""
        return [math.prod(shape) * self._dtype.itemsize for _, _, shape in self._manifest]

    def _whole(self) -> Generator[tuple[str, torch.Tensor]]:
        """Must be closed or used up before the next one, or an update: ranks hold a weight gathered for as long as it is suspended."""
        with contextlib.closing(self._learner.stream()) as stream:
            for name, tensor in stream:
                yield name, tensor.detach().to(self._learner.device, self._dtype)


def parcel(sizes: list[int], capacity: int) -> int:
    """How many of the tensors, from the first on, fit into a buffer; one that is larger than it must not be among them."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > capacity:
            return count
    return len(sizes)
