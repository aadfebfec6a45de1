"""LoRA in RL: the learner moves the adapter and nothing else, publishes and saves what it says, and refuses what does
not fit.
"""

import asyncio
import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from longshort.backends.engines.adapter_engine import AdapterEngine
from longshort.backends.engines.transformers_engine import TransformersLoraCore
from longshort.backends.learners.learner_model import trained
from longshort.backends.learners.lora_learner import AdapterLearner, LoraLearner, base_state, learner_class
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.backends.weights.adapters import PREFIX, Adapter, check_adapter, matching, merged
from longshort.preflight.checks import check_adapters, check_names, checkpoint_bytes
from longshort.preflight.memory import plan
from longshort.recipe.roles import LoraSection
from longshort.recipe.schema import parse
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import read_facts
from longshort.types import LONG, ROLES, SHORT, LongShortError, Sampling
from tests.support import tiny_models
from tests.support.adapter_cases import check_one_engine_for_two
from tests.support.learning_cases import bits, same, sample_like, samples, save_tiny, tiny_model

Q = "model.layers.0.self_attn.q_proj"


def config(lora=None, **settings):
    return parse(
        {"learning_rate": 1e-2, "warmup_ratio": 0.0, "long": {"lora": {"r": 4, "alpha": 8} | (lora or {})}} | settings
    )


@pytest.fixture
def folder(tmp_path) -> str:
    return save_tiny(tmp_path / "model")


def moved(learner: LoraLearner, steps: int = 2) -> LoraLearner:
    for step in range(steps):
        learner.update(samples(step))
    return learner


def by_hand(targets, r=4, alpha=8):
    """peft's model over the tiny one, all of its own making."""
    return get_peft_model(
        tiny_model(), LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    ).eval()


def set_adapter(model, tensors):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[name.replace(".default.", ".")])


