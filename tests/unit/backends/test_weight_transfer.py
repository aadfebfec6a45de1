"""Weights from learner to engine: which route, in which order on both sides, and what happens when one side fails."""

import asyncio
from types import SimpleNamespace

import pytest

from longshort.backends.devices import check_time_share, shares_gpu
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.engines.vllm_engine import engine_arguments
from longshort.backends.weight_transfer import CudaIpc, Nccl, ObjectStore, choose, engine_options, make_route
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.types import LONG, LongShortError

MANIFEST = [("a", "bfloat16", (2, 3)), ("b", "bfloat16", (4,))]


def config(gpu: float = 0, learner_gpus: float = 0, **settings) -> LongShortConfig:
    return LongShortConfig(
        **{"learner_gpus": learner_gpus, "long": {"model": "m", "engine": {"num_gpus": gpu}}} | settings
    )


@pytest.mark.parametrize(
    ("gpu", "learner_gpus", "backend", "route", "why"),
    [
        (0, 0, "vllm", "object_store", "the engine or its learner is on the CPU"),
        (1, 0, "vllm", "object_store", "the engine or its learner is on the CPU"),
        (0.5, 0.5, "vllm", "ipc", "the engine and its learner share a GPU"),
        (0.5, 0.5, "transformers", "object_store", "a transformers engine takes them from there only"),
        (1, 1, "vllm", "nccl", "the engine and its learner are on different GPUs"),
        (0.5, 0.75, "vllm", "nccl", "the engine and its learner are on different GPUs"),
    ],
)
def test_auto_goes_by_where_the_two_are(gpu, learner_gpus, backend, route, why):
    assert choose(config(gpu, learner_gpus), LONG, backend) == (route, why)
    assert choose(config(gpu, learner_gpus, weight_sync="object_store"), LONG, backend)[0] == "object_store"
    if route != "object_store":
        assert choose(config(gpu, learner_gpus, weight_sync=route), LONG, backend) == (route, why)
    assert shares_gpu(config(gpu, learner_gpus), LONG) == (gpu == learner_gpus == 0.5)


@pytest.mark.parametrize(
    ("gpu", "learner_gpus", "requested", "says"),
    [
        (
            0,
            0,
            "ipc",
            "weight_sync is ipc, but the long role's weights can only travel by object_store .the engine or",
        ),
        (
            1,
            1,
            "ipc",
            "can only travel by nccl or object_store .the engine and its learner are on different GPUs.; set",
        ),
        (0.5, 0.5, "nccl", "can only travel by ipc or object_store .the engine and its learner share a GPU"),
    ],
)
def test_a_route_that_cannot_be_taken_is_refused_with_its_reason(gpu, learner_gpus, requested, says):
    with pytest.raises(LongShortError, match=says):
        choose(config(gpu, learner_gpus, weight_sync=requested), LONG, "vllm")


def test_a_sleep_that_frees_nothing_for_the_learner_is_refused():
    for fitting in (config(time_share=True), config(0.5, 0.5, time_share=True), config(1, 1)):
        check_time_share(fitting, LONG)
    with pytest.raises(
        LongShortError, match=r"the long engine \(1 GPUs\) and its learner \(1 ranks of 1\) do not share one"
    ):
        check_time_share(config(1, 1, time_share=True), LONG)


def test_what_vllm_is_told_when_an_engine_is_made():
    assert engine_options(config(), "object_store", LONG) == {}
    assert engine_options(config(time_share=True), "object_store", LONG) == {}
    shared = config(0.25, 0.25, time_share=True)
    assert engine_options(shared, "ipc", LONG) == {
        "weight_transfer_config": {"backend": "ipc"},
        "enable_sleep_mode": True,
    }
    assert engine_arguments("m", shared.long.engine, 0)["gpu_memory_utilization"] == 0.25
    assert "gpu_memory_utilization" not in engine_arguments("m", EngineConfig(num_gpus=1), 0)
    own = EngineConfig(num_gpus=0.25, extra={"gpu_memory_utilization": 0.3})
    assert engine_arguments("m", own, 0)["gpu_memory_utilization"] == 0.3


def test_vllm_reads_the_files_that_the_learner_reads():
    arguments = engine_arguments("m", EngineConfig(), 0)
    formats = [arguments[key] for key in ("load_format", "config_format", "tokenizer_mode")]
    assert formats == ["safetensors", "hf", "hf"]


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"num_gpus": 1, "dtype": "bfloat16"}, {"head_dtype": "float32"}),
        ({"num_gpus": 1, "dtype": "bfloat16", "extra": {"hf_overrides": {}}}, {}),
        ({"num_gpus": 1, "dtype": "float32"}, None),
        ({"num_gpus": 0, "dtype": "bfloat16"}, None),
    ],
)
def test_on_a_gpu_the_logits_of_vllm_are_float32(engine, expected):
    assert engine_arguments("m", EngineConfig(**engine), 0).get("hf_overrides") == expected


