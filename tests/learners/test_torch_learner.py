"""The learner as the trainer sees it: updates, weights, canary, bit-equal resumption, refusals."""

import copy
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longshort.backends.learners.learner_model import recompute_layers
from longshort.backends.learners.torch_learner import TorchLearner, step_settings
from longshort.recipe.schema import LongShortConfig
from longshort.types import LONG, SHORT, LongShortError, Sample
from tests.support.learning_cases import bits, same, sample_like, samples, save_tiny, tiny_model


def config(**settings) -> LongShortConfig:
    return LongShortConfig(**{"learning_rate": 1e-2, "warmup_ratio": 0.0} | settings)


def broken(value: float = math.nan) -> list[Sample]:
    good = samples(0)[0]
    return [
        Sample(
            role=LONG,
            token_ids=good.token_ids,
            mask=good.mask,
            logprobs=good.logprobs,
            advantages=tuple(value * m for m in good.mask),
        )
    ]


@pytest.fixture
def folder(tmp_path) -> str:
    return save_tiny(tmp_path / "model")


def test_an_update_raises_the_log_prob_of_a_praised_sample(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=4)
    praised = sample_like(3, prompt=4, sampled=5)
    before = sum(learner.score(praised.token_ids[:4], praised.token_ids[4:9], 1.0))
    report = learner.update([praised])
    assert report["learning_rate"] == 1e-2 and report["skipped"] == 0.0
    assert sum(learner.score(praised.token_ids[:4], praised.token_ids[4:9], 1.0)) > before


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch_tokens", [4, 8, 100])
def test_gaps_are_learner_minus_engine_per_sampled_token_in_the_samples_order(folder, temperature, batch_tokens):
    """The second sample has advantage 0; the third's two turns have one id of the partner's between them."""
    drawn = [
        Sample(role=LONG, token_ids=(3, 4, 5), mask=(0, 0, 1), logprobs=(0.0, 0.0, -1.0), advantages=(0.0, 0.0, 2.0)),
        Sample(role=LONG, token_ids=(3, 9, 9), mask=(0, 1, 1), logprobs=(0.0, -1.0, -1.0), advantages=(0.0, 0.0, 0.0)),
        Sample(
            role=LONG,
            token_ids=(7, 8, 9, 2),
            mask=(0, 1, 0, 1),
            logprobs=(0.0, -0.5, 0.0, -3.0),
            advantages=(0.0, 1.0, 0.0, 1.0),
        ),
    ]
    learner = TorchLearner.from_pretrained(
        LONG, folder, config(batch_tokens=batch_tokens, temperature=temperature), total_updates=1
    )
    assert learner.gaps() == []
    ((five,), (eight,), (two,)) = (
        learner.score(*case, temperature) for case in (((3, 4), (5,)), ((7,), (8,)), ((7, 8, 9), (2,)))
    )
    learner.update(drawn)
    first, idle, third = learner.gaps()
    assert first == pytest.approx([five + 1.0], abs=6e-5) and idle is None
    assert third == pytest.approx([eight + 0.5, two + 3.0], abs=6e-5)
    assert all(gap == round(gap, 4) for gap in first + third)


def test_an_engine_that_agrees_has_no_gap_and_only_the_last_update_is_kept(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=9)
    learner.update(samples(0))
    prompt, sampled = (2, 3), (4, 5, 6)
    logprobs = (0.0, 0.0, *learner.score(prompt, sampled, 1.0))
    agreeing = Sample(
        role=LONG,
        token_ids=prompt + sampled,
        mask=(0, 0, 1, 1, 1),
        logprobs=logprobs,
        advantages=(0.0, 0.0, 1.0, 1.0, 1.0),
    )
    learner.update([agreeing])
    assert learner.gaps() == [pytest.approx([0.0, 0.0, 0.0], abs=1e-4)]
    learner.update([sample_like(1, advantage=0.0)])
    assert learner.gaps() == [None]
    learner.update(samples(1))
    assert [len(gap) for gap in learner.gaps()] == [3, 4, 5, 6, 7]


def test_an_update_that_is_not_finite_has_no_gaps(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=9)
    learner.update([*samples(0), *broken()])
    assert learner.gaps() == [None] * 6
    with torch.no_grad():
        learner.model.lm_head.weight[0, 0] = math.nan
    assert learner.update(samples(0))["skipped"] == 1.0 and learner.gaps() == [None] * 5


