"""What `plan --dry-run` refuses: all that can be known before an engine starts."""

import json

import pytest

from longshort import cli
from longshort.preflight import checks
from longshort.recipe.schema import dump
from longshort.run import check_measured, check_run, fingerprint
from longshort.runs import lock, tracking
from longshort.runs.files import write_json
from longshort.runs.layout import RunFolder
from longshort.types import LONG, SHORT, LongShortError
from tests.support import tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture
def recipe(tmp_path, models):
    """Make a recipe of two tiny models that passes; keyword arguments replace settings, `long` adds to the role's."""

    def make(long=None, **settings):
        roles = {role: tiny_models.role(models[role], backend="transformers") for role in (LONG, SHORT)}
        roles[LONG] |= long or {}
        evaluation = {"benchmarks": [str(tmp_path / "train.jsonl")], "num_problems": 8}
        return tiny_models.config(tmp_path, models, **{"eval": evaluation} | roles | settings)

    return make


def refusal(config):
    with pytest.raises(LongShortError) as caught:
        check_run(config)
    return str(caught.value)


def test_a_good_recipe_passes(recipe):
    assert check_run(recipe()) is None


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.7), ("top_k", 5)])
def test_training_on_a_cut_distribution_is_refused_with_the_reason(recipe, setting, value):
    assert refusal(recipe(**{setting: value})) == (
        f"{setting}={value}: training samples from the whole distribution, whose log-probs the learner computes; "
        f"remove it here and give it to `longshort eval` or `longshort serve` ({setting}={value})"
    )


def test_a_recipe_that_trains_nothing_by_reinforcement_may_cut_the_distribution(recipe):
    assert check_run(recipe(top_p=0.7, dataset="")) is None


def test_the_dry_run_itself_refuses(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(dump(recipe()))
    assert cli.main(["plan", str(tmp_path / "recipe.yaml"), "--dry-run", "top_p=0.7"]) == 1
    assert capsys.readouterr().err.startswith("longshort: top_p=0.7: training samples from the whole distribution")


def test_the_dry_run_names_a_run_that_holds_the_folder(recipe, tmp_path, capsys):
    config = recipe()
    (tmp_path / "recipe.yaml").write_text(dump(config))
    with lock.hold(tmp_path / "run"):
        assert cli.main(["plan", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 1
    assert "belongs to another run" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert refusal(recipe(report_to=["tensorboard", "wandb"])) == (
        "report_to asks for tensorboard, wandb, not installed: pip install 'longshort[tracking]', or remove it"
    )


def test_a_tracker_of_ones_own_answers_for_itself(recipe, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "mine", lambda config: lambda step, metrics: None)
    assert check_run(recipe(report_to=["mine"])) is None


def test_vllm_that_is_not_installed_is_refused(recipe, models, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    long = tiny_models.role(models[LONG], backend="vllm")
    assert "long.engine.backend is vllm, which is not installed" in refusal(recipe(long=long))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learner": {"attention": "flash_attention_2"}}, "learner.attention is flash_attention_2, whose kernel needs"),
        ({"learner": {"backend": "deepspeed", "ranks": 5000}}, "learner.ranks is 5000 but the cluster has"),
        ({"stages": ["mixture"]}, "stages: 'mixture' needs 'mixture', which this recipe does not set"),
        ({"stages": ["train"], "dataset": ""}, "stages: 'train' needs 'dataset', which this recipe does not set"),
        ({"dataset": "miniature:trian"}, "split must be 'train', 'dev' or 'test', got 'trian'"),
    ],
)
@pytest.mark.parametrize("address", ["", "local"])
def test_settings_that_no_engine_is_needed_to_refuse(recipe, monkeypatch, address, settings, says):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert says in refusal(recipe(**settings))


COLD_START = {"traces": "miniature:train", "rewrite": {"rewriter": "verbatim"}}


def test_a_good_cold_start_passes(recipe):
    assert check_run(recipe(coldstart=COLD_START)) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"partition": {"rule": "metrik"}}, "coldstart.partition.rule: 'metrik' is not known; did you mean 'metric'?"),
        ({"rewrite": {"rewriter": "verbtim"}}, "coldstart.rewrite.rewriter: 'verbtim' is not known; did you mean"),
        ({"rewrite": {"rewriter": "instruct"}}, "coldstart.instruct.model is empty"),
        ({"traces": "miniature:trian"}, "'trian' is not known; known: train, easy, hard"),
        ({"traces": "none.jsonl"}, "coldstart.traces: there is no 'none.jsonl'"),
        ({"chunk": {"splitter": "instruct"}, "instruct": {"model": "./none"}}, "coldstart.instruct.model: no folder"),
    ],
)
def test_a_cold_start_that_cannot_work_is_refused_before_anything_starts(recipe, changes, says):
    assert says in refusal(recipe(coldstart=COLD_START | changes))