def test_the_world_of_nccl_counts_the_engines_workers():
    def world(**extra):
        settings = config(long={"model": "m", "engine": {"extra": extra}})
        return make_route(settings, "nccl", LONG, SimpleNamespace())._world_size

    assert world() == 2
    assert world(tensor_parallel_size=4, pipeline_parallel_size=2) == 9


class Remote:
    """An actor's method: `actor.method.remote(...)`."""

    def __init__(self, call):
        self.remote = call


class Process:
    """Writes down, in a list that several share, what it is asked; `fail` names a step that goes wrong once."""

    def __init__(self, log, name, fail=()):
        self.log, self.name, self.fail = log, name, dict(fail)

    async def _do(self, step, answer=None):
        self.log.append(f"{self.name} {step}")
        await asyncio.sleep(0)
        if error := self.fail.pop(step, None):
            raise error
        return answer


class Engine(Process):
    def __init__(self, log, name, fail=()):
        super().__init__(log, name, fail)
        self.between_steps = Remote(lambda method, *arguments: self._do(method))
        self.submit = Remote(lambda requests: None)
        self.ready = Remote(lambda: self._do("ready"))


class Learner(Process):
    role, parcels = LONG, []

    def send(self, step, *arguments):
        if step == "manifest":
            self.parcels = [{"names": ["a"]}, {"names": ["b"]}, {}]
        answers = {"manifest": MANIFEST, "wire": {"gpu": "gpu-a", "buffer_bytes": 9}}
        return self._do(step, self.parcels.pop(0) if step == "pack" else answers.get(step))

    async def ready(self):
        await self._do("ready")

    def weights(self):
        return "reference"

    async def address(self):
        return ("127.0.0.1", 4000)


IPC = ["start_update", "learner pack", "update", "learner pack", "update", "learner pack", "finish_update"]


def engine_of(log, fails=()):
    """A RemoteEngine over such actors; each process it spawns has the next of `fails`."""
    fails, names = iter(fails), iter("ABCDEF")
    return RemoteEngine(
        LONG,
        LongShortConfig(engine_timeout_s=5),
        None,
        engine=EngineConfig(),
        backend="vllm",
        model="m",
        spawn=lambda: Engine(log, next(names), next(fails, ())),
        kill=lambda actor, pid: log.append(f"{actor.name} killed"),
        failure=RuntimeError,
    )


def deliveries(make, fails=(), learner_fails=(), times=1):
    """What happened, in order, while `times` versions were delivered; and the error that ended it, if any."""
    log: list[str] = []

    async def go():
        sync, engine = make(Learner(log, "learner", learner_fails)), engine_of(log, fails)
        try:
            for version in range(1, times + 1):
                await engine.receive(await sync.delivery(version))
        except LongShortError as error:
            return str(error)
        return ""

    return asyncio.run(go()), log


def named(*steps):
    return [step if " " in step else f"A {step}" for step in steps]


def test_the_object_store_is_asked_once_and_loaded_from():
    assert deliveries(ObjectStore) == ("", named("learner ready", "load_weights"))


def test_ipc_connects_once_and_packs_only_what_the_engine_has_copied():
    _, log = deliveries(CudaIpc, times=2)
    first = named("learner ready", "learner manifest", "learner wire", "connect", *IPC, "learner release")
    assert log == first + named("learner ready", "learner manifest", *IPC, "learner release")


def test_nccl_lets_both_sides_meet_and_send_at_the_same_time():
    _, log = deliveries(lambda learner: Nccl(learner, 1), times=2)
    meeting = ["learner ready", "learner manifest", "learner wire", "connect", "learner meet"]
    assert log == named(*meeting, "start_update", "update", "learner broadcast", "finish_update") + named(
        "learner ready", "learner manifest", "start_update", "update", "learner broadcast", "finish_update"
    )


def test_an_engine_that_dies_with_half_the_weights_is_replaced_and_gets_all_of_them():
    error, log = deliveries(CudaIpc, fails=[{"update": RuntimeError("CUDA error")}])
    assert error == "" and log[log.index("A update") + 1 :] == [
        "A killed",
        "B ready",
        "learner manifest",
        "learner wire",
        "B connect",
        *[step if " " in step else f"B {step}" for step in IPC],
        "learner release",
    ]


@pytest.mark.parametrize("make", [CudaIpc, lambda learner: Nccl(learner, 1)])
def test_a_refusal_of_either_side_is_no_crash(make):
    refused = LongShortError("weight update refused: model.norm.weight holds NaN or infinite values")
    error, log = deliveries(make, learner_fails={"manifest": refused})
    assert error == str(refused) and log == named("learner ready", "learner manifest")
    error, log = deliveries(make, fails=[{"start_update": refused}])
    assert error == str(refused) and "A update" not in log and "A killed" not in log


def test_a_transfer_over_nccl_that_is_cut_off_ends_the_run_and_says_so():
    error, log = deliveries(lambda learner: Nccl(learner, 1), fails=[{"update": RuntimeError("CUDA error")}])
    assert error.startswith(
        "a transfer of the long learner's weights over NCCL was cut off (CUDA error), and the side that is left waits"
    )
    assert "A killed" not in log
