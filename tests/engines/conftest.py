"""One Ray cluster, one pair of vLLM engines with learners, and one bare vLLM core, for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest

from longshort.backends import ray_cluster
from longshort.backends.engines.vllm_engine import ENVIRONMENT, VllmCore
from longshort.pair import LearningPair
from longshort.team.loop_thread import LoopThread
from longshort.types import LONG, ROLES
from tests.support import tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two random models; the short one's head is tied to its embedding."""
    return tiny_models.make(tmp_path_factory.mktemp("models"), tied_short=True)


@pytest.fixture(scope="session")
def speaking(tmp_path_factory):
    """Two models that close most of their turns with a tag."""
    return tiny_models.make_speaking(tmp_path_factory.mktemp("speaking"))


@pytest.fixture(scope="session")
def cluster(models, tmp_path_factory):
    """A running Ray cluster; the value is a recipe for it. It counts 16 CPUs, so that several pairs fit."""
    config = tiny_models.config(tmp_path_factory.mktemp("cluster"), models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 16}')
        stop = ray_cluster.start(config)
    yield config
    stop()


@pytest.fixture(scope="session")
def run_in_loop(cluster):
    """Run a coroutine in an event loop that lives as long as the session, as actor handles and engines need it."""
    thread = LoopThread()
    yield thread.run
    thread.stop()


@pytest.fixture(scope="session")
def pair(cluster, models, run_in_loop):
    """Two vLLM engines and their learners. Tests may publish weights and kill engines; what they return must hold."""
    pair = LearningPair(cluster, models, total_updates=dict.fromkeys(ROLES, 2))
    yield run_in_loop(pair.__aenter__())
    run_in_loop(pair.__aexit__())


@pytest.fixture(scope="session")
def in_vllm_core(cluster, models) -> Callable[[Callable], Any]:
    """Call a function with a VllmCore of the long model, in a process with an engine's environment."""
    import ray

    class Process:
        def __init__(self, model, config):
            self.core = VllmCore(model, config)

        def call(self, function):
            return function(self.core)

    options = {"num_cpus": ray_cluster.cpu_share(), "runtime_env": {"env_vars": ENVIRONMENT}}
    process = ray.remote(Process).options(**options).remote(models[LONG], cluster.long.engine)
    yield lambda function: ray.get(process.call.remote(function), timeout=200)
    ray.kill(process)
