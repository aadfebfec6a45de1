"""Each loss, denominator and correction against numbers worked out by hand."""

import math

import pytest
import torch

from longshort.learning.losses import IMPORTANCE_CORRECTIONS, LOSSES, check, k3, token_weights
from longshort.learning.step import token_loss
from longshort.recipe.sections import LossConfig
from longshort.types import Batch, LongShortError
from tests.support.learning_cases import sample_like

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
    samples[2] = type(samples[2])(
        role="long", token_ids=(1, 2), mask=(0, 0), logprobs=(0.0, 0.0), advantages=(0.0, 0.0)
    )
    assert token_weights(samples, name, max_completion_tokens=10) == pytest.approx(expected)


def test_importance_corrections():
    log_ratio = torch.tensor([3.0, 1.0, 0.5, 1.5, 1.0]).log()
    correct = {
        name: correction(log_ratio, SEQUENCE, 2.0).tolist() for name, correction in IMPORTANCE_CORRECTIONS.items()
    }
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


def test_stale_tokens_give_the_gradient_of_the_policy_that_learns():
    """Every token of a vocabulary of four, weighted by how often its author samples it: two authors, older and newer
    weights, whose tokens
    both get the learner's exact policy gradient; uncorrected they get their authors', and the cap removes the excess of
    a ratio."""
    learner = torch.tensor([0.1, 0.7, -0.3, 0.2], requires_grad=True)
    authors = torch.tensor([[0.4, 0.3, -0.3, 0.0], [0.1, 0.6, -0.1, 0.2]]).log_softmax(-1)
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.25])
    everything = torch.ones(1, 8, dtype=torch.bool)
    batch = Batch(
        role="long",
        input_ids=torch.arange(8)[None],
        position_ids=torch.arange(8)[None],
        sequence=torch.zeros(1, 8, dtype=torch.long),
        mask=everything,
        logprobs=authors.reshape(1, 8),
        advantages=advantage.repeat(2)[None],
        weights=authors.exp().reshape(1, 8),
    )

    def gradient(**settings):
        logp = learner.log_softmax(-1).repeat(2)
        per_token, values = token_loss(logp, logp.detach(), None, batch, LossConfig(**settings))
        (found,) = torch.autograd.grad((per_token * batch.weights[0]).sum(), learner)
        return found, values["sampling/importance_sampling_ratio"]

    (expected,) = torch.autograd.grad(-2 * (learner.softmax(-1) * advantage).sum(), learner)
    corrected, ratio = gradient(importance_cap=100.0)
    assert corrected.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert ratio.tolist() == pytest.approx((learner.log_softmax(-1).repeat(2) - authors.flatten()).exp().tolist())
    assert (gradient(importance_correction="none")[0] - expected).abs().max() > 0.05
    assert gradient(importance_cap=1.1)[1].max() == pytest.approx(1.1) and ratio.max() > 1.2
