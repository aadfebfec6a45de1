"""DeepSpeed's ranks against the torch learner: the same gradient, weights, refusals and files, however the work is
cut.
"""

import pytest

from longshort.backends.learners.torch_learner import TorchLearner
from longshort.types import LONG
from tests.support.deepspeed_ranks import (
    CUTS,
    assert_the_same,
    distance,
    launch,
    plain,
    recipe,
    same,
    save_models,
    torch_gradient_of,
    two_updates,
    unpacked,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def torch_results(models) -> dict[str, dict]:
    return {
        cut: two_updates(
            TorchLearner.from_pretrained(LONG, models["untied"], plain(recipe(**sizes)), 4), torch_gradient_of
        )
        for cut, sizes in CUTS.items()
    }


def test_gradient_and_weights_are_the_torch_learners_to_1e_6(models, torch_results, tmp_path):
    found = launch(2, "equality", models["untied"], "123", folder=tmp_path)
    assert len(found) == 18
    for (_, cut), result in found.items():
        assert_the_same(result, torch_results[cut], 1e-6)
    worst = [
        max(distance(result[what], torch_results[cut][what]) for (_, cut), result in found.items())
        for what in ("gradient", "weights")
    ]
    print(f"2 ranks: gradient within {worst[0]:.1e}, weights within {worst[1]:.1e}")


def test_rank_0_packs_whole_weights_for_an_engine_and_every_rank_refuses_what_is_not_finite(models, tmp_path):
    seen = launch(2, "parcels", models["tied"], 3, folder=tmp_path)
    arrived = unpacked(seen["packed"])
    assert [name for name, _, _ in seen["manifest"]] == list(arrived) == list(seen["weights"])
    assert same(arrived, seen["weights"]) and len(seen["packed"]) > 3 and seen["after"] == {}
    assert (
        seen["refused"]
        == "weight update refused: the long learner's model.embed_tokens.weight holds NaN or infinite values"
    )
