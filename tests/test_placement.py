"""Where engines and learners go on N GPUs: memory and time against hand-computed numbers, the choice, the refusals, the recipes."""

import contextlib
import json
from pathlib import Path

import pytest

from longshort import cli
from longshort.planning import step_time
from longshort.planning.placement import Setup, best, chosen, engine_parts, host_gib, learner_parts
from longshort.planning.placement_page import report
from longshort.planning.step_time import Rates, Work, engine_rate, learner_rate, read_rates
from longshort.preflight.memory_formulas import GIB, activations_gib, torch_state, zero_state
from longshort.recipe.schema import dump, parse
from longshort.runs import model_files
from longshort.runs.model_files import PUBLISHED, ModelFacts
from longshort.types import LongShortError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SIZES = dict(
    parameters=2**30, layers=8, hidden=1024, intermediate=4096, kv_heads=4, kv_width=256, vocabulary=2**16, context=4096
)
MODEL = ModelFacts(name="one-gibi", **SIZES)
"""A number per parameter is a GiB per byte."""
RATES = Rates.model_validate(
    {
        "long": {"engine": 1000, "learner": 2000, "tokens": 100, "sync_s": 3},
        "short": {"engine": 1000, "learner": 2000, "tokens": 50, "sync_s": 3},
    }
)


def setup(gpus=1, facts=None, recipe=None, **options):
    """A question about two models of 2**30 parameters that learn in float32, 8 episodes a step."""
    engine = {"dtype": "bfloat16", "max_model_len": 2048, "kv_cache_gib": 0.5}
    roles = {role: {"model": "one-gibi", "engine": engine} for role in ("long", "short")}
    config = parse({"num_problems": 2, "num_generations": 4, "batch_tokens": 8192, **roles} | (recipe or {}))
    return Setup(config=config, facts=facts or {"long": MODEL, "short": MODEL}, gpus=gpus, **options)


def refusal(question):
    with pytest.raises(LongShortError) as caught:
        report(question)
    return str(caught.value)


def plan(capsys, *arguments):
    """Run `longshort plan` in this process; returns its status, output and errors."""
    status = cli.main(["plan", *map(str, arguments)])
    return status, *capsys.readouterr()


ZERO_7B = [  # stage, ranks, bytes per parameter by hand: weights + gradients + optimizer
    (0, 1, 2 + 2 + 12),
    (0, 8, 2 + 2 + 12),
    (1, 1, 2 + 2 + 12),
    (1, 4, 2 + 2 + 3),
    (1, 8, 2 + 2 + 1.5),
    (2, 4, 2 + 0.5 + 3),
    (2, 8, 2 + 0.25 + 1.5),
    (3, 1, 2 + 2 + 12),
    (3, 4, 0.5 + 0.5 + 3),
    (3, 8, 0.25 + 0.25 + 1.5),
]