def test_traces_without_responses_are_refused_before_anything_starts(recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "1+1?", "answer": "2"}) + "\n")
    assert "line 1: no response; expected a column response" in refusal(
        recipe(coldstart=COLD_START | {"traces": str(rows)})
    )


def test_a_generators_context_beyond_its_model_is_refused(recipe, models):
    rollout = {"model": models[SHORT], "engine": {"max_model_len": 4096}}
    message = refusal(recipe(coldstart=COLD_START | {"rollout": rollout}))
    assert message.startswith("coldstart.rollout.engine.max_model_len is 4,096 but")


@pytest.mark.parametrize(
    ("sft", "says"),
    [
        ({"lora": {"target_modules": ["q_prj"]}}, "long.sft.lora.target_modules"),
        ({"deepspeed": "none.json"}, "long.sft.deepspeed: 'none.json' is no readable JSON file"),
        ({"deepspeed": "[]"}, "a DeepSpeed configuration is a mapping"),
    ],
)
def test_fine_tuning_that_cannot_work_is_refused_before_the_cold_start_begins(recipe, tmp_path, sft, says):
    if sft.get("deepspeed") == "[]":
        (tmp_path / "zero.json").write_text("[1]")
        sft = {"deepspeed": str(tmp_path / "zero.json")}
    assert says in refusal(recipe(long={"sft": sft}, coldstart=COLD_START))


MIXTURE = {"short_data": "miniature:easy", "long_data": "miniature:hard", "dev_dataset": "miniature:dev"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dev_dataset": ""}, "mixture.dev_dataset is empty"),
        ({"weighting": "dynamc"}, "mixture.weighting: 'dynamc' is not known; did you mean 'dynamic'?"),
        ({"short_data": "miniature:esay"}, "'esay' is not known"),
        ({"long_data": "none.jsonl"}, "there is no such file"),
        ({"long_bound": "./none"}, "mixture.long_bound: no folder './none'"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused_before_anything_starts(recipe, changes, says):
    assert says in refusal(recipe(mixture=MIXTURE | changes))


def test_a_model_that_transformers_does_not_know_is_refused(recipe, models, tmp_path):
    import shutil

    strange = tmp_path / "strange"
    shutil.copytree(models[LONG], strange)
    settings = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(settings | {"model_type": "unheard_of"}))
    message = refusal(recipe(long={"model": str(strange)}))
    assert message.startswith(f"long.model: '{strange}' is no causal language model that transformers")


def test_a_folder_whose_stages_had_other_settings_is_refused(recipe):
    config = recipe()
    record = RunFolder.of(config).stage("train")
    write_json(record, {"recipe": fingerprint(config), "seconds": 1.0, "result": {}})
    assert check_run(config) is None
    assert f"{record} was made with other settings than this recipe's" in refusal(recipe(seed=7))


def test_a_run_that_measures_needs_something_to_measure_on(recipe):
    with pytest.raises(LongShortError, match="the stage train measures the models, but"):
        check_measured(recipe(eval={}))


def test_a_run_without_a_stage_is_refused(recipe):
    with pytest.raises(LongShortError, match="nothing to run; set one of miniature, coldstart, mixture, dataset"):
        check_measured(recipe(dataset=""))
