"""`longshort plan --gpus N`: memory against numbers worked out by hand, the smallest change that helps, the recipes."""

import pytest

from longshort import cli
from longshort.planning import plan as planning
from longshort.planning.published import PUBLISHED
from longshort.preflight import processes
from longshort.preflight.memory_formulas import GIB, activations_gib, torch_state, zero_state
from longshort.preflight.processes import KnownModels
from longshort.recipe.schema import parse
from longshort.runs.model_files import ModelFacts
from longshort.types import LongShortError
from tests.support import ROOT

SIZES = dict(layers=8, hidden=1024, intermediate=4096, kv_heads=4, kv_width=256, vocabulary=2**16, context=4096)
MODEL = ModelFacts(name="one-gibi", parameters=2**30, **SIZES)
"""With 2**30 parameters a byte per parameter is a GiB."""
STAGES = [("train", "reinforcement learning", None)]


@pytest.fixture
def plan(monkeypatch):
    """Plan two models of 2**30 parameters, engines on whole GPUs in bfloat16, learners in float32."""
    monkeypatch.setattr(planning, "PUBLISHED", KnownModels({"one-gibi": MODEL}))

    def report(gpus, gib, num_gpus=1.0, kv_cache_gib=0.5, **recipe):
        engine = {"dtype": "bfloat16", "max_model_len": 2048, "kv_cache_gib": kv_cache_gib, "num_gpus": num_gpus}
        roles = {role: {"model": "one-gibi", "engine": engine} for role in ("long", "short")}
        config = parse({"batch_tokens": 8192, "learner_gpus": num_gpus, **roles} | recipe)
        return planning.report(config, STAGES, gpus, gib)

    return report


