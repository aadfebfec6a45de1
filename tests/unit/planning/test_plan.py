"""The plan: sizes read from model folders, and every refusal that comes before anything starts."""

import json

import pytest

from longshort.planning.plan import render
from longshort.preflight import memory
from longshort.preflight.checks import check, check_contexts, check_disk
from longshort.preflight.memory import check_memory, plan
from longshort.preflight.memory_formulas import GIB
from longshort.preflight.processes import model_facts
from longshort.recipe.miniature import ModelShape
from longshort.recipe.schema import parse
from longshort.run import check_run, planned_stages
from longshort.runs.model_files import read_facts
from longshort.types import LongShortError, Problem

SHAPE = ModelShape(
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    intermediate_size=160,
    base_steps=1,
    base_learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder per role with a real tiny model and its tokenizer, whose role tags are special tokens."""
    from longshort.miniature.models import build_model, save
    from longshort.miniature.tokenizer import build_tokenizer

    folders = {}
    for role in ("long", "short"):
        folders[role] = tmp_path_factory.mktemp(role)
        tokenizer = build_tokenizer(role)
        save(build_model(tokenizer, SHAPE, seed=0, max_position_embeddings=512), tokenizer, folders[role])
    return folders


@pytest.fixture
def recipe(tiny, tmp_path):
    """Make a config of the tiny pair: keyword arguments replace top-level settings, `long` adds to the long role's."""

    def make(rows=({"problem": "a: 4*6?", "answer": "4"},), long=None, **settings):
        data = tmp_path / "rows.jsonl"
        data.write_text("\n".join(json.dumps(row) for row in rows))
        engine = {"max_model_len": 128, "kv_cache_gib": 0.1, "backend": "transformers", "max_num_seqs": 8}
        roles = {
            role: {"model": str(tiny[role]), "turn_tokens": 16, "instructions": "", "engine": engine} for role in tiny
        }
        roles["long"] = roles["long"] | (long or {})
        common = {
            "output_dir": str(tmp_path / "run"),
            "dataset": str(data),
            "protocol": {"tags": "special"},
            "batch_tokens": 512,
        }
        return parse(common | roles | settings)

    return make


def refusal(config):
    with pytest.raises(LongShortError) as caught:
        check_run(config)
    return str(caught.value)


def text(planned):
    return render(planned, [("train", "reinforcement learning", None)])


def test_facts_are_those_of_the_loaded_model(tiny):
    from transformers import AutoModelForCausalLM

    facts = read_facts(str(tiny["long"]), "long.model")
    model = AutoModelForCausalLM.from_pretrained(tiny["long"])
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (facts.layers, facts.hidden, facts.kv_width, facts.context) == (2, 64, 32, 512)
    assert facts.kv_numbers == 2 * 2 * 32


def test_a_miniature_model_is_known_before_it_is_made(tiny):
    made = read_facts(str(tiny["long"]), "long.model")
    miniature = {"long": SHAPE.model_dump()}
    planned = model_facts(parse({"miniature": miniature, "long": {"engine": {"max_model_len": 512}}}))["long"]
    assert planned.parameters == pytest.approx(made.parameters, rel=0.01)  # norms and biases are left out
    assert (planned.layers, planned.kv_width, planned.context) == (made.layers, made.kv_width, made.context)


def test_a_good_recipe_passes_and_leaves_nothing_behind(recipe, tmp_path):
    before = sorted(tmp_path.iterdir())
    config = recipe()
    assert check_run(config) is None
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "rows.jsonl"]


def test_the_plan_names_every_process_with_its_memory(recipe):
    config = recipe(loss={"beta": 0.1}, grading={"workers": 2})
    planned = plan(config)
    assert [process.name for process in planned.processes] == [
        "driver and ray",
        "long engine (transformers)",
        "long learner (torch)",
        "short engine (transformers)",
        "short learner (torch)",
        "graders (2)",
    ]
    route = "new weights of the long role travel by object_store: a transformers engine takes them from there only"
    assert route in text(planned)
    parameters = read_facts(config.long.model, "long.model").parameters
    learner = planned.processes[2].parts
    held = {name: learner[name] * GIB / parameters for name in ("weights", "gradients", "optimizer", "reference")}
    assert held == pytest.approx({"weights": 4, "gradients": 4, "optimizer": 8, "reference": 4})
    cache = planned.processes[1].parts["kv cache"]
    assert cache == 8 * 128 * 128 * 4 / GIB  # sequences, tokens, numbers per token, bytes
    assert "long engine (transformers)" in text(planned)
    assert "DOES NOT FIT" not in text(planned)
    assert text(planned).splitlines()[-1] == f"episodes per step: {config.num_problems * config.num_generations}"


