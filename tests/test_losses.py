"""Each loss, denominator and correction against numbers worked out by hand."""

import math

import pytest
import torch

from longshort.learning.losses import IMPORTANCE_CORRECTIONS, LOSSES, check, k3, token_weights
from longshort.sections import LossConfig
from longshort.types import LongShortError
from tests.learning_cases import sample_like

# Two samples: three tokens of advantage 1, then two of advantage -2. Ratios: 2, 1, 0.5 and 2, 0.5.
SEQUENCE = torch.tensor([0, 0, 0, 1, 1])
ADVANTAGE = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0])
RATIO = torch.tensor([2.0, 1.0, 0.5, 2.0, 0.5])
LOGP = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])


def loss(name: str, epsilon: float, epsilon_high: float) -> list[float]:
    algorithm = LOSSES[name]
    ratio = algorithm.ratio(RATIO.log(), SEQUENCE)
    return algorithm.surrogate(ratio, LOGP, ADVANTAGE, *algorithm.bounds(epsilon, epsilon_high)).tolist()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_the_clipped_surrogate_is_pessimistic(name):
    # A > 0: -min(2, 1.3), -1, -min(0.5, 0.8); A = -2: -min(-4, -2.6), -min(-1, -1.6)
    assert loss(name, 0.2, 0.3) == pytest.approx([-1.3, -1.0, -0.5, 4.0, 1.6])


def test_gspo_shares_one_ratio_per_sample():
    # Both geometric means are 1: (2 * 1 * 0.5)^(1/3) and (2 * 0.5)^(1/2).
    assert loss("gspo", 0.2, 0.3) == pytest.approx([-1.0, -1.0, -1.0, 2.0, 2.0])
    ratio = LOSSES["gspo"].ratio(torch.tensor([4.0, 1.0, 9.0]).log(), torch.tensor([7, 7, 8]))
    assert ratio.tolist() == pytest.approx([2.0, 2.0, 9.0])


def test_cispo_caps_the_ratio_and_keeps_every_gradient():
    # -min(ratio, 1.5) * A * logp
    assert loss("cispo", 0.2, 1.5) == pytest.approx([1.5, 2.0, 1.5, -12.0, -5.0])
    logp = LOGP.clone().requires_grad_()
    LOSSES["cispo"].surrogate(RATIO, logp, ADVANTAGE, 0.0, 1.5).sum().backward()
    assert logp.grad.tolist() == pytest.approx([-1.5, -1.0, -0.5, 3.0, 1.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [1 / (2 * 3), 1 / (6 * 3), 0.0]),
        ("gspo", [1 / (2 * 3), 1 / (6 * 3), 0.0]),
        ("dr_grpo", [1 / 30, 1 / 30, 1 / 30]),
        ("dapo", [1 / 8, 1 / 8, 1 / 8]),
        ("cispo", [1 / 8, 1 / 8, 1 / 8]),
    ],
)
def test_denominators_of_samples_with_2_6_and_0_sampled_tokens(name, expected):
    samples = [sample_like(0, sampled=1), sample_like(1, sampled=5), sample_like(2, sampled=0)]
    samples[2] = type(samples[2])(role="long", token_ids=(1, 2), mask=(0, 0), logprobs=(0.0, 0.0), advantages=(0.0, 0.0))
    assert token_weights(samples, name, max_completion_tokens=10) == pytest.approx(expected)


def test_importance_corrections():
    log_ratio = torch.tensor([3.0, 1.0, 0.5, 1.5, 1.0]).log()
    correct = {name: correction(log_ratio, SEQUENCE, 2.0).tolist() for name, correction in IMPORTANCE_CORRECTIONS.items()}
    assert correct["none"] == [1.0] * 5
    assert correct["token_truncate"] == pytest.approx([2.0, 1.0, 0.5, 1.5, 1.0])
    assert correct["sequence_mask"] == pytest.approx([1.5, 1.5, 1.5, 1.5, 1.5])
    assert IMPORTANCE_CORRECTIONS["sequence_mask"](log_ratio, SEQUENCE * 0, 2.0).tolist() == [0.0] * 5  # 2.25 > 2


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
    values = k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -1.0 + math.log(2)]))
    assert values.tolist() == pytest.approx([0.0, 2 - math.log(2) - 1])


def test_a_cispo_cap_below_one_is_refused():
    with pytest.raises(LongShortError, match=r"0\.28.*cap on the ratio"):
        check(LossConfig(name="cispo"))
    assert check(LossConfig(name="cispo", epsilon_high=5.0)) is None
