"""The learning rate over a run, and which parameters decay."""

import pytest
import torch

from longshort.learning.optim import build_optimizer, learning_rate_factor, set_learning_rate
from tests.support.learning_cases import tiny_model


def rates(kind: str, warmup_ratio: float, steps: int) -> list[float]:
    return [learning_rate_factor(step, steps, kind=kind, warmup_ratio=warmup_ratio) for step in range(steps)]


def test_learning_rates_read_by_eye():
    assert rates("constant", 0.5, 4) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates("linear", 0.0, 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates("linear", 0.2, 5) == pytest.approx([1 / 2, 1, 0.75, 0.5, 0.25])
    assert rates("cosine", 0.0, 2) == pytest.approx([1, 0.5])
    assert rates("cosine", 1.0, 3) == pytest.approx([1 / 4, 2 / 4, 3 / 4])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
def test_no_step_of_a_run_is_wasted_and_none_exceeds_the_peak(kind, warmup_ratio):
    assert all(0 < rate <= 1 for rate in rates(kind, warmup_ratio, 30))
    assert learning_rate_factor(40, 30, kind=kind, warmup_ratio=warmup_ratio) == (1.0 if kind == "constant" else 0.0)


def test_matrices_decay_and_norms_and_biases_do_not():
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "norm" in name or name.endswith("bias") else 0.95
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_setting_the_learning_rate_reaches_every_group():
    optimizer = build_optimizer(tiny_model(), learning_rate=0.1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
