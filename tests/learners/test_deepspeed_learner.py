"""DeepSpeed's ranks against the torch learner: the same gradient, weights, refusals and files, however the work is
cut.
"""

import asyncio
import math
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from longshort.backends import ray_cluster
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.types import LONG, LongShortError, Reward
from tests.support import tiny_models
from tests.support.deepspeed_ranks import (
    CUTS,
    SAMPLES,
    VARIANTS,
    launch,
    plain,
    recipe,
    same,
    settings_of,
    torch_gradient_of,
    two_updates,
    unpacked,
)
from tests.support.learning_cases import sample_like, save_tiny

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"untied": save_tiny(folder / "untied"), "tied": save_tiny(folder / "tied", tied=True)}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Length of the difference over the length of what was expected, all tensors laid end to end."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (found, expected))
    return ((a - b).norm() / b.norm()).item()


def assert_the_same(found: dict, expected: dict, tolerance: float) -> None:
    """Of two pairs of updates: gradient, weights, report and gaps."""
    assert distance(found["gradient"], expected["gradient"]) < tolerance
    assert distance(found["weights"], expected["weights"]) < tolerance
    assert found["report"] == pytest.approx(expected["report"], rel=20 * tolerance, abs=20 * tolerance)
    for gap, wanted in zip(found["gaps"], expected["gaps"], strict=True):
        assert gap == pytest.approx(wanted, abs=max(1.1e-4, 20 * tolerance))