def test_the_quick_start_is_planned_before_its_models_exist(tmp_path):
    config = parse(
        {
            "miniature": {},
            "dataset": "miniature:train",
            "output_dir": str(tmp_path / "run"),
            "protocol": {"tags": "special"},
        }
    )
    assert planned_stages(config)[-1][0] == "train"
    assert all(seconds for _, _, seconds in planned_stages(config))
    assert 0 < plan(config).needed("cpu") < 8


def test_too_little_memory_is_refused_with_both_numbers(recipe, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: GIB)
    message = refusal(recipe())
    assert "GiB of cpu memory but 1.0 GiB are free (" in message
    assert "driver and ray 1.2" in message
    assert "lower engine.kv_cache_gib" in message
    assert "1.0 GiB free - DOES NOT FIT" in text(plan(recipe()))


def test_on_a_cluster_memory_is_not_judged(recipe, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr(memory, "free_memory", lambda: GIB)
    planned = plan(recipe(learner_gpus=1))
    assert planned.free == {"cpu": None, "gpu": None}
    assert check_memory(planned) is None
    assert "its free memory is not known here" in text(planned)


def test_gpus_that_are_not_there_are_refused(recipe, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "the recipe asks for 2 GPUs but torch sees none here" in refusal(recipe(learner_gpus=1))


def test_a_cache_smaller_than_one_dialogue_and_a_context_beyond_the_model_are_refused(recipe):
    small = {"engine": {"max_model_len": 512, "kv_cache_gib": 1e-5, "backend": "transformers"}}
    assert "long.engine.kv_cache_gib is 1e-05, but one dialogue of" in refusal(recipe(long=small))
    assert "max_model_len (512 tokens) takes 0.00024 GiB" in refusal(recipe(long=small))
    wide = {"engine": {"max_model_len": 4096, "backend": "transformers"}}
    assert "long.engine.max_model_len is 4,096 but" in refusal(recipe(long=wide))
    assert check_contexts(recipe(), {}) is None


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(recipe, monkeypatch):
    monkeypatch.setattr("longshort.preflight.checks.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    config = recipe(save_total_limit=3)
    with pytest.raises(LongShortError, match=r"4 checkpoints take 0\.0 GiB but 0\.0 GiB are free on that disk"):
        check_disk(config, {"long": read_facts(config.long.model, "long.model")})


def on_gpus(monkeypatch, *gib):
    """GPUs with so much free memory each, and a vLLM for them."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gib))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (gib[i] * GIB, 80 * GIB))


ENGINE = {"max_model_len": 128, "kv_cache_gib": 10.0, "backend": "vllm"}


def gpu_recipe(recipe, share, **settings):
    """Both roles alike: an engine with a KV cache of 10 GiB, and a learner."""
    roles = {
        role: {"model": recipe().role(role).model, "engine": ENGINE | {"num_gpus": share}} for role in ("long", "short")
    }
    return recipe(long=roles["long"]).model_copy(
        update={"short": recipe(long=roles["short"]).long, "learner_gpus": share} | settings
    )


def test_the_memory_of_several_gpus_is_not_one_pool(recipe, monkeypatch):
    """Shares of 0.5: each role has a GPU of its own; 24 GiB are enough for both together, 20 and 4 are not."""
    on_gpus(monkeypatch, 20, 4)
    planned = plan(gpu_recipe(recipe, 0.5))
    assert planned.places["long engine (vllm)"] == planned.places["long learner (torch)"] == ["gpu 0"]
    assert planned.places["short engine (vllm)"] == planned.places["short learner (torch)"] == ["gpu 1"]
    assert planned.too_small == ["gpu 1"]
    with pytest.raises(
        LongShortError, match=r"GiB of gpu 1 memory but 4\.0 GiB are free \(short engine \(vllm\) 11\.0"
    ):
        check_memory(planned)
    assert "gpu 0 × 0.5" in text(planned)
    assert "long role travel by ipc: the engine and its learner share a GPU" in text(planned)


def test_quarters_share_one_gpu_and_whole_ones_need_one_each(recipe, monkeypatch):
    on_gpus(monkeypatch, 70)
    planned = plan(gpu_recipe(recipe, 0.25))
    on_a_gpu = {process.name: planned.places[process.name] for process in planned.processes if process.gpus}
    assert len(on_a_gpu) == 4 and set(map(tuple, on_a_gpu.values())) == {("gpu 0",)}
    says = r"asks for 4 GPUs at once \(long engine \(vllm\) 1 × 1, .*but there are 1; lower engine"
    with pytest.raises(LongShortError, match=says):
        plan(gpu_recipe(recipe, 1))


def test_in_turns_only_the_larger_need_counts(recipe, monkeypatch):
    """By hand: both engines' processes and what learners keep, and beside them the KV caches or the micro-batches."""
    on_gpus(monkeypatch, 70)
    resident, turns = plan(gpu_recipe(recipe, 0.25)), plan(gpu_recipe(recipe, 0.25, time_share=True))
    learners = [process.parts for process in resident.processes if process.kind == "learner"]
    gone = sum(parts["activations"] + parts["logits"] + parts["transfer"] for parts in learners)
    assert gone > 0
    assert resident.needed("gpu 0") - turns.needed("gpu 0") == pytest.approx(gone)
    assert turns.needed("gpu 0") > 20
    assert turns.needed("cpu") == resident.needed("cpu")
    assert "engines and learners take turns" in text(turns)


def test_ranks_of_a_learner_are_planned_as_the_recipe_has_them(recipe):
    learner = {"backend": "deepspeed", "ranks": 2, "zero_stage": 3, "offload": True, "gradient_checkpointing": True}
    planned = plan(recipe(learner=learner))
    processes = {process.name: process for process in planned.processes}
    long = processes["long learner (deepspeed, ZeRO-3, 2 ranks)"]
    parameters = read_facts(recipe().long.model, "long.model").parameters
    assert long.count == 2
    assert planned.places[long.name] == ["cpu", "cpu"]
    held = {name: gib * GIB / parameters for name, gib in long.parts.items()}
    assert (held["weights"], held["gradients"], held["optimizer"], held["buffers"]) == pytest.approx((2, 2, 0, 8))
    assert held["offloaded optimizer"] == pytest.approx(8)
    (plain,) = [process for process in plan(recipe()).processes if process.name == "long learner (torch)"]
    assert long.parts["activations"] < plain.parts["activations"]
    assert "; 2 of these" in text(planned)


def test_the_cold_starts_processes_are_listed_and_come_before_the_trainings(recipe, tiny):
    section = {
        "traces": "x.jsonl",
        "instruct": {"model": str(tiny["long"]), "engine": ENGINE},
        "importance": {"num_engines": 2},
    }
    planned = plan(recipe(coldstart=section, learner_gpus=0))
    cold = [process for process in planned.processes if process.phase == "cold start"]
    assert [process.name for process in cold] == [
        "driver and ray",
        "coldstart.instruct (vllm)",
        "coldstart.rollout (transformers)",
        "long fine-tuning (trl)",
        "graders (1)",
    ]
    assert planned.places["coldstart.rollout (transformers)"] == ["cpu", "cpu"]
    total = sum(process.gib * process.count for process in cold)
    assert planned.needed("cpu") == pytest.approx(total), "its KV cache of 10 GiB is more than the training needs"
    assert "\ncold start  " in text(planned)


def test_a_plan_that_does_not_fit_has_exit_status_1(recipe, tmp_path, monkeypatch, capsys):
    from longshort import cli
    from longshort.recipe.schema import dump

    (tmp_path / "recipe.yaml").write_text(dump(recipe()))
    assert cli.main(["plan", str(tmp_path / "recipe.yaml")]) == 0
    monkeypatch.setattr(memory, "free_memory", lambda: GIB)
    assert cli.main(["plan", str(tmp_path / "recipe.yaml")]) == 1
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    assert "none of the changes tried makes it fit" in printed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"protocol": {"name": "long_shrot"}},
            "protocol.name: 'long_shrot' is not known; did you mean 'long_short'? known: ",
        ),
        ({"advantage": "teem"}, "advantage: 'teem' is not known; did you mean 'team'? known: team"),
        ({"loss": {"name": "grppo"}}, "loss.name: 'grppo' is not known; did you mean 'grpo'? known: grpo, dr_grpo"),
        ({"loss": {"name": "cispo"}}, "loss.epsilon_high is 0.28"),
        ({"long": {"model": ""}}, "long.model is empty; name a model folder or a hub name"),
        ({"long": {"model": "./nowhere"}}, "long.model: no folder './nowhere'"),
        ({"long": {"model": "nobody/nothing"}}, "long.model: 'nobody/nothing' is neither a folder here"),
        ({"dataset": "rows/none.jsonl"}, "there is no such file"),
        ({"eval": {"benchmarks": ["rows/none.jsonl"]}}, "there is no such file"),
        ({"rows": [{"problem": "p"}]}, "line 1: no answer"),
        (
            {"rows": [{"problem": "4*" * 100, "answer": "4"}]},
            "tokens, the long model's context is 128 (long.engine.max_model_len)",
        ),
        ({"rows": [{"problem": "p", "answer": "\\frac{"}]}, "1 of 1 reference answers cannot be graded"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(recipe, settings, says):
    assert says in refusal(recipe(**settings))


def test_problems_of_the_trainer_class_are_checked_in_place_of_the_recipes(recipe):
    config = recipe(dataset="rows/none.jsonl")
    bad_gold = [Problem(id="x", question="p", answer="\\frac{")]
    with pytest.raises(LongShortError, match="reference answers cannot be graded"):
        check(config, training=bad_gold, held_out=[])
    assert check(config, training=bad_gold, held_out=[], graded=False) is None


def test_a_stage_that_does_not_exist_is_refused(recipe):
    with pytest.raises(LongShortError, match="stages: 'trian' is not a stage; known:"):
        planned_stages(recipe(stages=["trian"]))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "{", "config.json cannot be read"),
        (
            "config.json",
            '{"auto_map": {"AutoModel": "m.py"}}',
            "brings its own code (auto_map in config.json), which is never run",
        ),
        ("config.json", '{"model_type": "bert"}', "has no 'num_attention_heads'"),
        ("model.safetensors", None, "holds no *.safetensors, no weights"),
        ("model.safetensors", '\x09\x00\x00\x00\x00\x00\x00\x00{"a": 123', "are damaged"),
        ("model.safetensors", "\x00\x00", "are damaged"),
    ],
)
def test_a_damaged_or_foreign_model_folder_is_refused(tiny, tmp_path, file, content, says):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny["long"], folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(LongShortError, match=r"^long\.model: ") as caught:
        read_facts(str(folder), "long.model")
    assert says in str(caught.value)


