"""The learner's and the engine's half of a weight transfer from GPU to GPU, each by itself.

They have never met on GPUs: here both are real, on a CPU, and fakes play vLLM's workers and CUDA's handles.
"""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from longshort.backends.learners.torch_learner import TorchLearner
from longshort.backends.weights import vllm_inbox, weight_outbox
from longshort.backends.weights.vllm_inbox import Inbox
from longshort.backends.weights.weight_outbox import Outbox, parcel
from longshort.recipe.schema import LongShortConfig
from longshort.types import SHORT, LongShortError
from tests.support.deepspeed_ranks import unpacked
from tests.support.learning_cases import save_tiny


def test_parcels_hold_what_fits_and_never_half_a_tensor():
    assert parcel([3, 4, 5, 1], 8) == 2
    assert parcel([5, 1], 8) == 2
    assert parcel([8], 8) == 1
    assert parcel([], 8) == 0


@pytest.fixture
def learner(tmp_path):
    return TorchLearner.from_pretrained(
        SHORT, save_tiny(tmp_path / "model", tied=True), LongShortConfig(dtype="bfloat16"), total_updates=1
    )


@pytest.fixture
def no_cuda(monkeypatch):
    """A handle is the buffer's bytes at the time; the GPU's id is `gpu-a`."""
    monkeypatch.setattr(weight_outbox, "gpu_id", lambda: "gpu-a")
    monkeypatch.setattr(weight_outbox, "reduce_tensor", lambda buffer: (None, (bytes(buffer.numpy()),)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(weight_outbox, "BUFFER_BYTES", 1024)


def test_parcels_carry_every_weight_bit_by_bit_in_the_type_of_the_recipe(learner, no_cuda):
    outbox = Outbox(learner)
    manifest = outbox.manifest()
    buffer_bytes = outbox.wire()["buffer_bytes"]
    assert (outbox.wire()["gpu"], buffer_bytes) == ("gpu-a", 1024)
    parcels = []
    while told := outbox.pack(buffer_bytes):
        parcels.append(told)
    assert len(parcels) > 3 and all(sum(told["tensor_sizes"]) <= 1024 for told in parcels)
    arrived, weights = unpacked(parcels), learner.weights()
    assert [name for name, _, _ in manifest] == list(arrived) == list(weights)
    assert "lm_head.weight" in arrived and {dtype for _, dtype, _ in manifest} == {"bfloat16"}
    assert all(torch.equal(arrived[name], weights[name]) for name in weights)
    outbox.release()
    assert outbox._buffer is None


def test_a_buffer_is_as_large_as_the_largest_tensor(learner, no_cuda, monkeypatch):
    monkeypatch.setattr(weight_outbox, "BUFFER_BYTES", 16)
    outbox = Outbox(learner)
    outbox.manifest()
    assert outbox.wire()["buffer_bytes"] == 16 * 32 * 2  # the feed-forward's projection, in bfloat16


def test_an_update_that_was_cut_off_is_forgotten_by_the_next(learner, no_cuda):
    outbox = Outbox(learner)
    outbox.manifest()
    first = outbox.pack(1024)
    assert outbox.pack(1024)["names"] != first["names"]
    outbox.manifest()
    assert outbox.pack(1024)["names"] == first["names"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_a_weight_that_is_not_finite_in_the_type_it_is_sent_in_is_refused_by_name(learner, value):
    with torch.no_grad():
        learner.model.model.norm.weight[3] = value
    with pytest.raises(LongShortError, match=r"refused: the short learner's model\.norm\.weight holds NaN or infinite"):
        Outbox(learner).manifest()


def test_over_nccl_goes_the_same_stream(learner, monkeypatch):
    sent, buffers = [], {}

    def producer(iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers):
        sent.extend((name, post_iter_func((name, tensor)).clone()) for name, tensor in iterator)
        buffers.update(group=group, src=src, size=buffer_size_bytes, number=num_buffers)

    modules = {"packed_tensor": SimpleNamespace(packed_nccl_broadcast_producer=producer)}
    modules["nccl_common"] = SimpleNamespace(trainer_init=lambda info: info)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"vllm.distributed.weight_transfer.{name}", module)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    outbox = Outbox(learner)
    outbox.manifest()
    outbox.meet(("127.0.0.1", 4000), 2)
    outbox.broadcast(4096)
    met = {"master_address": "127.0.0.1", "master_port": 4000, "world_size": 2}
    assert buffers == {"group": met, "src": 0, "size": 4096, "number": 2}
    assert all(torch.equal(tensor, learner.weights()[name]) for name, tensor in sent) and len(sent) == len(
        learner.weights()
    )


@dataclass
class Init28:
    """vLLM 0.28 and later: the wire's settings come with the connection."""

    packed: bool = False
    master_address: str | None = None
    master_port: int | None = None
    rank_offset: int = 0
    world_size: int = 0
    packed_buffer_size_bytes: int = 0
    packed_num_buffers: int = 0


@dataclass
class Update28:
    names: list
    dtype_names: list
    shapes: list


@dataclass
class Init26:
    """vLLM 0.26 and 0.27: they come with each update."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class Update26(Update28):
    packed: bool = False
    packed_buffer_size_bytes: int = 0
    packed_num_buffers: int = 0


class Worker:
    """vLLM's side of `collective_rpc`: notes what it is told."""

    def __init__(self):
        self.told = []

    def collective_rpc(self, method, args=()):
        self.told.append((method, *args))


MANIFEST = [("a", "bfloat16", (2, 3)), ("b", "bfloat16", (4,))]
PLACE = {"master_address": "10.0.0.1", "master_port": 4000, "rank_offset": 1, "world_size": 3}
SETTINGS = {"packed": True, "packed_buffer_size_bytes": 99, "packed_num_buffers": 2}
TENSORS = {"names": ["a", "b"], "dtype_names": ["bfloat16"] * 2, "shapes": [[2, 3], [4]]}


@pytest.mark.parametrize(
    ("records", "connection", "update"),
    [((Init28, Update28), PLACE | SETTINGS, TENSORS), ((Init26, Update26), PLACE, TENSORS | SETTINGS)],
)
def test_vllm_is_told_in_its_four_phases_whatever_its_version_calls_for(monkeypatch, records, connection, update):
    monkeypatch.setattr(vllm_inbox, "infos", lambda backend: records)
    worker = Worker()
    inbox = Inbox(worker, "nccl", {"a": (2, 3), "b": (4,)})
    inbox.connect({"gpu": "gpu-a", "address": ("10.0.0.1", 4000), "world_size": 3, "buffer_bytes": 99})
    inbox.start(MANIFEST)
    assert inbox.open
    inbox.update({})
    inbox.finish()
    assert not inbox.open
    assert worker.told == [
        ("init_weight_transfer_engine", connection),
        ("start_weight_update",),
        ("update_weights", update),
        ("finish_weight_update",),
    ]
    records[0](**connection), records[1](**update)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (MANIFEST[:1], "missing tensors .'b'. .1., unknown tensors .. .0."),
        ([*MANIFEST, ("c", "bfloat16", (1,))], "unknown tensors .'c'."),
        ([MANIFEST[0], ("b", "bfloat16", (5,))], r"b has shape \(5,\), the engine's model has \(4,\)"),
    ],
)
def test_foreign_weights_are_refused_before_the_engine_is_touched(manifest, says):
    worker = Worker()
    inbox = Inbox(worker, "ipc", {"a": (2, 3), "b": (4,)})
    with pytest.raises(LongShortError, match=says):
        inbox.start(manifest)
    assert worker.told == [] and not inbox.open


def test_ipc_between_two_gpus_is_refused_with_both(monkeypatch):
    monkeypatch.setattr(vllm_inbox, "gpu_id", lambda: "gpu-b")
    monkeypatch.setattr(vllm_inbox, "infos", lambda backend: (Init28, Update28))
    with pytest.raises(
        LongShortError, match=r"the engine is on GPU gpu-b and its learner on gpu-a; give both a share of one GPU"
    ):
        Inbox(Worker(), "ipc", {}).connect({"gpu": "gpu-a", "buffer_bytes": 9})