@pytest.mark.parametrize(("stage", "ranks", "per_parameter"), ZERO_7B)
def test_zero_shards_the_training_state_of_qwen_7b(stage, ranks, per_parameter):
    state = zero_state(PUBLISHED["Qwen/Qwen2.5-7B-Instruct"].parameters, stage, ranks, 2)
    held = sum(state[part] for part in ("weights", "gradients", "optimizer")) / GIB
    assert held == pytest.approx(7.0926 * per_parameter, rel=1e-4)  # 7,615,616,512 / 2**30
    assert state["buffers"] == 2 * 2 * 500_000_000


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_figure_of_the_zero_paper(stage, gigabytes):
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 GPUs."""
    state = zero_state(7_500_000_000, stage, 64, 2)
    assert sum(state.values()) - state["buffers"] == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_float32_state_and_offload():
    assert sum(torch_state(100, 4).values()) == 1600
    assert sum(torch_state(100, 2).values()) == 1800  # and autocast's copy
    assert zero_state(100, 3, 2, 4) == {"weights": 200, "gradients": 200, "optimizer": 400, "buffers": 800}
    assert zero_state(100, 2, 2, 2, offload=True) == {"weights": 200, "gradients": 100, "optimizer": 0, "buffers": 400}


def test_memory_of_a_learner_by_hand():
    parts = learner_parts(setup(), "long", 1)
    # activations: 8192 tokens * 8 layers * (10 * 1024 + 4 * 4096) numbers * 4 bytes; logits: 3 * 4 bytes * 2**26
    assert parts == {"process": 1, "weights": 4, "gradients": 4, "optimizer": 8, "activations": 6.5, "logits": 0.75}
    # one input per layer, one block in full: 8192 * (8 * 1024 + 26,624) * 4 bytes
    assert learner_parts(setup(checkpointing=True), "long", 1)["activations"] == 1.0625
    sharded = learner_parts(setup(4, stages={"long": 3, "short": 0}), "long", 4)
    assert (sharded["weights"], sharded["gradients"], sharded["optimizer"]) == (1, 1, 2)
    assert learner_parts(setup(4, stages={"long": 3, "short": 0}), "short", 4)["weights"] == 4
    with_reference = setup(recipe={"loss": {"beta": 0.1}})
    assert learner_parts(with_reference, "long", 1)["reference"] == 4


def test_a_sample_longer_than_batch_tokens_decides_the_activations():
    assert (
        learner_parts(setup(recipe={"batch_tokens": 1024}), "long", 1)["activations"] == 6.5 / 4
    )  # max_model_len: 2048 tokens


def test_memory_of_an_engine_by_hand():
    assert engine_parts(setup(), "long", 1) == {"process": 2, "weights": 2, "kv cache": 0.5}
    assert engine_parts(setup(4), "long", 4) == {"process": 2, "weights": 0.5, "kv cache": 0.5}
    # what is left: at least one dialogue, 2048 tokens * 2 * 8 * 256 numbers * 2 bytes
    assert engine_parts(setup(fill_kv=True), "long", 1)["kv cache"] == 2048 * 4096 * 2 / GIB


def test_the_host_holds_published_weights_what_is_offloaded_and_what_sleeps():
    placement = best(setup(gib=200))["time-shared"]
    assert host_gib(setup(gib=200), placement) == 2 * 2 * 4  # two copies of two models in float32
    offloading = setup(gib=200, stages={"long": 2, "short": 2}, offload=True)
    assert host_gib(offloading, placement) == 16 + 2 * 8
    rounds = setup(gib=200, recipe={"schedule": ["long", "short"]})
    assert host_gib(rounds, placement) == 16 + 2 * 2  # sleep level 1 keeps the bfloat16 weights


def test_on_one_gpu_engines_sleep_only_where_memory_asks_for_it():
    found = best(setup(gib=80))
    assert found["split"] is None
    assert found["colocated"].needed == 2 * 24.25 + 2 * 4.5
    assert chosen(found).kind == "colocated"
    tight = best(setup(gib=60))
    shared = chosen(tight)
    assert shared.kind == "time-shared"
    (phases,) = shared.phases
    totals = {phase: sum(sum(parts.values()) for parts in held.values()) for phase, held in phases.items()}
    assert totals == {"rollout": 2 * 4.5 + 2 * 17, "update": 2 * 2 + 2 * 24.25}
    text = report(setup(gib=60))
    assert "colocated" in text and "needs 57.5 GiB where 57.0 of 60 are usable" in text
    assert "split              -      -   these GPUs allow no such layout" in text
    assert "learner_gpus=0.25 time_share=true" in text and "does not carry out" not in text


def test_a_cache_that_takes_what_is_left_fills_the_gpu():
    (phases,) = best(setup(gib=80, fill_kv=True))["colocated"].phases
    caches = [parts["kv cache"] for name, parts in phases["always"].items() if "engine" in name]
    assert caches == pytest.approx([(76 - 2 * 24.25 - 2 * 4) / 2] * 2)


def test_seconds_of_a_step_by_hand():
    whole = dict.fromkeys(
        ("long", "short"), ModelFacts(name="one-head", **SIZES | {"kv_heads": 1})
    )  # an engine takes one GPU
    split = best(setup(4, facts=whole, rates=RATES, kinds=("split",)))["split"]
    # 8 episodes: 800 and 400 tokens to sample at 1000/s side by side; 1200 to learn from at 2000/s, then 3 s to publish
    assert split.seconds == pytest.approx({"rollout": 0.8, "update": 0.6 + 3})
    assert (split.step_s, split.overlapped_s) == pytest.approx((4.4, 3.6))
    found = best(setup(1, rates=RATES))
    assert found["colocated"].seconds == pytest.approx({"rollout": 1.2, "update": 7.2})  # one after the other
    assert found["time-shared"].seconds == pytest.approx({"rollout": 1.2, "update": 7.2, "sleep": 1.0})
    zero = {"long": 2, "short": 2}
    four = best(setup(4, rates=RATES, stages=zero, ranks=2, kinds=("colocated",)))["colocated"]
    assert [group.size for group in four.groups] == [2, 2]
    assert four.seconds == pytest.approx({"rollout": 0.4, "update": 0.3 + 3})


def test_in_rounds_only_one_learner_works():
    rates = RATES.model_copy(update={"short": RATES.short.model_copy(update={"sync_s": 0})})
    rounds = best(setup(1, rates=rates, recipe={"schedule": ["long", "long", "short"]}))["colocated"]
    assert rounds.seconds["update"] == pytest.approx((3.6 + 3.6 + 0.6) / 3)


def test_assumed_rates_by_hand():
    sizes = SIZES | {"parameters": 10**9, "layers": 5, "kv_width": 1000}  # 10,000 numbers of KV cache per token
    engine = setup().config.long.engine
    work = Work(
        model=ModelFacts(name="x", **sizes), engine=engine, dtype="bfloat16", episodes=100, own=700, text=1000, passes=6
    )
    # 100 at once read (1e9 + 100 * 500 * 10,000) * 2 bytes at 0.6 * 3.35e12 per second, and 5 ms beside
    assert engine_rate(work, 1, 1000) == pytest.approx(100 / (0.005 + 3e9 / 2.01e12))
    assert engine_rate(work, 2, 1000) == pytest.approx(100 / (0.005 + 1.5e9 / 2.01e12))
    # a cache for 10 dialogues of 1000 tokens
    assert engine_rate(work, 1, 10.5 * 1000 * 20_000 / GIB) == pytest.approx(10 / (0.005 + 2.1e9 / 2.01e12))
    assert learner_rate(work, 2) == pytest.approx(2 * 0.4 * 989e12 / 6e9)


def test_each_extra_pass_costs_two_more():
    def passes(recipe, **options):
        return step_time.works(setup(recipe=recipe).config, {"long": MODEL}, RATES, **options)["long"].passes

    assert passes({}, checkpointing=False) == 6
    assert passes({}, checkpointing=True) == 8
    assert passes({"loss": {"beta": 0.1}, "num_iterations": 2}, checkpointing=False) == 2 * 8 + 2


def test_groups_stay_in_their_node_and_weights_cross_the_network():
    zero = {"long": 3, "short": 3}
    found = best(setup(2, nodes=2, stages=zero, ranks=2, kinds=("split", "colocated")))
    assert [group.size for group in found["split"].groups] == [1, 1, 2]
    assert found["split"].where == ((1, 0), (1, 1), (0, 0))
    assert found["colocated"].where == ((0, 0), (1, 0))
    assert "node 1 gpu 0-1" in report(setup(2, nodes=2, stages=zero, ranks=2, kinds=("colocated",)))
    work = step_time.works(setup().config, {"long": MODEL}, Rates(), checkpointing=False)["long"]
    near, far = (step_time.sync_s(work, Rates().long, same_node=same) for same in (True, False))
    assert (near, far) == (2**32 / 2e9, 2**32 / 1e9)
    wide = best(setup(2, nodes=3, stages=zero, ranks=4, kinds=("split",)))["split"]
    assert wide.where[-1] == (0, 0) and wide.groups[-1].size == 4  # two whole nodes for both learners


def test_an_engine_is_cut_where_its_heads_can_be():
    assert all(group.size in (1, 2, 4) for group in best(setup(8, stages={"long": 2, "short": 2}))["colocated"].groups)
    two_heads = ModelFacts(name="two", **SIZES | {"kv_heads": 2})
    found = best(setup(8, facts={"long": two_heads, "short": two_heads}, stages={"long": 2, "short": 2}))
    assert all(group.size in (1, 2) for group in found["colocated"].groups)


def test_the_recipes_learners_are_planned_unless_an_option_says_otherwise(capsys):
    recipe, few = RECIPES / "paper_rl_qwen7b.yaml", "learner={backend: deepspeed, ranks: 4, zero_stage: 2}"
    learner = few.replace("2}", "3, gradient_checkpointing: true}")
    by_options = plan(capsys, recipe, "--gpus", 8, "--zero", 3, "--ranks", 4, "--gradient-checkpointing")
    assert plan(capsys, recipe, learner, "--gpus", 8) == by_options
    assert "ZeRO-3 learner in bfloat16, gradient checkpointing" in by_options[1]
    free = plan(capsys, recipe, "--gpus", 8, "--zero", 3, "--gradient-checkpointing")
    assert (
        plan(capsys, recipe, few, "--gpus", 8, "--zero", 3, "--ranks", 0, "--gradient-checkpointing")
        == free
        != by_options
    )
    without = plan(capsys, recipe, few, "--gpus", 8)
    assert plan(capsys, recipe, learner, "--gpus", 8, "--zero", 2, "--no-gradient-checkpointing") == without


def test_what_fits_nowhere_is_refused_with_its_number_and_the_smallest_change():
    message = refusal(setup(gib=40))
    assert (
        "nothing fits on 1 GPU of 40 GiB: time-shared, which lacks least, needs 52.5 GiB where 38.0 of 40 are usable, on gpu 0"
        in message
    )
    assert "long learner optimizer 8.0, short learner optimizer 8.0, long learner activations 6.5" in message
    assert "; colocated needs 57.5 GiB where 38.0 of 40 are usable;" in message
    assert message.endswith(
        "the smallest change that makes it fit: --zero 3 --offload --gradient-checkpointing (time-shared, 34.5 GiB)"
    )


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (dict(gib=59, kinds=("colocated",)), "batch_tokens=2048 (colocated, 47.8 GiB)"),
        (
            dict(gib=56, kinds=("colocated",), recipe={"batch_tokens": 2048, "loss": {"beta": 1.0}}),
            "fit: --gradient-checkpointing (col",
        ),
        (
            dict(gib=20, gpus=6, kinds=("split",), recipe={"batch_tokens": 2048, "dtype": "bfloat16"}),
            "fit: --zero 1 (split",
        ),
        (dict(gib=2), "nothing tried makes it fit: take smaller models"),
    ],
)
def test_the_remedy_is_the_smallest_that_helps(options, change):
    assert change in refusal(setup(**options))


def test_a_cache_that_is_too_large_is_named_with_a_size_that_fits():
    roles = {
        role: {"model": "x", "engine": {"dtype": "bfloat16", "max_model_len": 2048, "kv_cache_gib": 20}}
        for role in ("long", "short")
    }
    message = refusal(setup(gib=80, recipe=roles, kinds=("colocated",)))
    assert "needs 96.5 GiB" in message
    assert message.endswith("long.engine.kv_cache_gib=9.7 short.engine.kv_cache_gib=9.7 (colocated, 76.0 GiB)")
    roles["long"]["engine"] |= {"kv_cache_gib": 39}
    roles["short"] = {"model": "x", "engine": roles["short"]["engine"] | {"kv_cache_gib": 0.5}}
    assert "makes it fit: long.engine.kv_cache_gib=9.7 (colocated" in refusal(
        setup(gib=80, recipe=roles, kinds=("colocated",))
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(gpus=0), "--gpus is 0; it must be more than 0"),
        (
            dict(gpus=1, recipe={"short": {"lora": {}}}),
            "--gpus lays out learners that train whole models, but short.lora is set",
        ),
        (dict(gpus=1, nodes=-1), "--nodes is -1; it must be more than 0"),
        (dict(gpus=1, gib=float("nan")), "--gpu-memory is nan; it must be more than 0"),
        (dict(gpus=2, ranks=3, stages={"long": 1, "short": 1}), "--ranks (or learner.ranks) is 3 but there are 2 GPUs"),
        (dict(gpus=2, ranks=2), "--ranks above 1 and --offload are DeepSpeed's: say which --zero stage"),
        (dict(gpus=1, offload=True), "say which --zero stage"),
        (
            dict(gpus=1, ranks=1, kinds=("split",)),
            "no layout of engines and learners is possible on 1 GPU; give more --gpus",
        ),
    ],
)
def test_questions_without_sense_are_refused(options, says):
    assert says in refusal(setup(**options))


def test_the_rest_of_the_command_line_is_checked_too(capsys):
    recipe = RECIPES / "one_gpu.yaml"
    assert "--zero is '4'; give a stage from 0 to 3" in plan(capsys, recipe, "--gpus", 1, "--zero", 4)[2]
    assert "--zero is '1,2,3'" in plan(capsys, recipe, "--gpus", 1, "--zero", "1,2,3")[2]
    assert (
        "--gradient-checkpointing plans GPUs that need not be here; say how many with --gpus N"
        in plan(capsys, recipe, "--gradient-checkpointing")[2]
    )
    assert "--gpus is 0" in plan(capsys, recipe, "--gpus", 0)[2]
    assert (
        "long.engine.max_model_len is 65,536 but"
        in plan(capsys, recipe, "--gpus", 1, "long.engine.max_model_len=65536")[2]
    )


@pytest.mark.parametrize(
    ("recipe", "options", "kind"),
    [
        ("paper_rl_qwen7b.yaml", "--gpus 8 --zero 3 --gradient-checkpointing", "colocated"),
        ("paper_rl_llama8b.yaml", "--gpus 8 --zero 3 --gradient-checkpointing", "time-shared"),
        ("one_gpu.yaml", "--gpus 1", "colocated"),
        ("two_nodes.yaml", "--gpus 8 --nodes 2 --zero 3 --gradient-checkpointing", "colocated"),
    ],
)
def test_recipes_for_gpus_are_planned_as_their_header_says_without_model_or_network(
    recipe, options, kind, capsys, monkeypatch
):
    monkeypatch.setattr(model_files, "find_folder", lambda *_: pytest.fail("a plan looked for a model"))
    assert f"longshort plan recipes/{recipe} {options}\n" in (RECIPES / recipe).read_text()
    status, out, error = plan(capsys, RECIPES / recipe, *options.split())
    assert (status, error) == (0, "")
    (line,) = [line for line in out.splitlines() if "chosen: the fastest that fits" in line]
    assert line.split()[0] == kind
    shown = (
        (RECIPES.parent / "docs" / "operations.md")
        .read_text()
        .partition(f"$ longshort plan recipes/{recipe} {options}\n")[2]
    )
    assert set(shown.partition("```")[0].splitlines()) - {""} <= set(out.splitlines())
    assert bool(shown) == (recipe != "paper_rl_llama8b.yaml")


def test_two_models_of_the_paper_need_more_than_a_gpu_each(capsys):
    status, out, error = plan(capsys, RECIPES / "paper_rl_qwen7b.yaml", "--gpus", 8)
    assert (status, out) == (1, "")
    assert "long learner optimizer 56.7" in error  # 8 bytes * 7.0926
    assert "the smallest change that makes it fit: --zero 1 --gradient-checkpointing" in error


SHAPES = {  # query heads are hidden / head size; biases of q, k, v in Qwen2; a tied head counts once
    "Qwen/Qwen2.5-0.5B-Instruct": (True, True),
    "Qwen/Qwen2.5-1.5B-Instruct": (True, True),
    "Qwen/Qwen2.5-3B-Instruct": (True, True),
    "Qwen/Qwen2.5-7B-Instruct": (True, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (True, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (True, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (False, False),
    "meta-llama/Llama-3.1-8B": (False, False),
    "meta-llama/Llama-3.1-8B-Instruct": (False, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_are_those_of_the_shape(name):
    model, (bias, tied) = PUBLISHED[name], SHAPES[name]
    attention = (
        2 * model.hidden * model.hidden + 2 * model.hidden * model.kv_width + bias * (model.hidden + 2 * model.kv_width)
    )
    layer = attention + 3 * model.hidden * model.intermediate + 2 * model.hidden  # two norms
    embeddings = model.vocabulary * model.hidden * (1 if tied else 2)
    assert model.layers * layer + embeddings + model.hidden == model.parameters


@pytest.mark.engine
@pytest.mark.parametrize(
    ("dtype", "autocast", "ratio"), [("float32", False, 0.95), ("bfloat16", False, 1.01), ("float32", True, 1.01)]
)
def test_activations_are_what_autograd_keeps(dtype, autocast, ratio):
    """Blocks of Qwen2.5-7B's proportions, an eighth as wide: bytes saved for the backward pass per block, against the estimate."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = dict(vocab_size=128, hidden_size=448, intermediate_size=2368, num_attention_heads=7, num_key_value_heads=1)

    def kept(layers):
        config = Qwen2Config(**sizes, num_hidden_layers=layers, max_position_embeddings=512)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        weights = {
            tuple(shape) for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[::-1])
        }
        found, alive = {}, []

        def pack(tensor):
            if tuple(tensor.shape) not in weights:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
            return tensor

        arithmetic = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
            model.get_decoder()(input_ids=torch.zeros((1, 256), dtype=torch.long), use_cache=False)
        return sum(found.values())

    facts = ModelFacts(
        name="x",
        parameters=1,
        layers=2,
        hidden=448,
        intermediate=2368,
        kv_heads=1,
        kv_width=64,
        vocabulary=128,
        context=512,
    )
    estimate = activations_gib(facts, 256, 2 if autocast or dtype == "bfloat16" else 4, autocast=autocast) * GIB
    assert (kept(4) - kept(2)) / estimate == pytest.approx(ratio, abs=0.015)