# the learner


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_one_step_is_the_step_of_a_hand_made_peft_model_and_loss(folder, beta):
    """Two samples of one token each, so that the whole loss can be written down: importance-free GRPO, and k3 to the
    plain model.
    """
    chosen = config(
        loss={"name": "grpo", "importance_correction": "none", "beta": beta},
        max_grad_norm=1e9,
        lr_scheduler_type="constant",
    )
    learner = moved(LoraLearner.from_pretrained(LONG, folder, chosen, total_updates=9))
    model, plain = by_hand("all-linear"), tiny_model()
    set_adapter(model, learner.adapter().tensors)
    drawn = [sample_like(7, prompt=4, sampled=3, advantage=1.0), sample_like(8, prompt=2, sampled=5, advantage=-0.5)]

    def logprobs(net, sample):
        ids = torch.tensor([sample.token_ids])
        logp = net(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return logp[torch.tensor(sample.mask[1:], dtype=torch.bool)]

    loss = 0.0
    for sample in drawn:
        logp = logprobs(model, sample)
        with torch.no_grad():
            gap = logprobs(plain, sample) - logp
        advantage = max(sample.advantages, key=abs)
        ratio = torch.exp(logp - logp.detach())
        distance = torch.exp(gap + logp.detach() - logp) - (gap + logp.detach() - logp) - 1
        loss = loss + (-advantage * ratio + beta * ratio * distance).mean() / len(drawn)
    loss.backward()
    seen = {}
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in trained(learner.model).items()})
    )
    report = learner.update(drawn)
    hand = {name.removeprefix(PREFIX): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert (
        report["loss"] == pytest.approx(loss.item(), abs=1e-6) and seen.keys() == hand.keys() and len(seen) == 2 * 7 * 2
    )
    for name, gradient in hand.items():
        assert torch.allclose(seen[name], gradient, atol=2e-6), name
    assert max(gradient.abs().max().item() for gradient in hand.values()) > 1e-3


def test_only_the_adapter_moves_and_only_it_has_optimizer_state(folder):
    learner = LoraLearner.from_pretrained(LONG, folder, config(), total_updates=9)
    base = {name: tensor.clone() for name, tensor in base_state(learner.model).items()}
    before = learner.adapter().tensors
    moved(learner)
    assert same(base, base_state(learner.model)) and same(base, dict(tiny_model().state_dict()))
    assert all(not torch.equal(before[name], tensor) for name, tensor in learner.adapter().tensors.items())
    assert {name.rpartition("lora_")[2][0] for name in learner.shapes} == {"A", "B"} and len(
        learner.optimizer.state
    ) == len(learner.shapes)
    assert not learner.model.training


def test_published_weights_are_base_plus_alpha_over_r_times_b_a(folder):
    base = {"m.q.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), "m.norm.weight": torch.tensor([5.0])}
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    adapter = Adapter(
        role=LONG, r=1, alpha=3.0, tensors={PREFIX + "m.q.lora_A.weight": a, PREFIX + "m.q.lora_B.weight": b}
    )
    found = merged(base, adapter)
    assert (
        found["m.q.weight"].tolist() == [[4.0, 6.0], [0.0, 1.0], [-1.0, -4.0]]
        and found["m.norm.weight"] is base["m.norm.weight"]
    )

    learner = moved(LoraLearner.from_pretrained(LONG, folder, config(), total_updates=9))
    weights, tensors = learner.weights(), learner.adapter().tensors
    change = 8 / 4 * tensors[f"{PREFIX}{Q}.lora_B.weight"] @ tensors[f"{PREFIX}{Q}.lora_A.weight"]
    assert (
        torch.allclose(weights[f"{Q}.weight"], tiny_model().state_dict()[f"{Q}.weight"] + change, atol=1e-7)
        and change.abs().max() > 1e-3
    )
    assert weights.keys() == tiny_model().state_dict().keys() and {tensor.dtype for tensor in weights.values()} == {
        torch.float32
    }
    plain = tiny_model()
    plain.load_state_dict(weights)
    logp = (plain(torch.tensor([[3, 4, 5, 6]])).logits[0] / 0.7).log_softmax(-1)
    assert learner.score((3, 4), (5, 6), 0.7) == pytest.approx([logp[1, 5].item(), logp[2, 6].item()], abs=2e-6)
    half = moved(LoraLearner.from_pretrained(LONG, folder, config(dtype="bfloat16"), total_updates=9)).weights()
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}


def test_the_kl_is_0_at_the_start_and_its_reference_is_the_same_model(folder):
    learner = LoraLearner.from_pretrained(LONG, folder, config(loss={"beta": 0.1}), total_updates=9)
    assert learner.update(samples(0))["kl"] == 0.0
    assert learner.update(samples(1))["kl"] > 0.0
    assert learner.reference.get_output_embeddings() is learner.model.lm_head
    assert all(parameter.requires_grad for parameter in trained(learner.model).values())


def test_the_learners_other_settings_work_with_an_adapter(folder):
    """Gradient checkpointing and micro-batches change nothing; a seed and a role fix the adapter's start."""
    plain = moved(LoraLearner.from_pretrained(LONG, folder, config(loss={"beta": 0.1}), total_updates=9))
    other = config(loss={"beta": 0.1}, learner={"gradient_checkpointing": True})
    assert same(bits(moved(LoraLearner.from_pretrained(LONG, folder, other, total_updates=9))), bits(plain))
    small = moved(
        LoraLearner.from_pretrained(LONG, folder, config(loss={"beta": 0.1}, batch_tokens=16), total_updates=9)
    )
    assert (
        max((a - b).abs().max().item() for a, b in zip(bits(small).values(), bits(plain).values(), strict=True)) < 1e-4
    )
    seeded = LoraLearner.from_pretrained(LONG, folder, config(seed=1), total_updates=9).adapter().tensors
    assert not same(seeded, LoraLearner.from_pretrained(LONG, folder, config(), total_updates=9).adapter().tensors)


def test_which_learner_trains_what():
    both = {role: {"lora": {}} for role in ROLES}
    assert learner_class(config(), LONG) is LoraLearner and learner_class(config(), SHORT) is TorchLearner
    assert learner_class(parse(both | {"share_engine": True}), SHORT) is AdapterLearner


# checkpoints


def test_resumption_is_bit_equal_and_both_folders_load_by_themselves(tmp_path, folder):
    chosen = config(weight_decay=0.01, loss={"beta": 0.05}, warmup_ratio=0.3, num_iterations=2)
    learner = moved(LoraLearner.from_pretrained(LONG, folder, chosen, total_updates=6), 3)
    learner.save(tmp_path / "saved/long", tmp_path / "saved/state")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved/long")
    assert same(dict(model.state_dict()), learner.weights())
    ids = torch.tensor([[3, 4, 5, 6]])
    adapted = PeftModel.from_pretrained(tiny_model(), tmp_path / "saved/state/adapter")
    assert torch.allclose(model(ids).logits, adapted(ids).logits, atol=1e-5)
    learner.update(samples(3))
    resumed = LoraLearner.from_pretrained(
        LONG, tmp_path / "saved/long", chosen, total_updates=6, reference_folder=folder
    )
    resumed.load(tmp_path / "saved/state")
    assert not same(bits(resumed), bits(learner))
    assert resumed.update(samples(3))["kl"] > 0
    assert same(resumed.adapter().tensors, learner.adapter().tensors)
    assert resumed.update(samples(4)) == learner.update(samples(4))
    assert same(bits(resumed), bits(learner))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": 2}, r"adapter .*s/adapter has r 4 and alpha 8.0, long.lora has r 2 and alpha 8.0; give both the same"),
        ({"alpha": 2}, r"adapter .*s/adapter has r 4 and alpha 8.0, long.lora has r 4 and alpha 2"),
        ({"target_modules": ["q_proj"]}, r"adapter of long refused: .*unknown tensors .*down_proj.lora_A.* \(24\)"),
    ],
)
def test_an_adapter_of_another_shape_is_not_continued(tmp_path, folder, changed, message):
    moved(LoraLearner.from_pretrained(LONG, folder, config(), total_updates=6)).save(tmp_path / "m", tmp_path / "s")
    other = LoraLearner.from_pretrained(LONG, tmp_path / "m", config(changed), total_updates=6, reference_folder=folder)
    with pytest.raises(LongShortError, match=message):
        other.load(tmp_path / "s")