def command(capsys, *arguments):
    """Run `longshort plan` in this process; returns its status, output and errors."""
    status = cli.main(["plan", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("stage", "ranks", "per_parameter"),
    [(1, 1, 4 + 4 + 8), (1, 4, 4 + 4 + 2), (2, 4, 4 + 1 + 2), (2, 6, 6.0), (2, 8, 4 + 0.5 + 1), (3, 4, 1 + 1 + 2)],
)
def test_a_deepspeed_learner_in_bfloat16_keeps_float32_state(stage, ranks, per_parameter):
    """The layout search counted 2 + 2 + 12 bytes: 4.33 instead of 6.0 at stage 2 on 6 ranks, 11.8 GiB too little."""
    model = PUBLISHED["Qwen/Qwen2.5-7B-Instruct"]
    learner = {"backend": "deepspeed", "ranks": ranks, "zero_stage": stage}
    config = parse({"dtype": "bfloat16", "learner": learner, "learner_gpus": 1, "long": {"model": model.name}})
    state = processes.learner_state(config, "long", model)
    assert state.pop("buffers") * GIB == 2 * 4 * 500_000_000
    assert sum(state.values()) * GIB / model.parameters == pytest.approx(per_parameter)


def test_state_of_a_learner_by_hand():
    assert sum(torch_state(100, 4).values()) == 1600
    assert sum(torch_state(100, 2).values()) == 1800  # and autocast's copy
    assert zero_state(100, 3, 2) == {"weights": 200, "gradients": 200, "optimizer": 400, "buffers": 800}
    assert zero_state(100, 2, 2, offload=True) == {"weights": 400, "gradients": 200, "optimizer": 0, "buffers": 800}


def test_activations_by_hand():
    # 8192 tokens * 8 layers * (10 * 1024 + 4 * 4096) numbers * 4 bytes
    assert activations_gib(MODEL, 8192, 4) == 6.5
    # one input per layer, and one block in full: 8192 * (8 * 1024 + 26,624) * 4 bytes
    assert activations_gib(MODEL, 8192, 4, checkpointing=True) == 1.0625


def test_each_process_is_listed_with_its_device_and_parts(plan):
    text, fits = plan(4, 40)
    assert fits
    (engine,) = [line for line in text.splitlines() if line.startswith("short engine (vllm)")]
    # process 1, 2**30 parameters of 2 bytes, the cache, and two buffers of 2**28 bytes for NCCL
    parts = "process 1.00, weights 2.00, kv cache 0.50, transfer 0.50"
    assert engine.split() == f"short engine (vllm) gpu 2 4.00 {parts}".split()
    (learner,) = [line for line in text.splitlines() if line.startswith("short learner (torch)")]
    assert "gpu 3" in learner
    assert "weights 4.00, gradients 4.00, optimizer 8.00, activations 6.50, logits 0.75, transfer 0.50" in learner
    assert "gpu 3: 24.2 GiB needed (estimate), 38.0 GiB free" in text
    assert "cpu: 1.3 GiB needed (estimate), its free memory is not known here" in text


IN_TURNS = dict(num_gpus=0.25, kv_cache_gib=0.1, batch_tokens=4095, learner={"gradient_checkpointing": True})
DEEPSPEED = "learner.backend=deepspeed learner.zero_stage=3"


@pytest.mark.parametrize(
    ("gpus", "gib", "recipe", "change"),
    [
        # 22 + 3.5 GiB where 24.7 are usable; the engines' devices are too small, the learners' are not
        (4, 26, dict(kv_cache_gib=22.0), "long.engine.kv_cache_gib=21.2 short.engine.kv_cache_gib=21.2 (now 22, 22)"),
        # 24.25 GiB where 20.9 are usable; 8192 tokens take 6.5 of them
        (4, 22, {}, "batch_tokens=2048 (now 8192)"),
        # half of 4095 is less than the longest sample, which is a micro-batch by itself
        (4, 24, dict(loss={"beta": 1.0}, batch_tokens=4095), "learner.gradient_checkpointing=true (now false)"),
        (1, 42, IN_TURNS, "time_share=true (now false)"),
        (6, 16, dict(batch_tokens=2048), f"{DEEPSPEED} learner.ranks=2 (now torch, 2, 1)"),
        (4, 16, dict(batch_tokens=2048), f"{DEEPSPEED} learner.offload=true (now torch, 2, false)"),
    ],
)
def test_the_smallest_change_that_helps_is_named(plan, gpus, gib, recipe, change):
    text, fits = plan(gpus, gib, **recipe)
    assert not fits
    assert "DOES NOT FIT" in text
    assert text.splitlines()[-1] == f"the smallest change that makes it fit: {change}"


def test_where_nothing_helps_the_plan_says_so(plan):
    text, fits = plan(4, 2)
    assert not fits
    assert text.endswith("none of the changes tried makes it fit: take smaller models, larger GPUs or more of them")


@pytest.mark.parametrize(
    ("gpus", "gib", "says"),
    [
        (0, 80, "--gpus is 0; it must be more than 0"),
        (4, float("nan"), "--gpu-memory is nan; it must be more than 0"),
        (2, 80, "the recipe asks for 4 GPUs at once"),
    ],
)
def test_gpus_that_make_no_sense_or_do_not_suffice_are_refused(plan, gpus, gib, says):
    with pytest.raises(LongShortError, match=says):
        plan(gpus, gib)


def test_a_context_beyond_the_model_is_refused(capsys):
    recipe = ROOT / "recipes" / "one_gpu.yaml"
    status, _, error = command(capsys, recipe, "--gpus", 1, "long.engine.max_model_len=65536")
    assert status == 1
    assert "long.engine.max_model_len is 65,536 but" in error


@pytest.mark.parametrize(
    ("recipe", "gpus"),
    [("one_gpu", 1), ("paper_coldstart", 6), ("paper_rl_qwen7b", 8), ("paper_rl_llama8b", 8), ("two_nodes", 16)],
)
def test_recipes_fit_the_gpus_of_their_header_without_model_or_network(recipe, gpus, capsys, monkeypatch):
    monkeypatch.setattr(processes, "read_facts", lambda *_: pytest.fail("the plan looked for a model"))
    path = ROOT / "recipes" / f"{recipe}.yaml"
    asked = f"longshort plan recipes/{recipe}.yaml --gpus {gpus}\n"
    assert asked in path.read_text()
    status, printed, error = command(capsys, path, "--gpus", gpus)
    assert (status, error) == (0, "")
    shown = (ROOT / "docs" / "operations.md").read_text().partition(f"$ {asked}")[2].partition("```")[0]
    assert set(shown.splitlines()) <= {line.rstrip() for line in printed.splitlines()} | {""}


def test_the_papers_pair_does_not_fit_two_gpus_for_the_learners(capsys):
    recipe = ROOT / "recipes" / "paper_rl_qwen7b.yaml"
    status, printed, _ = command(capsys, recipe, "--gpus", 8, "learner={gradient_checkpointing: true}")
    assert status == 1
    assert "optimizer 56.74" in printed  # 8 bytes * 7.0926
    assert printed.rstrip().endswith(f"makes it fit: {DEEPSPEED} learner.ranks=3 (now torch, 2, 1)")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_are_those_of_the_shape(name):
    """Biases of q, k, v in Qwen2; a tied head counts once."""
    model, bias = PUBLISHED[name], "Qwen" in name
    attention = 2 * model.hidden * (model.hidden + model.kv_width) + bias * (model.hidden + 2 * model.kv_width)
    layer = attention + 3 * model.hidden * model.intermediate + 2 * model.hidden  # two norms
    tied = name in ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct")
    embeddings = model.vocabulary * model.hidden * (1 if tied else 2)
    assert model.layers * layer + embeddings + model.hidden == model.parameters
