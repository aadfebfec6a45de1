"""The gradient: what it is, and what must not change it."""

import math

import pytest
import torch

from longshort.learning import logprobs
from longshort.learning.logprobs import token_logprobs, token_statistics
from longshort.learning.optim import build_optimizer
from longshort.learning.packing import pack
from longshort.learning.step import (
    Process,
    StepSettings,
    UpdateMetrics,
    micro_batches,
    policy_gradient_step,
    token_loss,
)
from longshort.recipe.sections import LossConfig
from longshort.types import Sample
from tests.support.learning_cases import VOCABULARY, sample_like, tiny_model

SAMPLES = [
    sample_like(seed, prompt=2 + seed % 3, sampled=3 + seed % 4, advantage=[1.0, -0.5, 2.0][seed % 3])
    for seed in range(6)
]
LENGTHS = [len(sample.token_ids) for sample in SAMPLES]


def settings(
    *, row_tokens: int = 0, batch_tokens: int = 10_000, temperature: float = 1.0, num_iterations: int = 1, **loss
) -> StepSettings:
    return StepSettings(
        loss=LossConfig(**loss),
        temperature=temperature,
        max_completion_tokens=20,
        max_grad_norm=1e9,
        num_iterations=num_iterations,
        row_tokens=row_tokens,
        batch_tokens=batch_tokens,
    )


class Recorder(torch.optim.SGD):
    """Plain SGD that keeps the gradients of its last step."""

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        return super().step()


def gradient(samples, chosen: StepSettings, reference=None) -> tuple[torch.Tensor, dict[str, float]]:
    model = tiny_model()
    recorder = Recorder(model.parameters(), lr=0.0)
    report = policy_gradient_step(model, reference, recorder, samples, chosen)
    return recorder.gradient, report


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_against_a_hand_loop(temperature):
    model = tiny_model()
    (batch,) = pack(SAMPLES[:3], [1.0] * 3, row_tokens=32, batch_tokens=1000)
    packed, sequence = token_logprobs(model, batch, temperature), batch.sequence[batch.mask]
    for number, sample in enumerate(SAMPLES[:3]):
        logits = model(torch.tensor([sample.token_ids])).logits[0] / temperature
        by_hand = []
        for t, masked in enumerate(sample.mask):
            if masked:
                by_hand.append(logits[t - 1, sample.token_ids[t]] - logits[t - 1].exp().sum().log())
        torch.testing.assert_close(packed[sequence == number], torch.stack(by_hand), rtol=0, atol=2e-6)