def test_an_adapter_is_not_continued_over_another_base_or_without_its_file(tmp_path, folder):
    moved(LoraLearner.from_pretrained(LONG, folder, config(), total_updates=6)).save(tmp_path / "m", tmp_path / "s")
    other = LoraLearner.from_pretrained(
        LONG, tmp_path / "m", config(), total_updates=6, reference_folder=save_tiny(tmp_path / "other", seed=1)
    )
    with pytest.raises(
        LongShortError,
        match=r"long.model .*other is not the model that .*s/adapter was trained over: .* differs from .* by",
    ):
        other.load(tmp_path / "s")
    (tmp_path / "s/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(LongShortError, match=r"adapter .* cannot be read"):
        LoraLearner.from_pretrained(LONG, tmp_path / "m", config(), total_updates=6, reference_folder=folder).load(
            tmp_path / "s"
        )


def test_rl_starts_from_an_adapter_that_was_trained_before(tmp_path, folder):
    first = moved(LoraLearner.from_pretrained(LONG, folder, config(), total_updates=6))
    first.peft.save_pretrained(tmp_path / "sft")
    start = {"adapter": str(tmp_path / "sft")}
    learner = LoraLearner.from_pretrained(LONG, folder, config(start), total_updates=6)
    assert same(bits(learner), bits(first)) and not learner.optimizer.state
    moved(learner).save(tmp_path / "m", tmp_path / "s")
    gone = config({"adapter": str(tmp_path / "moved away")})
    resumed = LoraLearner.from_pretrained(LONG, tmp_path / "m", gone, total_updates=6, reference_folder=folder)
    resumed.load(tmp_path / "s")
    assert same(bits(resumed), bits(learner))
    with pytest.raises(LongShortError, match=r"adapter .*moved away cannot be read"):
        LoraLearner.from_pretrained(LONG, folder, gone, total_updates=6)


def test_an_adapter_to_start_from_is_checked_before_anything_starts(tmp_path, folder):
    LoraLearner.from_pretrained(LONG, folder, config(), total_updates=6).peft.save_pretrained(tmp_path / "sft")
    wide = tiny_models.make(tmp_path)[LONG]

    def check(model=folder, **changes):
        check_adapters(
            parse({"long": {"model": model, "lora": {"r": 4, "alpha": 8, "adapter": str(tmp_path / "sft")} | changes}})
        )

    check()
    for wrong, says in (
        ({"r": 8}, r"adapter .*sft has r 4 and alpha 8.0, long.lora has r 8 and alpha 8.0; give both the same"),
        ({"target_modules": ["q_proj"]}, r"adapter of long refused: .*unknown tensors .*\(24\)"),
        ({"model": wide}, r"adapter of long refused: missing tensors .*layers.2"),
        ({"adapter": "nowhere"}, r"adapter nowhere cannot be read"),
    ):
        with pytest.raises(LongShortError, match=says):
            check(**wrong)
    facts = json.loads((tmp_path / "sft/adapter_config.json").read_text())
    (tmp_path / "sft/adapter_config.json").write_text(json.dumps(facts | {"use_dora": True}))
    with pytest.raises(LongShortError, match=r"is no plain LoRA \(use_dora is True\); merge it"):
        check()


# refusals


LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


def test_target_modules_are_ends_of_names_or_an_expression():
    assert matching(LAYERS, "all-linear", "k") == LAYERS
    assert matching(LAYERS, ["up_proj", "0.self_attn.q_proj"], "k") == LAYERS
    assert matching(LAYERS, r".*\.1\..*", "k") == LAYERS[2:]
    for targets, named in ((["q_prj", "up_proj"], "q_prj"), (["proj"], "proj"), ([], r"\[\]"), ("q_proj", "'q_proj'")):
        with pytest.raises(
            LongShortError, match=f"k: {named} matches no layer of the model; it has q_proj, up_proj, or use all-linear"
        ):
            matching(LAYERS, targets, "k")


def test_an_expression_is_kept_from_the_head_and_the_embedding(folder):
    learner = LoraLearner.from_pretrained(
        LONG, folder, config({"target_modules": ".*(q_proj|embed_tokens|lm_head)"}), total_updates=1
    )
    assert learner.adapter().modules == [Q, Q.replace(".0.", ".1.")]


def test_target_modules_that_match_nothing_are_told_before_anything_starts(folder):
    wrong = {"model": folder, "lora": {"target_modules": ["q_proj", "lm_head"]}}
    says = r"long.lora.target_modules: lm_head matches no layer of the model; it has down_proj, gate_proj, k_proj, "
    with pytest.raises(LongShortError, match=says):
        check_adapters(parse({"long": wrong}))
    with pytest.raises(LongShortError, match=says):
        LoraLearner.from_pretrained(LONG, folder, parse({"long": wrong}), total_updates=1)
    check_adapters(parse({"long": wrong | {"lora": {}}}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"long": {"lora": {"r": 0}}}, "long.lora.r: Input should be greater than 0 (got 0)"),
        ({"long": {"lora": {"dropout": 0.1}}}, "long.lora.dropout: RL has no dropout: the learner's log-probs must be"),
        (
            {"long": {"lora": {}}, "learner": {"backend": "deepspeed"}},
            "long.lora is set but learner.backend is deepspeed",
        ),
        (
            {"loss": {"beta": 0.1}, "short": {"lora": {"adapter": "x"}}},
            "loss.beta is 0.1 and short.lora.adapter is set: the KL's reference is",
        ),
        ({"share_engine": True}, "share_engine: long.lora is not set"),
        (
            {"share_engine": True, "long": {"lora": {}}},
            "share_engine: short.lora is not set, and a model trained whole needs an engine",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(LongShortError, match=re.escape(says)):
        parse(settings)


@pytest.mark.parametrize(
    ("long", "short", "top", "says"),
    [
        (
            {"model": "a"},
            {"model": "b"},
            {},
            "share_engine needs one base model: long.model is 'a', short.model is 'b'",
        ),
        (
            {"engine": {"max_model_len": 64}},
            {},
            {},
            "long.engine.max_model_len is 64 and short.engine.max_model_len 2048",
        ),
        ({}, {}, {"miniature": {}}, "share_engine needs one base model, but miniature makes two"),
        ({}, {}, {"coldstart": {"traces": "x.jsonl"}}, "share_engine needs one base model, but coldstart makes two"),
    ],
)
def test_one_engine_needs_one_base_and_one_setting(long, short, top, says):
    with pytest.raises(LongShortError, match=re.escape(says)):
        parse({"share_engine": True, "long": {"lora": {}} | long, "short": {"lora": {}} | short} | top)
    if not top:
        assert parse({"long": {"lora": {}} | long, "short": {"lora": {}} | short})


def test_one_engine_for_both_needs_two_roles():
    config = parse({"share_engine": True, "long": {"lora": {}}, "short": {"lora": {}}, "protocol": {"name": "solo"}})
    with pytest.raises(LongShortError, match="share_engine: protocol solo has one role"):
        check_names(config)


def tensors_of(module, a, b):
    return {f"{PREFIX}{module}.lora_A.weight": torch.zeros(a), f"{PREFIX}{module}.lora_B.weight": torch.zeros(b)}


@pytest.mark.parametrize(
    ("tensors", "held", "says"),
    [
        (
            tensors_of("q", (2, 4), (6, 3)),
            (),
            r"q.lora_B.weight has shape \(6, 3\), but r 2 over the base's \(6, 4\) makes \(6, 2\)",
        ),
        (tensors_of("x", (2, 4), (6, 2)), (), r"missing tensors \[\] \(0\), unknown tensors \['x'\] \(1\)"),
        ({f"{PREFIX}q.lora_A.weight": torch.zeros(2, 4)}, (), r"missing tensors .*q.lora_B.weight'\] \(1\)"),
        ({}, (), r"missing tensors \[\]"),
        (
            tensors_of("q", (2, 4), (6, 2)),
            tensors_of("v", (2, 4), (6, 2)),
            r"missing tensors .*v.lora_A.*\(2\), unknown tensors .*q.lora_A.*\(2\)",
        ),
        (
            {name: t + float("nan") for name, t in tensors_of("q", (2, 4), (6, 2)).items()},
            (),
            "q.lora_A.weight holds NaN",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_an_engine_is_touched(tensors, held, says):
    with pytest.raises(LongShortError, match=f"adapter of short refused: .*{says}"):
        check_adapter(
            Adapter(role=SHORT, r=2, alpha=4, tensors=tensors), {"q.weight": (6, 4), "v.weight": (6, 4)}, held
        )


# memory


def test_the_plan_counts_a_frozen_base_and_one_engine(tmp_path):
    model = tiny_models.make(tmp_path)[LONG]
    role = tiny_models.role(model, backend="transformers") | {"lora": {"r": 4}}
    settings = {"long": role, "short": role, "dataset": "miniature:train", "output_dir": str(tmp_path / "run")}
    shared, apart = plan(parse(settings | {"share_engine": True})), plan(parse(settings))
    assert [process.name for process in shared.processes[1:4]] == [
        "long+short engine (transformers)",
        "long learner (torch)",
        "short learner (torch)",
    ]
    assert len(apart.processes) == len(shared.processes) + 1
    facts, learner = (
        read_facts(model, "long.model"),
        LoraLearner.from_pretrained(LONG, model, parse(settings), total_updates=1),
    )
    numbers = sum(parameter.numel() for parameter in trained(learner.model).values())
    for process in (shared.processes[2], apart.processes[2]):
        assert process.parts["frozen base"] == 4 * facts.parameters / 2**30
        assert process.parts["adapter + gradient + AdamW"] == 16 * numbers / 2**30
    assert shared.processes[1].parts["adapters"] == 2 * numbers * 4 / 2**30
    assert checkpoint_bytes(parse(settings), LONG, facts) == 4 * facts.parameters + 12 * numbers
    assert checkpoint_bytes(parse({}), LONG, facts) == 12 * facts.parameters


# one engine for both, by transformers


ENGINE = EngineConfig(**tiny_models.ENGINE)
PROMPTS = [tuple(range(40, 60)), tuple(range(41, 75)), (270, 65, 66)]


def test_one_transformers_engine_serves_both_roles(tmp_path):
    path = tiny_models.make(tmp_path)[LONG]
    check_one_engine_for_two(TransformersLoraCore(path, ENGINE), path)


def test_a_turn_before_its_roles_adapter_is_an_error_of_ours(tmp_path):
    core = TransformersLoraCore(tiny_models.make(tmp_path)[SHORT], ENGINE)
    core.add("0", PROMPTS[0], Sampling(max_tokens=4, stop=(), adapter=LONG))
    with pytest.raises(RuntimeError, match=r"a turn for the adapter 'long', but the engine holds \[\]"):
        core.step()


def test_a_roles_view_asks_with_its_adapter_and_counts_its_own_turns():
    class Engine:
        tokenizer, context, backend, restarts = None, 9, "vllm", 2
        start = restart = stats = close = None
        loaded = []

        async def generate(self, prompt_ids, sampling):
            await asyncio.sleep(0)
            return sampling.adapter, sampling.seed, views[LONG].waiting, views[SHORT].waiting

        async def receive(self, *arguments):
            self.loaded.append(arguments)

    views = {role: AdapterEngine(role, Engine()) for role in ROLES}

    async def go():
        await views[SHORT].receive("delivery")
        turns = [views[role].generate((1,), Sampling(max_tokens=1, stop=(), seed=7)) for role in (LONG, SHORT, SHORT)]
        return await asyncio.gather(*turns)

    assert asyncio.run(go()) == [("long", 7, 1, 2), ("short", 7, 0, 2), ("short", 7, 0, 1)]
    assert Engine.loaded == [("delivery", SHORT)] and views[LONG].restarts == 2 and views[SHORT].waiting == 0


def test_the_trainer_admits_what_one_engine_decodes():
    both = {role: {"lora": {}, "engine": {"max_num_seqs": 8}} for role in ROLES}
    assert [len(parse(both | {"share_engine": share}).engines(ROLES)) for share in (True, False)] == [1, 2]


def test_lora_section_reads_as_before():
    assert json.loads(LoraSection().model_dump_json()) == {
        "r": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
    }
