"""An engine and a learner with the same weights give a sampled token the same probability: their ratio is 1."""

import pytest
import torch

from longshort.backends.engines.transformers_engine import TransformersCore
from longshort.learning.step import StepSettings, policy_gradient_step
from longshort.recipe.sections import EngineConfig, LossConfig
from longshort.types import Sample
from tests.support.engine_cases import sample
from tests.support.learning_cases import save_tiny, tiny_model

PROMPTS = [tuple(range(2 + i, 8 + i)) for i in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def update(folder, temperature=1.0, **cut):
    """Sample turns, and return the report of an update on them by a learner with the engine's weights."""
    core = TransformersCore(folder, EngineConfig(max_model_len=64))
    turns = sample(core, PROMPTS, temperature=temperature, **cut)
    samples = [
        Sample(
            role="long",
            token_ids=(*prompt, *turn.token_ids),
            mask=(0,) * len(prompt) + (1,) * len(turn.token_ids),
            logprobs=(0.0,) * len(prompt) + turn.logprobs,
            advantages=(0.0,) * len(prompt) + ((-1.0) ** i,) * len(turn.token_ids),
        )
        for i, (prompt, turn) in enumerate(zip(PROMPTS, turns, strict=True))
    ]
    settings = StepSettings(
        loss=LossConfig(importance_cap=100.0),
        temperature=temperature,
        max_completion_tokens=20,
        max_grad_norm=1.0,
        num_iterations=1,
        row_tokens=0,
        batch_tokens=1000,
    )
    model = tiny_model()
    return policy_gradient_step(model, None, torch.optim.SGD(model.parameters(), lr=0.0), samples, settings)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_the_ratio_of_equal_weights_is_1(folder, temperature):
    report = update(folder, temperature)
    assert report["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert report["sampling/sampling_logp_difference/max"] < 1e-4


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 5}])
def test_the_ratio_of_a_cut_distribution_is_not_1_so_training_refuses_it(folder, cut):
    report = update(folder, **cut)
    assert report["sampling/importance_sampling_ratio/mean"] < 0.9
