"""Engines that sleep while learners use their device."""

import pytest

from longshort.recipe.schema import LongShortConfig
from longshort.recipe.sections import EngineConfig
from longshort.runs import checkpoint
from longshort.types import LONG, SHORT, Sampling
from tests.support import tiny_models
from tests.support.engine_cases import PROMPTS, inflated, load, sample
from tests.support.training_runs import metrics, trainer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("models"), tied_short=True)


def awake(core):
    core.wake(["weights"])
    core.wake(["kv_cache"])


def test_vllm_sleeps_wakes_and_is_given_new_weights(models):
    """On a CPU its memory stays; that it stops, goes on, and takes weights between the two is real."""
    import ray

    from longshort.backends import ray_cluster
    from longshort.backends.engines.vllm_engine import ENVIRONMENT, VllmCore

    config = EngineConfig(**tiny_models.ENGINE)

    def slept(model):
        core = VllmCore(model, config)
        before = sample(core, PROMPTS)
        core.sleep(1)
        awake(core)
        again = sample(core, PROMPTS)
        core.sleep(2)
        core.add("early", PROMPTS[0], Sampling(max_tokens=20, stop=(), seed=0))
        stopped = [core.busy]
        core.wake(["weights"])
        core.load_weights(inflated(load(model)), 1)
        stopped.append(core.busy)
        core.wake(["kv_cache"])
        finished = {}
        while core.busy:
            finished |= dict(core.step())
        return before, again, stopped, finished["early"], core.version

    stop = ray_cluster.start(LongShortConfig())
    run = ray.remote(slept).options(num_cpus=ray_cluster.cpu_share(), runtime_env={"env_vars": ENVIRONMENT})
    before, again, stopped, early, version = ray.get(run.remote(models[LONG]), timeout=200)
    stop()
    assert again == before and stopped == [False, False] and (early.version, version) == (1, 1)
    assert early.logprobs != before[0].logprobs


def test_a_pair_trains_in_turns(tmp_path, tmp_path_factory, capsys):
    """Engines really drop their weights (transformers); learners pack rows with varlen attention. In the second step
    the long role is frozen: its engine keeps its weights.
    """
    models = tiny_models.make_speaking(tmp_path_factory.mktemp("speaking"))
    run = trainer(
        tmp_path, models, max_steps=2, time_share=True, schedule=["long", "short"], learner={"attention": "varlen"}
    )
    run.train()
    first, second = metrics(run)
    assert first["long/weight_sync/canary_gap"] < 1e-3 and second["short/weight_sync/canary_gap"] < 1e-3
    assert first["long/optimizer_steps"] == second["short/optimizer_steps"] == 1
    assert checkpoint.verify(checkpoint.latest(run.output_dir))["versions"] == {LONG: 1, SHORT: 1}
    assert (
        "long: new weights travel by object_store (a transformers engine takes them from there only)"
        in capsys.readouterr().out
    )