@pytest.fixture(scope="module")
def torch_results(models) -> dict[str, dict]:
    return {
        cut: two_updates(
            TorchLearner.from_pretrained(LONG, models["untied"], plain(recipe(**sizes)), 4), torch_gradient_of
        )
        for cut, sizes in CUTS.items()
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_and_weights_are_the_torch_learners_to_1e_6(models, torch_results, tmp_path, ranks):
    found = launch(ranks, "equality", models["untied"], "123", folder=tmp_path)
    assert len(found) == 18
    for (_, cut), result in found.items():
        assert_the_same(result, torch_results[cut], 1e-6)
    worst = [
        max(distance(result[what], torch_results[cut][what]) for (_, cut), result in found.items())
        for what in ("gradient", "weights")
    ]
    print(f"{ranks} ranks: gradient within {worst[0]:.1e}, weights within {worst[1]:.1e}")


def test_other_settings_do_what_they_do_on_one_device(models, tmp_path):
    found = launch(2, "variants", models["untied"], models["tied"], folder=tmp_path)
    for name, _, model, changes in VARIANTS:
        chosen = plain(recipe(**{key: value for key, value in changes.items() if key != "learner"}))
        expected = two_updates(TorchLearner.from_pretrained(LONG, models[model], chosen, 4), torch_gradient_of)
        assert_the_same(found[name], expected, 2e-2 if "bfloat16" in name else 1e-6)
    tied = found["tied head, layers recomputed, ZeRO-3"]["weights"]
    assert torch.equal(tied["lm_head.weight"], tied["model.embed_tokens.weight"])


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_rank_0_packs_whole_weights_for_an_engine_and_every_rank_refuses_what_is_not_finite(models, tmp_path, stage):
    seen = launch(2, "parcels", models["tied"], stage, folder=tmp_path)
    arrived = unpacked(seen["packed"])
    assert [name for name, _, _ in seen["manifest"]] == list(arrived) == list(seen["weights"])
    assert same(arrived, seen["weights"]) and len(seen["packed"]) > 3 and seen["after"] == {}
    assert (
        seen["refused"]
        == "weight update refused: the long learner's model.embed_tokens.weight holds NaN or infinite values"
    )


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_good_days_and_bad_days_on_three_ranks(models, tmp_path, stage):
    teacher = TorchLearner.from_pretrained(LONG, models["untied"], plain(recipe()), 4)
    teacher.update(SAMPLES)
    teacher.save(tmp_path / "torch/model", tmp_path / "torch/state")
    seen = launch(3, "life", models["untied"], tmp_path / "saved", tmp_path / "torch", stage, folder=tmp_path / "ranks")
    assert seen["nothing"] == {"tokens": 7.0, "skipped": 0.0, "skipped_empty": 1.0, "optimizer_steps": 0.0}

    alone = TorchLearner.from_pretrained(LONG, models["untied"], plain(recipe()), 4)
    alone.update([sample_like(1, advantage=0.0)])
    assert seen["one sample"] == pytest.approx(
        alone.update(SAMPLES[:1]), abs=2e-5
    )  # two of the three ranks have nothing to do
    assert seen["gaps of one sample"] == [pytest.approx(alone.gaps()[0], abs=1.1e-4)]
    alone.update(SAMPLES[:1])
    assert distance(seen["saved"], alone.weights()) < 1e-6 and not same(seen["saved"], seen["start"])

    for bad in ("nan", "inf"):
        report, gaps, unmoved = seen[bad]
        assert report["skipped"] == 1.0 and report["optimizer_steps"] == 0.0 and not math.isfinite(report["loss"])
        assert gaps == [None] * 7 and unmoved
    assert seen["infinite loss"] == ((math.inf, math.inf), True)  # each gradient was finite
    assert seen["score"] == pytest.approx(alone.score((3, 4), (5, 6), 0.7), abs=1e-5)
    assert seen["good"] == pytest.approx(alone.update(SAMPLES), abs=2e-5)
    assert seen["good again"] == pytest.approx(alone.update(SAMPLES), abs=2e-5)
    assert distance(seen["end"], alone.weights()) < 1e-6

    assert same(seen["loaded"], seen["saved"]) and same(seen["end, resumed"], seen["end"])
    assert seen["good, resumed"] == seen["good"] and seen["good again, resumed"] == seen["good again"]
    assert same(dict(AutoModelForCausalLM.from_pretrained(tmp_path / "saved/model").state_dict()), seen["saved"])
    heir = TorchLearner.from_pretrained(LONG, tmp_path / "saved/model", plain(recipe()), 4)
    heir.load(tmp_path / "saved/state")
    heir.update(SAMPLES)
    heir.update(SAMPLES)
    assert distance(heir.weights(), seen["end"]) < 1e-6  # one process goes on from what three have saved,
    teacher.update(SAMPLES)
    assert distance(seen["torch's, resumed"], teacher.weights()) < 1e-6  # and three from what one has


@pytest.fixture(scope="module")
def cluster(models):
    config = recipe(learner=settings_of(3, ranks=2, timeout_s=15.0), long={"model": models["untied"]})
    stop = ray_cluster.start(config)
    yield config
    stop()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"the long learner died: rank 1 of 2: .*; resume from the last checkpoint"),
        pytest.param(
            signal.SIGSTOP,
            r"the long learner failed: rank 1 of 2 gives no sign of life; rank 0 of 2: .*Timed out",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_dies_or_falls_silent_ends_the_update_and_is_named(cluster, models, number, message):
    async def go():
        learner = ray_cluster.make_learner(LONG, models["untied"], cluster, 4)
        try:
            assert (await learner.update(SAMPLES))["optimizer_steps"] == 1.0
            weights = learner.weights()
            await learner.ready()
            alone = TorchLearner.from_pretrained(LONG, models["untied"], plain(cluster), 4)
            alone.update(SAMPLES)
            assert distance(await weights, alone.weights()) < 1e-6
            pid = await learner._actors[1].__ray_call__.remote(lambda actor: os.getpid())
            long_update = asyncio.create_task(learner.update(SAMPLES * 300))
            await asyncio.sleep(0.5)
            os.kill(pid, number)
            try:
                await asyncio.wait_for(long_update, 60)
            finally:
                os.kill(pid, signal.SIGKILL) if number == signal.SIGSTOP else None
        finally:
            learner.close()

    with pytest.raises(LongShortError, match=message):
        asyncio.run(go())


def test_more_ranks_than_devices_are_refused_with_both_numbers(cluster, models):
    there = {"CPU": 4.0, "GPU": 3.0}
    with pytest.raises(LongShortError, match=r"learner.ranks is 5 but the cluster has 4 CPUs"):
        ray_cluster.check_devices(recipe(learner={"ranks": 5}), there)
    with pytest.raises(
        LongShortError,
        match=r"2 learners of 2 ranks with 1 GPU each and engines with 0 take 4 GPUs but the cluster has 3",
    ):
        ray_cluster.check_devices(recipe(learner={"ranks": 2}, learner_gpus=1), there)
    ray_cluster.check_devices(recipe(learner={"ranks": 3}, learner_gpus=1, protocol={"name": "solo"}), there)
    with pytest.raises(LongShortError, match=r"learner.ranks is 1000 but the cluster has"):
        ray_cluster.make_learner(LONG, models["untied"], recipe(learner={"ranks": 1000}), 4)


@pytest.mark.slow
def test_a_pair_trains_with_two_ranks_each(tmp_path):
    from longshort.trainer import LongShortTrainer

    models = tiny_models.make(tmp_path / "models", tied_short=True)
    roles = {role: tiny_models.role(models[role], backend="transformers") for role in models}
    config = tiny_models.config(
        tmp_path, models, **roles, max_steps=1, learner={"backend": "deepspeed", "ranks": 2, "zero_stage": 3}
    )

    def by_position(problem, episodes, progress):
        totals = [
            dict.fromkeys(models, i % 2) for i in range(len(episodes))
        ]  # untrained models earn nothing, so nothing to compare
        return [
            Reward(totals=total, terms={"correct": 0.0, "format/long": 0.0, "format/short": 0.0}) for total in totals
        ]

    metrics = LongShortTrainer(args=config, reward=by_position).train()
    assert metrics["long/optimizer_steps"] == 1.0 and metrics["long/weight_sync/canary_gap"] < 1e-4
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-1/long")
    start = AutoModelForCausalLM.from_pretrained(models[LONG])
    assert (
        not torch.equal(saved.lm_head.weight, start.lm_head.weight)
        and (tmp_path / "run/checkpoint-1/state/short/learner.json").is_file()
    )