def test_a_pickle_checkpoint_is_refused_by_name(tiny, tmp_path):
    (tmp_path / "config.json").write_text((tiny["long"] / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(LongShortError, match=r"only pytorch_model\.bin, which can run code: convert them"):
        read_facts(str(tmp_path), "long.model")


def test_a_folder_without_tokenizer_or_without_the_tags_is_refused(tiny, recipe, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(
        tiny["long"], bare, ignore=lambda folder, names: [name for name in names if "token" in name or "chat" in name]
    )
    assert f"long.model: '{bare}' has no tokenizer" in refusal(recipe(long={"model": str(bare)}))
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny["long"], foreign)
    (foreign / "config.json").write_text(
        (foreign / "config.json").read_text().replace('"vocab_size": ', '"vocab_size": 1, "was": ')
    )
    assert "ids but the model's embedding 1;" in refusal(recipe(long={"model": str(foreign)}))
    plain = tmp_path / "plain"
    shutil.copytree(tiny["long"], plain)
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "</think>"]
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = (plain / "tokenizer_config.json").read_text()
    (plain / "tokenizer_config.json").write_text(settings.replace('"</think>",', ""))
    message = refusal(recipe(long={"model": str(plain)}))
    assert "has no special token for </think>" in message


def test_an_output_folder_that_is_a_file_or_cannot_be_written_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file; choose another folder" in refusal(recipe(output_dir=str(tmp_path / "file" / "run")))
    assert "is not writable" in refusal(recipe(output_dir="/proc/longshort"))