def test_chunks_of_logits_change_neither_values_nor_gradients(monkeypatch):
    (batch,) = pack(SAMPLES, [1.0] * 6, row_tokens=32, batch_tokens=1000)
    results = []
    for held in (2**26, 5 * VOCABULARY):  # everything at once; five tokens at a time
        monkeypatch.setattr(logprobs, "LOGITS_HELD", held)
        model = tiny_model()
        logp, entropy = token_statistics(model, batch, 0.7, with_entropy=True)
        logp.sum().backward()
        results.append((logp.detach(), entropy, model.lm_head.weight.grad, model.model.embed_tokens.weight.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_logits_are_float32():
    """Between 16 and 32 the numbers of bfloat16 are 0.125 apart, so logits of that type cost accuracy."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    (batch,) = pack(SAMPLES[:1], [1.0], row_tokens=0, batch_tokens=1000)
    logp, _ = Process("bfloat16").statistics(model, batch, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(batch.input_ids, position_ids=batch.position_ids).last_hidden_state
    expected = (hidden.float() @ model.lm_head.weight.T)[0].log_softmax(-1)
    before = batch.mask[0].nonzero()[:, 0] - 1
    by_hand = expected[before, batch.input_ids[0, before + 1]]
    torch.testing.assert_close(logp, by_hand, rtol=0, atol=1e-4)


def test_the_entropy_of_a_uniform_distribution():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    (batch,) = pack(SAMPLES[:1], [1.0], 0, 1000)
    logp, entropy = token_statistics(model, batch, with_entropy=True)
    assert entropy.tolist() == pytest.approx([math.log(VOCABULARY)] * sum(SAMPLES[0].mask), rel=1e-6)
    assert logp.tolist() == pytest.approx([-math.log(VOCABULARY)] * sum(SAMPLES[0].mask), rel=1e-6)


def test_softcapped_logits():
    model = tiny_model()
    model.config.final_logit_softcapping = 0.5
    (batch,) = pack(SAMPLES[:1], [1.0], 0, 1000)
    logp = (0.5 * torch.tanh(model(torch.tensor([SAMPLES[0].token_ids])).logits[0] / 0.5)).log_softmax(-1)
    by_hand = [logp[t - 1, i] for t, (i, m) in enumerate(zip(SAMPLES[0].token_ids, SAMPLES[0].mask, strict=True)) if m]
    torch.testing.assert_close(token_logprobs(model, batch), torch.stack(by_hand), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_the_gradient_does_not_depend_on_packing_or_micro_batches(name):
    longest = max(LENGTHS)
    cuts = {
        "micro-batch 6": {"row_tokens": longest, "batch_tokens": 6 * longest},
        "micro-batch 2": {"row_tokens": longest, "batch_tokens": 2 * longest},
        "micro-batch 1": {"row_tokens": longest, "batch_tokens": longest},
        "all in one row": {"row_tokens": sum(LENGTHS), "batch_tokens": sum(LENGTHS)},
        "default": {},
    }
    loss = {"name": name, "beta": 0.1, "epsilon_high": 5.0 if name == "cispo" else 0.28}
    results = {cut: gradient(SAMPLES, settings(**loss, **budget), tiny_model(seed=1)) for cut, budget in cuts.items()}
    whole, whole_report = results["micro-batch 6"]
    for cut, (other, report) in results.items():
        assert (other - whole).norm() <= 1e-6 * whole.norm(), cut
        assert report == pytest.approx(whole_report, rel=1e-5), cut


def test_micro_batch_sizes_are_what_the_test_above_says():
    longest = max(LENGTHS)
    rows = [
        len(micro_batches(SAMPLES, settings(row_tokens=longest, batch_tokens=n * longest), "cpu")) for n in (6, 2, 1)
    ]
    assert rows == [1, 3, 6]


def test_the_on_policy_gradient_is_reinforce():
    by_step, report = gradient(SAMPLES, settings(name="grpo", importance_correction="none"))
    model = tiny_model()
    for sample in SAMPLES:
        logp = model(torch.tensor([sample.token_ids])).logits[0].log_softmax(-1)
        terms = [
            a * logp[t - 1, i]
            for t, (i, m, a) in enumerate(zip(sample.token_ids, sample.mask, sample.advantages, strict=True))
            if m
        ]
        (-sum(terms) / len(terms) / len(SAMPLES)).backward()
    reinforce = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (by_step - reinforce).norm() <= 1e-6 * reinforce.norm()
    assert report["loss"] == pytest.approx(-sum(max(sample.advantages, key=abs) for sample in SAMPLES) / 6, rel=1e-6)


def test_the_first_ratio_is_one_and_a_later_one_is_not():
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=3e-2)
    first = policy_gradient_step(model, None, optimizer, SAMPLES, settings(name="grpo"))
    assert first["clip_ratio/low_mean"] == first["clip_ratio/high_mean"] == 0.0
    twice = policy_gradient_step(model, None, optimizer, SAMPLES, settings(name="grpo", num_iterations=2))
    assert twice["clip_ratio/low_mean"] + twice["clip_ratio/high_mean"] > 0.1


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_at_ratio_one_the_loss_is_exactly_minus_the_advantage(name):
    (batch,) = pack(SAMPLES, [1.0] * 6, 0, 1000)
    logp = token_logprobs(tiny_model(), batch).detach()
    loss, _ = token_loss(logp, logp, None, batch, LossConfig(name=name, importance_correction="none"))
    assert torch.equal(loss, -batch.advantages[batch.mask])


def test_metrics_read_off_by_hand():
    _, report = gradient(SAMPLES, settings(name="dapo", beta=0.5), tiny_model())
    (batch,) = pack(SAMPLES, [1.0] * 6, 0, 1000)
    logp = token_logprobs(tiny_model(), batch).detach()
    difference = logp - batch.logprobs[batch.mask]
    assert report["tokens"] == sum(sum(sample.mask) for sample in SAMPLES)
    assert report["kl"] == 0.0
    assert report["sampling/sampling_logp_difference/mean"] == pytest.approx(difference.abs().mean().item(), rel=1e-5)
    assert report["sampling/sampling_logp_difference/max"] == pytest.approx(difference.abs().max().item(), rel=1e-5)
    assert report["sampling/importance_sampling_ratio/mean"] == pytest.approx(
        difference.exp().clamp(max=2).mean().item(), rel=1e-5
    )
    assert report["sampling/importance_sampling_ratio/max"] == 2.0
    assert report["skipped"] == report["skipped_empty"] == 0.0


def test_samples_without_advantage_count_in_the_denominator_only():
    idle = [sample_like(9, sampled=30, advantage=0.0), sample_like(10, sampled=4, advantage=0.0)]
    (with_idle, report), (without, _) = gradient(SAMPLES + idle, settings()), gradient(SAMPLES, settings())
    tokens = sum(sum(sample.mask) for sample in SAMPLES)
    assert report["tokens"] == tokens + 36
    torch.testing.assert_close(with_idle * (tokens + 36), without * tokens, rtol=1e-4, atol=1e-5)


def by_hand(sample: Sample, temperature: float) -> list[float]:
    logp = (tiny_model()(torch.tensor([sample.token_ids])).logits[0] / temperature).log_softmax(-1)
    return [
        logp[t - 1, i].item() for t, (i, masked) in enumerate(zip(sample.token_ids, sample.mask, strict=True)) if masked
    ]


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_old_log_probs_are_those_before_the_update_by_sample_whatever_the_packing(temperature, num_iterations):
    """Lengths 8, 12, 9, 6; the second has advantage 0, so nothing is known of it."""
    samples = [
        sample_like(i, sampled=n, advantage=a) for i, (n, a) in enumerate([(2, 1.0), (6, 0.0), (3, -1.0), (0, 0.5)])
    ]
    for budget, batches in {(9, 9): 3, (0, 18): 2, (23, 23): 1}.items():
        chosen = settings(
            row_tokens=budget[0], batch_tokens=budget[1], temperature=temperature, num_iterations=num_iterations
        )
        assert len(micro_batches(samples, chosen, "cpu")) == batches
        model, tally = tiny_model(), UpdateMetrics()
        policy_gradient_step(model, None, build_optimizer(model, learning_rate=0.1), samples, chosen, tally)
        assert sorted(tally.old_logprobs) == [0, 2, 3]
        for number, old in tally.old_logprobs.items():
            assert old.tolist() == pytest.approx(by_hand(samples[number], temperature), abs=5e-6)


def test_batches_number_the_samples_of_the_whole_step_and_the_kl_keeps_those_without_advantage():
    samples = [sample_like(0, advantage=0.0), sample_like(1, sampled=1), sample_like(2, advantage=0.0), sample_like(3)]
    (batch,) = micro_batches(samples, settings(row_tokens=12), "cpu")
    assert [sorted(set(row)) for row in batch.sequence.tolist()] == [[3], [-1, 1]]
    (batch,) = micro_batches(samples, settings(beta=0.1), "cpu")
    assert set(batch.sequence[batch.mask].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "samples", [[], [sample_like(seed, advantage=0.0) for seed in range(4)]], ids=["none", "zero variance everywhere"]
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_nothing_to_learn_is_no_step(samples, beta):
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1.0, weight_decay=0.1)
    report = policy_gradient_step(model, tiny_model(), optimizer, samples, settings(beta=beta))
    tokens = float(sum(sum(sample.mask) for sample in samples))
    assert report == {"tokens": tokens, "skipped": 0.0, "skipped_empty": 1.0, "optimizer_steps": 0.0}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    assert not optimizer.state


def poisoned(value: float) -> list[Sample]:
    first = SAMPLES[0]
    bad = Sample(
        role="long",
        token_ids=first.token_ids,
        mask=first.mask,
        logprobs=first.logprobs,
        advantages=tuple(value * m for m in first.mask),
    )
    return [*SAMPLES[1:], bad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_leaves_parameters_and_optimizer_untouched(dtype, value):
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert policy_gradient_step(model, None, optimizer, SAMPLES, settings())["skipped"] == 0.0
        before = [p.detach().clone() for p in model.parameters()]
        moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
        report = policy_gradient_step(model, None, optimizer, poisoned(value), settings())
    assert report["skipped"] == 1.0 and not math.isfinite(report["loss"] * report["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(state["exp_avg"], b) for state, b in zip(optimizer.state.values(), moments, strict=True))


def test_a_second_pass_that_is_not_finite_reports_the_first_ones_step():
    """The parameters did change, so whoever publishes them must know."""
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.0)
    step = optimizer.step

    def spoil():
        step()
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))

    optimizer.step = spoil
    report = policy_gradient_step(model, None, optimizer, SAMPLES, settings(num_iterations=2))
    assert (report["skipped"], report["optimizer_steps"]) == (1.0, 1.0)


def test_a_non_finite_gradient_of_a_finite_loss_is_skipped_too():
    model = tiny_model()
    model.lm_head.weight.register_hook(lambda grad: grad * math.nan)
    before = [p.detach().clone() for p in model.parameters()]
    report = policy_gradient_step(model, None, build_optimizer(model, learning_rate=1e-2), SAMPLES, settings())
    assert report["skipped"] == 1.0 and math.isfinite(report["loss"]) and math.isnan(report["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_gradient_is_clipped_to_max_grad_norm():
    model = tiny_model()
    recorder = Recorder(model.parameters(), lr=0.0)
    chosen = settings()
    chosen = StepSettings(**{name: getattr(chosen, name) for name in chosen.__slots__} | {"max_grad_norm": 0.01})
    report = policy_gradient_step(model, None, recorder, SAMPLES, chosen)
    assert report["grad_norm"] > 0.1 and recorder.gradient.norm().item() == pytest.approx(0.01, rel=1e-3)
