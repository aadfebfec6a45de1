"""The same batch through TRL's GRPOTrainer and through our step: same loss, same gradient (relative difference <=
1e-4, float32).

TRL pads prompts left and completions right and marks a partner's text with `tool_mask`; we pack. TRL is given the
log-probs of the old policy, the engine and the reference; ours come from the models. `-s` prints the differences.
"""

from pathlib import Path

import pytest
import torch

from longshort.learning import step as step_module
from longshort.learning.logprobs import token_logprobs
from longshort.learning.packing import pack
from longshort.recipe.sections import LossConfig
from longshort.types import Sample
from tests.support.learning_cases import sample_like, save_tiny, tiny_model

MAX_COMPLETION, CAP, TEMPERATURE = 16, 2.0, 0.7
SAMPLES = [
    sample_like(seed, prompt=2 + seed % 3, sampled=3 + seed % 4, advantage=[1.0, -0.5, 2.0][seed % 3])
    for seed in range(6)
]
CASES = {
    "grpo": {"name": "grpo"},
    "dr_grpo": {"name": "dr_grpo"},
    "dapo": {"name": "dapo"},
    "cispo": {"name": "cispo", "epsilon_high": 1.3},
    "gspo": {"name": "gspo", "epsilon": 0.02, "epsilon_high": 0.02},
}
EXTRAS = {
    "plain": {"importance_correction": "none"},
    "token_truncate": {"importance_correction": "token_truncate"},
    "sequence_mask": {"importance_correction": "sequence_mask"},
    "kl": {"importance_correction": "none", "beta": 0.3},
    "kl and token_truncate": {"importance_correction": "token_truncate", "beta": 0.3},
}