def test_rates_from_yaml(tmp_path):
    path = tmp_path / "rates.yaml"
    path.write_text("long: {engine: 1000, learner: 2000, tokens: 100}\n")
    rates = read_rates(path, setup().config)
    assert (rates.long.engine, rates.long.sync_s, rates.short.engine) == (1000, None, None)
    text = report(setup(4, rates=rates, rates_from=f"from {path}"))
    assert f"long engine: 800 tokens at 1,000 tokens/s (from {path}): 0.8 s" in text
    assert "short engine: 4,096 tokens at" in text and "tokens/s (assumed)" in text  # half of 1024, 8 times
    path.write_text("long: {engin: 1000}\n")
    with pytest.raises(LongShortError, match=r"unknown key 'long\.engin'; did you mean 'long\.engine'"):
        read_rates(path, setup().config)


@pytest.fixture
def former(tmp_path):
    """Write the metrics of a run: a slow first step, then one. Returns their path."""

    def write(**recipe):
        roles = {role: {"model": "one-gibi", "engine": {"num_gpus": 2}} for role in ("long", "short")}
        ran = parse({"num_problems": 5, "num_generations": 2, "learner_gpus": 1, **roles} | recipe)
        (tmp_path / "recipe.yaml").write_text(dump(ran))
        row = {"team/tokens": 150, "team/tokens/long": 100, "team/tokens/short": 50, "perf/rollout_s": 2.0}
        row |= {f"rollout/idle_frac/{role}": 0.5 for role in ("long", "short")}
        row |= {"long/perf/learn_s": 3.0, "long/perf/weight_sync_s": 0.25}
        rows = [row | {"perf/rollout_s": 100.0}, row]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "metrics.jsonl"

    return write


def test_rates_from_a_former_run(former):
    rates = read_rates(former(), setup().config)
    # 10 episodes of 100 tokens in half of 2 s on 2 GPUs; 10 of 150 in 3 s on 1
    assert rates.long.model_dump() == {"engine": 500, "learner": 500, "tokens": 100, "sync_s": 0.25}
    assert rates.short.model_dump() == {"engine": 250, "learner": None, "tokens": 50, "sync_s": None}


def test_rates_that_say_nothing_about_this_plan_are_refused(former, tmp_path):
    def says(path):
        with pytest.raises(LongShortError) as caught:
            read_rates(path, setup().config)
        return str(caught.value)

    assert "measured with long.model 'other', the recipe has 'one-gibi'" in says(former(long={"model": "other"}))
    assert "measured on CPUs (long.engine.num_gpus 2, learner_gpus 0)" in says(former(learner_gpus=0))
    path = former()
    path.write_text('{"loss": 1}\n')
    assert "holds no training step" in says(path)
    path.write_text('{"team/tokens/long": 1}\n')
    assert "is no metrics.jsonl of a training run" in says(path)
    assert "--rates: no file" in says(tmp_path / "none.yaml")