def test_score_is_the_models_own_log_prob_at_the_given_temperature(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=1)
    logp = (tiny_model()(torch.tensor([[3, 4, 5, 6]])).logits[0] / 0.7).log_softmax(-1)
    assert learner.score((3, 4), (5, 6), 0.7) == pytest.approx([logp[1, 5].item(), logp[2, 6].item()], abs=2e-6)


def test_the_learning_rate_follows_the_updates_with_warm_up_and_decay(folder):
    learner = TorchLearner.from_pretrained(
        LONG, folder, config(warmup_ratio=0.5, lr_scheduler_type="linear"), total_updates=4
    )
    rates = [learner.update(batch).get("learning_rate") for batch in (samples(0), [], samples(1), samples(2))]
    assert rates == [pytest.approx(1e-2 / 3), None, pytest.approx(1e-2), pytest.approx(5e-3)]


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_a_copy_that_names_the_head(tmp_path, tied):
    learner = TorchLearner.from_pretrained(LONG, save_tiny(tmp_path / "model", tied=tied), config(), total_updates=2)
    weights = learner.weights()
    assert weights.keys() == tiny_model(tied=tied).state_dict().keys() and "lm_head.weight" in weights
    assert all(
        tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in weights.values()
    )
    kept = weights["model.norm.weight"].clone()
    learner.update(samples(0))
    assert torch.equal(weights["model.norm.weight"], kept) and not same(weights, learner.weights())
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]) == tied


def update_watched(learner: TorchLearner, old_logprobs: torch.Tensor | None = None) -> dict[str, list]:
    """Update once; keep the gradient before each optimizer step, the weights after it and the old log-probs."""
    seen = {"gradients": [], "weights": [], "old": []}
    computed, optimizer = learner.process.frozen_logprobs, learner.optimizer

    def frozen_logprobs(*arguments):
        seen["old"].append(computed(*arguments) if old_logprobs is None else old_logprobs)
        return seen["old"][-1]

    def before(*_):
        seen["gradients"].append({name: p.grad.clone() for name, p in learner.model.named_parameters()})

    learner.process.frozen_logprobs = frozen_logprobs
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: seen["weights"].append(copy.deepcopy(learner.model.state_dict())))
    learner.update(samples(0))
    return seen


def test_a_second_pass_in_bfloat16_has_the_gradient_of_the_weights_that_the_first_one_made(folder):
    """Autocast keeps its bfloat16 copies of the weights until its context ends; an optimizer step changes only those
    that it has copied from.
    """
    chosen = config(dtype="bfloat16", num_iterations=2, max_grad_norm=1e9, loss={"importance_correction": "none"})
    twice, fresh = (TorchLearner.from_pretrained(LONG, folder, chosen, total_updates=1) for _ in range(2))
    first = update_watched(twice)
    fresh.model.load_state_dict(first["weights"][0])
    again = update_watched(fresh, first["old"][0])
    for name, gradient in again["gradients"][0].items():
        difference = (first["gradients"][1][name] - gradient).norm() / gradient.norm()
        assert difference < 1e-3, name


def test_bfloat16_computes_in_bfloat16_and_keeps_small_updates(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(dtype="bfloat16", learning_rate=1e-6), total_updates=50)
    start = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    for step in range(3):
        learner.update(samples(step))
    moved = [(p != start[name]).float().mean().item() for name, p in learner.model.named_parameters() if "norm" in name]
    assert min(moved) > 0.9  # bfloat16 parameters near 1 cannot move by 1e-6
    assert {tensor.dtype for tensor in learner.weights().values()} == {torch.bfloat16}


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_resumption_is_bit_equal(tmp_path, folder, num_iterations):
    chosen = config(
        num_iterations=num_iterations, weight_decay=0.01, loss={"name": "gspo", "beta": 0.05}, warmup_ratio=0.3
    )
    learner = TorchLearner.from_pretrained(LONG, folder, chosen, total_updates=6)
    for step in range(3):
        learner.update(samples(step))
    learner.save(tmp_path / "saved/long", tmp_path / "saved/state")
    learner.update(samples(3))
    resumed = TorchLearner.from_pretrained(
        LONG, tmp_path / "saved/long", chosen, total_updates=6, reference_folder=folder
    )
    resumed.load(tmp_path / "saved/state")
    assert not same(bits(resumed), bits(learner))
    resumed.update(samples(3))
    assert same(bits(resumed), bits(learner))
    assert resumed.update(samples(4)) == learner.update(samples(4))
    assert same(bits(resumed), bits(learner))


