"""Supervised training learns what is masked in, repeats exactly, and stops loudly."""

import math

import pytest
import torch

from longshort.miniature.fitting import endless_order, fit
from longshort.types import LongShortError, Sample
from tests.support.learning_cases import tiny_model

SETTINGS = {"steps": 40, "batch_size": 4, "learning_rate": 1e-2, "seed": 3}


def counting(start: int) -> Sample:
    """Prompt: the start; masked: the next five numbers."""
    return Sample(
        role="long",
        token_ids=tuple(range(start, start + 6)),
        mask=(0, 1, 1, 1, 1, 1),
        logprobs=(0.0,) * 6,
        advantages=(0.0,) * 6,
    )


SAMPLES = [counting(start) for start in range(1, 13)]


def test_it_learns_to_count():
    model, seen = tiny_model(), []
    losses = fit(model, SAMPLES, **SETTINGS, on_step=lambda step, loss: seen.append((step, loss)))
    assert losses[0] > 2.0 and losses[-1] < 0.5
    assert seen == list(enumerate(losses))
    assert model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax() == 8


def test_the_first_loss_is_the_mean_nll_of_the_masked_tokens():
    model = tiny_model()
    logp = model(torch.tensor([SAMPLES[0].token_ids])).logits.log_softmax(-1)[0]
    by_hand = -sum(logp[t - 1, SAMPLES[0].token_ids[t]].item() for t in range(1, 6)) / 5
    assert fit(model, SAMPLES[:1], steps=1, batch_size=1, learning_rate=1e-3) == pytest.approx([by_hand], rel=1e-5)


def test_the_same_seed_gives_the_same_bits_whatever_came_before():
    first, second = tiny_model(), tiny_model()
    fit(first, SAMPLES, **SETTINGS)
    torch.rand(7)
    fit(second, SAMPLES, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_unmasked_tokens_train_nothing():
    silent = Sample(role="long", token_ids=(1, 2), mask=(0, 0), logprobs=(0.0, 0.0), advantages=(0.0, 0.0))
    with pytest.raises(LongShortError, match="no sample with a masked token"):
        fit(tiny_model(), [silent], **SETTINGS)


def test_a_non_finite_loss_stops_the_training():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(LongShortError, match="step 0: loss nan"):
        fit(model, SAMPLES, **SETTINGS)


def test_the_order_is_a_permutation_each_epoch():
    order = endless_order(5, seed=1)
    first, second = [next(order) for _ in range(5)], [next(order) for _ in range(5)]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4] and first != second
