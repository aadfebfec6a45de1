"""DeepSpeed in more shapes: other settings, three ranks, ranks that fall silent, a pair with two ranks each."""

import math
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
    assert_the_same,
    distance,
    launch,
    plain,
    recipe,
    same,
    save_models,
    torch_gradient_of,
    two_updates,
)
from tests.support.learning_cases import sample_like
from tests.support.lost_ranks import update_that_loses_a_rank


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


def test_other_settings_do_what_they_do_on_one_device(models, tmp_path):
    found = launch(2, "variants", models["untied"], models["tied"], folder=tmp_path)
    for name, _, model, changes in VARIANTS:
        chosen = plain(recipe(**{key: value for key, value in changes.items() if key != "learner"}))
        expected = two_updates(TorchLearner.from_pretrained(LONG, models[model], chosen, 4), torch_gradient_of)
        assert_the_same(found[name], expected, 2e-2 if "bfloat16" in name else 1e-6)
    tied = found["tied head, layers recomputed, ZeRO-3"]["weights"]
    assert torch.equal(tied["lm_head.weight"], tied["model.embed_tokens.weight"])


@pytest.mark.parametrize("stage", [2, 3])
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


def test_one_rank_does_what_the_torch_learner_does(models, tmp_path):
    results = launch(1, "equality", models["untied"], "123", folder=tmp_path)
    for (_, cut), result in results.items():
        learner = TorchLearner.from_pretrained(LONG, models["untied"], plain(recipe(**CUTS[cut])), 4)
        assert_the_same(result, two_updates(learner, torch_gradient_of), 1e-6)


def test_a_rank_that_falls_silent_ends_the_update_and_is_named(models):
    stop = ray_cluster.start(recipe())
    message = r"the long learner failed: rank 1 of 2 gives no sign of life; rank 0 of 2: .*Timed out"
    try:
        with pytest.raises(LongShortError, match=message):
            update_that_loses_a_rank(models["untied"], signal.SIGSTOP, timeout_s=15.0)
    finally:
        stop()