def near_policy(model_seed: int, noise: float) -> torch.nn.Module:
    """The model with its weights moved a little: an old policy, an engine, a reference."""
    model = tiny_model()
    torch.manual_seed(model_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


OLD, ENGINE, REFERENCE = near_policy(1, 0.02), near_policy(2, 0.02), near_policy(3, 0.03)


@torch.no_grad()
def logprobs_of(model, sample: Sample) -> list[float]:
    """Log-prob of every token (0 for the first), by the model's own forward pass."""
    logp = (model(torch.tensor([sample.token_ids])).logits[0] / TEMPERATURE).log_softmax(-1)
    return [0.0] + [logp[t - 1, i].item() for t, i in enumerate(sample.token_ids) if t]


def with_engine_logprobs(sample: Sample) -> Sample:
    logprobs = tuple(p * m for p, m in zip(logprobs_of(ENGINE, sample), sample.mask, strict=True))
    return Sample(
        role=sample.role, token_ids=sample.token_ids, mask=sample.mask, logprobs=logprobs, advantages=sample.advantages
    )


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    folder = Path(save_tiny(tmp_path_factory.mktemp("trl") / "model"))
    arguments = GRPOConfig(
        output_dir=str(folder.parent / "out"),
        per_device_train_batch_size=6,
        num_generations=6,
        max_completion_length=MAX_COMPLETION,
        temperature=TEMPERATURE,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        vllm_importance_sampling_clip_max=CAP,
        beta=0.0,
    )
    return GRPOTrainer(
        model=tiny_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w3"] * 6}),
        processing_class=AutoTokenizer.from_pretrained(folder, pad_token="w0"),
    )


def trl_inputs(samples: list[Sample], correction: str) -> dict[str, torch.Tensor]:
    """Prompts padded left, completions right; everything after the prompt is completion, the partner's text has
    tool_mask 0.
    """
    prompts = [sample.mask.index(1) for sample in samples]
    width, rest = max(prompts), max(len(s.token_ids) - p for s, p in zip(samples, prompts, strict=True))
    columns = {"prompt_ids": [], "prompt_mask": [], "completion_ids": [], "completion_mask": [], "tool_mask": []}
    streams = {"old_per_token_logps": [], "ref_per_token_logps": [], "engine": []}
    for sample, start in zip(samples, prompts, strict=True):
        left, right = [0] * (width - start), [0] * (rest - (len(sample.token_ids) - start))
        columns["prompt_ids"].append(left + list(sample.token_ids[:start]))
        columns["prompt_mask"].append(left + [1] * start)
        columns["completion_ids"].append(list(sample.token_ids[start:]) + right)
        columns["completion_mask"].append([1] * (len(sample.token_ids) - start) + right)
        columns["tool_mask"].append(list(sample.mask[start:]) + right)
        for name, model in (("old_per_token_logps", OLD), ("ref_per_token_logps", REFERENCE), ("engine", ENGINE)):
            streams[name].append(logprobs_of(model, sample)[start:] + [0.0] * len(right))
    inputs = {name: torch.tensor(rows) for name, rows in (columns | streams).items()}
    difference = (
        (inputs["old_per_token_logps"] - inputs.pop("engine")) * inputs["completion_mask"] * inputs["tool_mask"]
    )
    if correction == "token_truncate":
        inputs["importance_sampling_ratio"] = difference.exp().clamp(max=CAP)
    elif correction == "sequence_mask":
        ratio = difference.sum(-1, keepdim=True).exp()
        inputs["importance_sampling_ratio"] = ratio.masked_fill(ratio > CAP, 0.0)
    inputs["advantages"] = torch.tensor([max(s.advantages, key=abs) for s in samples])
    inputs["num_items_in_batch"] = inputs["tool_mask"].sum()
    return inputs


def by_trl(trainer, samples: list[Sample], loss: LossConfig) -> tuple[float, torch.Tensor]:
    trainer.loss_type = {"gspo": "grpo"}.get(loss.name, loss.name)
    trainer.importance_sampling_level = "sequence" if loss.name == "gspo" else "token"
    trainer.epsilon_low, trainer.epsilon_high, trainer.beta = loss.epsilon, loss.epsilon_high, loss.beta
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = loss.importance_correction != "none"
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model
    model.zero_grad()
    model.train()
    value = trainer.compute_loss(model, trl_inputs(samples, loss.importance_correction))
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


class FromOld(step_module.Process):
    """Takes the old policy's log-probs from a model of its own, as TRL's batch does, and leaves the gradients where
    they are.
    """

    def optimizer_step(self, model, optimizer, work, loss_of, max_grad_norm):
        total = 0.0
        for batch, _ in work:
            with torch.no_grad():
                old = token_logprobs(OLD, batch, TEMPERATURE)
            loss = loss_of((batch, old))
            loss.backward()
            total += loss.item()
        return total, 0.0


def by_ours(samples: list[Sample], loss: LossConfig) -> tuple[float, torch.Tensor]:
    model = tiny_model()
    settings = step_module.StepSettings(
        loss=loss,
        temperature=TEMPERATURE,
        max_completion_tokens=MAX_COMPLETION,
        max_grad_norm=1.0,
        num_iterations=1,
        row_tokens=24,
        batch_tokens=48,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    report = step_module.policy_gradient_step(model, REFERENCE, optimizer, samples, settings, process=FromOld())
    return report["loss"], torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("case", CASES)
def test_the_same_batch_gives_trls_loss_and_gradient(trainer, case, extra):
    loss = LossConfig(**CASES[case], **EXTRAS[extra], importance_cap=CAP)
    samples = [with_engine_logprobs(sample) for sample in SAMPLES]
    their_loss, theirs = by_trl(trainer, samples, loss)
    our_loss, ours = by_ours(samples, loss)
    loss_difference, gradient_difference = (
        abs(our_loss - their_loss) / abs(their_loss),
        ((ours - theirs).norm() / theirs.norm()).item(),
    )
    print(
        f"{case}, {extra}: loss {their_loss:.6f}, relative difference {loss_difference:.1e}, "
        f"gradient {gradient_difference:.1e}"
    )
    assert loss_difference <= 1e-4
    assert gradient_difference <= 1e-4


def test_the_cases_above_really_clip_truncate_and_mask():
    (batch,) = pack([with_engine_logprobs(sample) for sample in SAMPLES], [1.0] * 6, 0, 1000)
    with torch.no_grad():
        logp, old = token_logprobs(tiny_model(), batch, TEMPERATURE), token_logprobs(OLD, batch, TEMPERATURE)
    for case in CASES.values():
        _, values = step_module.token_loss(
            logp, old, None, batch, LossConfig(**case, importance_correction="sequence_mask")
        )
        assert values["clip_ratio/high_mean"].sum() > 0, case
        masked = (values["sampling/importance_sampling_ratio"] == 0).float().mean()
        assert 0 < masked < 1
    assert ((old - batch.logprobs[batch.mask]).exp() > CAP).any()