def test_an_update_skips_what_is_not_finite_and_stops_when_it_goes_on(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(max_skipped_steps=2), total_updates=9)
    good = learner.model.lm_head.weight[0, 0].item()

    def set_weight(value: float) -> None:
        with torch.no_grad():
            learner.model.lm_head.weight[0, 0] = value

    set_weight(math.nan)
    before = bits(learner)
    report = learner.update(samples(0))
    assert (report["skipped"], report["optimizer_steps"]) == (1.0, 0.0) and math.isnan(report["loss"])
    assert torch.equal(before["model.norm.weight"], bits(learner)["model.norm.weight"]) and not learner.optimizer.state
    set_weight(good)
    assert learner.update(samples(0))["skipped"] == 0.0 and learner.consecutive_skips == 0
    set_weight(math.nan)
    learner.update(samples(0))
    with pytest.raises(LongShortError, match=r"long: 2 updates in a row.*max_skipped_steps is 2"):
        learner.update(samples(0))
    with pytest.raises(ValueError, match=r"'long' got samples of \['short'\]"):
        learner.update([sample_like(0, role=SHORT)])


def test_a_fresh_learner_saves_and_loads(tmp_path, folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=3)
    learner.save(tmp_path / "m", tmp_path / "s")
    resumed = TorchLearner.from_pretrained(LONG, tmp_path / "m", config(), total_updates=3)
    resumed.load(tmp_path / "s")
    assert resumed.update(samples(0)) == learner.update(samples(0)) and same(bits(resumed), bits(learner))


def test_the_saved_model_folder_loads_with_from_pretrained(tmp_path, folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=3)
    learner.update(samples(0))
    learner.save(tmp_path / "m", tmp_path / "s")
    assert same(dict(AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()), learner.weights())
    assert AutoTokenizer.from_pretrained(tmp_path / "m").get_vocab()["w5"] == 5
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["learner.json", "optimizer.safetensors"]


def test_non_finite_updates_in_a_row_stop_the_run_and_a_good_one_resets_the_count(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(max_skipped_steps=2), total_updates=9)
    start = bits(learner)
    assert learner.update(broken())["skipped"] == 1.0 and same(bits(learner), start)
    assert learner.update(samples(1))["skipped"] == 0.0
    assert learner.update(broken(math.inf))["skipped"] == 1.0
    assert learner.update([])["skipped_empty"] == 1.0  # neither good nor bad
    with pytest.raises(LongShortError, match=r"long: 2 updates in a row.*max_skipped_steps is 2"):
        learner.update(broken())


def test_zero_variance_everywhere_changes_nothing(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(weight_decay=0.1), total_updates=9)
    start = bits(learner)
    assert learner.update([sample_like(1, advantage=0.0)])["skipped_empty"] == 1.0
    assert same(bits(learner), start)


def test_the_reference_stays_where_it_was_and_costs_nothing_without_beta(folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(loss={"beta": 0.1}), total_updates=9)
    assert learner.update(samples(0))["kl"] == 0.0
    assert learner.update(samples(1))["kl"] > 0.0
    assert same(dict(learner.reference.state_dict()), dict(tiny_model().state_dict()))
    assert TorchLearner.from_pretrained(LONG, folder, config(), total_updates=9).reference is None


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(folder):
    runs, calls = [], []
    for chosen in (config(), config(learner={"gradient_checkpointing": True})):
        learner = TorchLearner.from_pretrained(LONG, folder, chosen, total_updates=1)
        learner.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        report = learner.update(samples(0))
        runs.append((report, learner.weights(), len(calls)))
        calls.clear()
    (plain_report, plain_weights, once), (report, weights, twice) = runs
    assert (once, twice) == (1, 2) and report == plain_report and same(weights, plain_weights)
    assert not learner.model.training
    with pytest.raises(LongShortError, match="gradient_checkpointing: model type 'qwen2' has no layers"):
        learner.model.model.layers = torch.nn.ModuleList()
        recompute_layers(learner.model)


