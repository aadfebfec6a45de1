"""Engines that sleep while learners use their device."""

import pytest

from longshort.runs import checkpoint
from longshort.types import LONG, ROLES, Sampling
from tests.support.engine_cases import PROMPTS, load, sample
from tests.support.training_runs import metrics, trainer


def asleep_and_awake(core, weights):
    """Sleep at level 1 and wake; then at level 2 and wake with new weights. Return what the core did at each stage."""
    seen = {"before": sample(core, PROMPTS)}
    core.sleep(1)
    core.wake(["weights"])
    core.wake(["kv_cache"])
    seen["again"] = sample(core, PROMPTS)
    core.sleep(2)
    core.add("early", PROMPTS[0], Sampling(max_tokens=20, stop=(), seed=0))
    seen["busy asleep"] = core.busy
    core.wake(["weights"])
    core.load_weights(weights, 7)
    seen["busy without cache"] = core.busy
    core.wake(["kv_cache"])
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    return seen | {"early": finished["early"]}


@pytest.fixture(scope="module")
def seen(in_vllm_core, models):
    path = models[LONG]

    def act(core):
        return asleep_and_awake(core, {name: tensor * 1.5 for name, tensor in load(path).state_dict().items()})

    return in_vllm_core(act)


def test_vllm_writes_the_same_turns_after_a_light_sleep(seen):
    assert seen["again"] == seen["before"]


def test_vllm_writes_nothing_until_weights_and_cache_are_back(seen):
    assert not seen["busy asleep"]
    assert not seen["busy without cache"]


def test_vllm_wakes_from_a_deep_sleep_with_the_weights_it_is_given(seen):
    assert seen["early"].version == 7
    assert seen["early"].logprobs != seen["before"][0].logprobs


def test_a_pair_trains_in_turns(cluster, tmp_path, speaking, capsys):
    """Engines really drop their weights (transformers); learners pack rows with varlen attention. In the second step
    the long role is frozen: its engine keeps its weights.
    """
    run = trainer(
        tmp_path, speaking, max_steps=2, time_share=True, schedule=["long", "short"], learner={"attention": "varlen"}
    )
    run.train()
    first, second = metrics(run)
    assert first["long/weight_sync/canary_gap"] < 1e-3
    assert second["short/weight_sync/canary_gap"] < 1e-3
    assert [first["long/optimizer_steps"], second["short/optimizer_steps"]] == [1, 1]
    assert checkpoint.verify(checkpoint.latest(run.output_dir))["versions"] == dict.fromkeys(ROLES, 1)
    sentence = "long: new weights travel by object_store (a transformers engine takes them from there only)"
    assert sentence in capsys.readouterr().out
