"""Attention over packed rows: the same log-probs and gradients as dense SDPA and as each sample alone, and a wrong
kernel is found out.
"""

import pytest
import torch

from longshort.backends.learners import attention
from longshort.backends.learners.attention import boundaries, choose_attention, row_budget, sample_by_sample
from longshort.backends.learners.learner_model import load_model
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.learning.logprobs import token_logprobs
from longshort.learning.packing import pack
from longshort.recipe.schema import LongShortConfig
from longshort.types import LONG, LongShortError
from tests.support.learning_cases import sample_like, save_tiny


def config(**settings) -> LongShortConfig:
    return LongShortConfig(**{"learning_rate": 1e-2, "warmup_ratio": 0.0} | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def test_boundaries_read_by_eye():
    assert boundaries(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]))[0].tolist() == [0, 3, 5, 7, 8, 9, 10]
    assert boundaries(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]))[1] == 3


@pytest.mark.parametrize("batch_tokens", [14, 200])
def test_varlen_gives_dense_attentions_log_probs_and_gradient(folder, batch_tokens):
    """Rows of several samples, several rows, padding; to 1e-6 in both."""
    samples = [sample_like(seed, prompt=2 + seed % 3, sampled=3 + seed) for seed in range(5)]
    attention.use_attention(config(learner={"attention": "varlen"}))
    found = []
    for name in ("sdpa", "longshort_varlen"):
        model = load_model(folder, name)
        assert model.config._attn_implementation == name
        batches = pack(samples, [1.0] * 5, row_tokens=14, batch_tokens=batch_tokens)
        logps = [token_logprobs(model, batch) for batch in batches]
        torch.cat(logps).sum().backward()
        found.append((torch.cat(logps), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    (dense, dense_gradient), (varlen, varlen_gradient) = found
    assert (dense - varlen).abs().max() < 1e-6
    assert (dense_gradient - varlen_gradient).abs().max() < 1e-5 * dense_gradient.abs().max()


def test_a_window_sees_so_many_tokens_and_no_more():
    """With a window of 2 tokens before the own one and values that name their position, each output is the mean of the
    last three.
    """
    query, key = torch.zeros(5, 2, 4), torch.zeros(5, 1, 4)
    value = torch.arange(5.0).view(5, 1, 1).expand(5, 1, 4)
    bounds = torch.tensor([0, 4, 5], dtype=torch.int32)
    assert sample_by_sample(query, key, value, bounds, 4, None, (2, 0))[:, 0, 0].tolist() == pytest.approx(
        [0, 0.5, 1, 2, 4]
    )
    assert sample_by_sample(query, key, value, bounds, 4, None, (-1, 0))[:, 1, 3].tolist() == pytest.approx(
        [0, 0.5, 1, 1.5, 4]
    )


def test_a_kernel_that_looks_at_neighbours_is_refused_at_start(folder, monkeypatch):
    def leaking(query, key, value, bounds, longest, scale, window):
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return sample_by_sample(query, key, value, whole, len(query), scale, window)

    monkeypatch.setattr(attention, "sample_by_sample", leaking)
    with pytest.raises(
        LongShortError, match=r"long: samples packed into one row .* attention 'varlen' does not keep them apart"
    ):
        TorchLearner.from_pretrained(LONG, folder, config(learner={"attention": "varlen"}), total_updates=1)


def test_a_learner_with_varlen_attention_learns_the_same_in_longer_rows(folder):
    samples = [sample_like(i, sampled=2 + i, advantage=(-1.0) ** i) for i in range(5)]
    runs = []
    for name in ("sdpa", "varlen"):
        learner = TorchLearner.from_pretrained(LONG, folder, config(learner={"attention": name}), total_updates=4)
        report = learner.update(samples)
        runs.append((learner.settings.row_tokens, report["loss"], report["grad_norm"]))
    assert [row_tokens for row_tokens, _, _ in runs] == [0, 8192]
    assert runs[0][1:] == pytest.approx(runs[1][1:], rel=1e-5)


HALF_ON_GPU = {"learner_gpus": 1, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("settings", "available", "chosen"),
    [
        ({}, (), "sdpa"),
        ({"learner_gpus": 1}, ("varlen",), "sdpa"),
        (HALF_ON_GPU, ("varlen", "flash_attention_2"), "varlen"),
        (HALF_ON_GPU, ("flash_attention_2",), "flash_attention_2"),
        (HALF_ON_GPU | {"deterministic": True}, ("varlen",), "sdpa"),
        (HALF_ON_GPU, (), "sdpa"),
        ({"learner": {"attention": "varlen"}}, (), "varlen"),
    ],
)
def test_auto_takes_the_first_kernel_that_works(monkeypatch, settings, available, chosen):
    kernels = {
        name: (lambda name=name: (print, "" if name in available else f"no {name}"))
        for name in ("varlen", "flash_attention_2")
    }
    monkeypatch.setattr(attention, "KERNELS", kernels)
    assert choose_attention(config(**settings)) == chosen


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"learner_gpus": 1, "learner": {"attention": "varlen"}},
            "kernel needs a GPU and bfloat16, but learner_gpus is 1 and dtype float32",
        ),
        ({"learner": {"attention": "flash_attention_2"}}, "kernel needs a GPU and bfloat16, but learner_gpus is 0"),
        (
            {"learner_gpus": 1, "dtype": "bfloat16", "learner": {"attention": "flash_attention_2"}},
            "flash_attention_2, but the package flash-attn is not installed; set learner.attention: auto",
        ),
    ],
)
def test_an_attention_that_cannot_work_here_is_refused(settings, says):
    with pytest.raises(LongShortError, match=says):
        choose_attention(config(**settings))


def test_this_torch_has_the_kernel_that_a_gpu_would_use():
    run, missing = attention.torch_kernel()
    assert callable(run) and missing == ""


def test_rows_are_as_long_as_the_recipe_says_whatever_the_attention():
    assert row_budget(config(row_tokens=512), "varlen") == row_budget(config(row_tokens=512), "sdpa") == 512
    assert (row_budget(config(), "sdpa"), row_budget(config(batch_tokens=4096), "varlen")) == (0, 4096)