def test_deterministic_mode_keeps_the_engines_log_probs_out_of_the_loss(folder):
    def after_update(logprob: float, deterministic: bool) -> dict[str, torch.Tensor]:
        learner = TorchLearner.from_pretrained(LONG, folder, config(deterministic=deterministic), total_updates=1)
        learner.update(
            [
                Sample(
                    role=LONG,
                    token_ids=(2, 3, 4),
                    mask=(0, 1, 1),
                    logprobs=(0.0, logprob, -1.0),
                    advantages=(0.0, 1.0, -1.0),
                )
            ]
        )
        return bits(learner)

    assert same(after_update(-0.5, True), after_update(-9.0, True))
    assert not same(after_update(-0.5, False), after_update(-9.0, False))


def test_dr_grpos_constant_is_the_most_a_role_may_sample():
    chosen = LongShortConfig(
        long={"turn_tokens": 100},
        short={"turn_tokens": 500},
        protocol={"max_exchanges": 3, "episode_tokens": 800},
        temperature=0.7,
    )
    assert step_settings(chosen, LONG).max_completion_tokens == 300
    assert step_settings(chosen, SHORT).max_completion_tokens == 800
    assert step_settings(chosen, LONG).temperature == 0.7


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "learner.json").unlink(), "cannot be read"),
        (lambda s: (s / "learner.json").write_text("{"), "cannot be read"),
        (
            lambda s: (s / "optimizer.safetensors").write_bytes((s / "optimizer.safetensors").read_bytes()[:-9]),
            "cannot be read",
        ),
        (lambda s: (s / "optimizer.safetensors").write_bytes(b"\x80\x04K\x01."), "cannot be read"),
        (lambda s: edit_json(s / "learner.json", role="short"), "of role 'short', not 'long'"),
    ],
    ids=["missing", "half-written", "truncated", "pickle", "other role"],
)
def test_a_damaged_or_foreign_state_is_refused(tmp_path, folder, damage, message):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=3)
    learner.update(samples(0))
    learner.save(tmp_path / "m", tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(LongShortError, match=message):
        learner.load(tmp_path / "s")


def test_the_state_of_another_model_is_refused(tmp_path, folder):
    learner = TorchLearner.from_pretrained(LONG, folder, config(), total_updates=3)
    learner.update(samples(0))
    learner.save(tmp_path / "m", tmp_path / "s")
    tied = TorchLearner.from_pretrained(LONG, save_tiny(tmp_path / "tied", tied=True), config(), total_updates=3)
    with pytest.raises(LongShortError, match=r"lm_head.weight is .* no such parameter"):
        tied.load(tmp_path / "s")


def test_refused_models_and_settings(tmp_path, folder):
    with pytest.raises(LongShortError, match="nowhere cannot be loaded"):
        TorchLearner.from_pretrained(LONG, tmp_path / "nowhere", config(), total_updates=1)
    edit_json(tmp_path / "model/config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(LongShortError, match="auto_map"):
        TorchLearner.from_pretrained(LONG, folder, config(), total_updates=1)
    with pytest.raises(LongShortError, match="cap on the ratio"):
        TorchLearner.from_pretrained(LONG, folder, config(loss={"name": "cispo"}), total_updates=1)
    with pytest.raises(ValueError, match=r"'long' got samples of \['short'\]"):
        TorchLearner.from_pretrained(LONG, save_tiny(tmp_path / "good"), config(), total_updates=1).update(
            [sample_like(0, role=SHORT)]
        )


def test_a_gpu_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LongShortError, match=r"learner_gpus is 1 but torch .* sees no GPU"):
        TorchLearner.from_pretrained(LONG, folder, config(learner_gpus=1), total_updates=1)


def test_a_model_that_scales_its_logits_in_an_unknown_way_is_refused(tmp_path, folder):
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {
        name: getattr(tiny_model().config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    granite = GraniteConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=1, logits_scaling=8.0, initializer_range=0.2
    )
    torch.manual_seed(0)
    GraniteForCausalLM(granite).save_pretrained(tmp_path / "model")
    with pytest.raises(LongShortError, match="'granite' computes its logits in an unknown way"):
        TorchLearner.from_pretrained(LONG, folder, config(), total_updates=1)
