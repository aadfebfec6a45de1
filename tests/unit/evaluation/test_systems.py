"""Which models and which protocol a system means, and what is refused in which words, all before an engine starts."""

import shutil
from pathlib import Path

import pytest

from longshort.dialogue.protocols import LongShort, OneMessage
from longshort.dialogue.solo import Solo, StoppedEarly
from longshort.evaluation.benchmarks import LoadedBenchmark
from longshort.evaluation.command import check_systems
from longshort.evaluation.records import DescribedBenchmark
from longshort.evaluation.systems import PRESETS, preset, protocol_of, systems_of
from longshort.evaluation.tasks import Prepared
from longshort.recipe.schema import parse
from longshort.types import LONG, ROLES, SHORT, LongShortError, Problem
from tests.support import tiny_models

SPECIAL = {"tags": "special"}


def model(folder: Path, weights: str = "w") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """A run with base models, a cold start and two checkpoints; returns `recipe(**settings)` and the folder of
    everything."""
    for name in ("base", "run/checkpoint-20", "run/checkpoint-40"):
        for role in ROLES:
            model(tmp_path / name / role)
        (tmp_path / name / "manifest.json").write_text("{}")
    for role in ROLES:
        model(tmp_path / "run" / "models" / f"cold-{role}")

    def recipe(systems=(), **changes):
        roles = {role: {"model": str(tmp_path / "base" / role)} | changes.pop(role, {}) for role in ROLES}
        evaluation = {"systems": [*systems]} | changes.pop("eval", {})
        return parse(
            {"output_dir": str(tmp_path / "run"), "coldstart": {"traces": "miniature:train"}, "eval": evaluation}
            | roles
            | changes
        )

    return recipe, tmp_path


def models_of(config, folder, chosen=None) -> dict[str, dict[str, tuple[str, str]]]:
    """By system and role: the model's folder below `folder`, and whose engine it has."""
    return {
        system.name: {
            role: (str(Path(found.folder).relative_to(folder)), found.origin) for role, found in system.models.items()
        }
        for system in systems_of(config, chosen)
    }


def both(long, short):
    return {LONG: (long, LONG), SHORT: (short, SHORT)}


def test_every_preset_means_the_models_that_its_name_says(run):
    recipe, folder = run
    newest = "run/checkpoint-40"
    assert models_of(recipe(PRESETS), folder) == {
        "pair": both(f"{newest}/long", f"{newest}/short"),
        "long_alone": {LONG: (f"{newest}/long", LONG)},
        "short_alone": {SHORT: (f"{newest}/short", SHORT)},
        "cold_start": both("run/models/cold-long", "run/models/cold-short"),
        "untrained": both("base/long", "base/short"),
        "single_long": {LONG: ("base/long", LONG)},
        "single_short": {SHORT: ("base/short", SHORT)},
        "long_plays_both": {LONG: (f"{newest}/long", LONG), SHORT: (f"{newest}/long", LONG)},
        "short_plays_both": {LONG: (f"{newest}/short", SHORT), SHORT: (f"{newest}/short", SHORT)},
    }


def test_a_model_is_named_by_what_the_run_made_by_a_team_or_by_its_folder(run):
    recipe, folder = run
    other = model(folder / "other")
    systems = [
        {"name": "older", "long": "checkpoint-20"},
        {"name": "swapped", "long": "trained/short", "short": "checkpoint-20/long"},
        {"name": "team", "long": str(folder / "base"), "short": str(folder / "base")},
        {"name": "own", "long": other, "short": "base"},
    ]
    assert models_of(recipe(systems), folder) == {
        "older": both("run/checkpoint-20/long", "run/checkpoint-40/short"),
        "swapped": {LONG: ("run/checkpoint-40/short", SHORT), SHORT: ("run/checkpoint-20/long", LONG)},
        "team": both("base/long", "base/short"),
        "own": both("other", "base/short"),
    }


def test_trained_is_the_chosen_checkpoint_else_the_newest_else_the_cold_start_else_the_recipes_model(run):
    recipe, folder = run
    chosen = folder / "run" / "checkpoint-20"
    assert models_of(recipe(["pair"]), folder, chosen) == {
        "pair": both("run/checkpoint-20/long", "run/checkpoint-20/short")
    }
    bare = recipe(["pair"], output_dir=str(folder / "new"), coldstart=None)
    assert models_of(bare, folder) == {"pair": both("base/long", "base/short")}
    cold = recipe(["pair"], output_dir=str(folder / "cold"))
    with pytest.raises(LongShortError, match=r"cold-long is not there; run `longshort coldstart`"):
        systems_of(cold)
    for role in ROLES:
        model(folder / "cold" / "models" / f"cold-{role}")
    assert models_of(cold, folder) == {"pair": both("cold/models/cold-long", "cold/models/cold-short")}


def test_each_preset_has_its_protocol(run):
    recipe, _ = run
    config = recipe(
        [
            "pair",
            "long_alone",
            "single_long",
            "single_short@3",
            {"name": "told", "long": "base", "alone": "long", "instructions": "Box it."},
        ],
        long={"instructions": "Help your partner.", "engine": {"max_model_len": 512}},
        eval={"separator": "\n", "ending": "So \\boxed{"},
    )
    pair, alone, single, stopped, told = (system.protocol for system in systems_of(config))
    assert type(pair) is LongShort and pair.instructions[LONG] == "Help your partner."
    assert type(alone) is OneMessage and (alone.role, alone.instructions, alone.turn_tokens) == (
        LONG,
        "Help your partner.",
        512,
    )
    assert type(single) is Solo and (single.instructions, single.turn_tokens) == (BOX, 512)
    assert type(stopped) is StoppedEarly and (stopped.role, stopped.roles) == (SHORT, (SHORT,))
    assert (stopped.thoughts, stopped.separator, stopped.ending, stopped.turn_tokens) == (3, "\n", "So \\boxed{", 2048)
    assert type(told) is Solo and told.instructions == "Box it."
    titles = [system.title for system in systems_of(config)]
    assert titles[3:] == ["single short model, stopped after 3 thoughts", "told"]
    assert systems_of(recipe(["single_long@1"]))[0].title.endswith("after 1 thought")


BOX = "Reason step by step, and put the final answer in \\boxed{}."


@pytest.mark.parametrize("system", ["single_long", "single_long@3"])
@pytest.mark.parametrize(
    ("changes", "instructions"),
    [
        ({}, BOX),
        ({"long": {"instructions": "Help your partner."}}, BOX),
        ({"long": {"instructions": ""}}, ""),
        ({"protocol": {"name": "solo"}}, BOX),
        ({"protocol": {"name": "solo"}, "long": {"instructions": ""}}, ""),
        ({"protocol": {"name": "solo"}, "long": {"instructions": "Be brief."}}, "Be brief."),
    ],
)
def test_a_model_that_answers_alone_is_told_where_to_put_its_answer(run, system, changes, instructions):
    recipe, _ = run
    assert systems_of(recipe([system], **changes))[0].protocol.instructions == instructions


def test_a_miniature_model_that_answers_alone_reads_the_problem_only():
    assert protocol_of(parse({"miniature": {}}), preset("single_long")).instructions == ""


def test_a_recipe_of_one_model_evaluates_it_with_its_own_instructions(run):
    recipe, folder = run
    config = recipe(["pair", "single_long"], protocol={"name": "solo"}, long={"instructions": "Box it."})
    trained, before = systems_of(config)
    assert [type(each.protocol) for each in (trained, before)] == [Solo, Solo]
    assert trained.protocol.instructions == before.protocol.instructions == "Box it."
    assert models_of(config, folder) == {
        "pair": {LONG: ("run/checkpoint-40/long", LONG)},
        "single_long": {LONG: ("base/long", LONG)},
    }


@pytest.mark.parametrize(
    "systems, changes, says",
    [
        ([], {}, r"eval.systems is empty; name at least one system, e.g. \[pair\]"),
        (["pari"], {}, r"eval.systems: 'pari' is not known; did you mean 'pair'\? known: pair, long_alone"),
        (["pair", {"name": "pair"}], {}, "pair is named more than once; give each system its own name"),
        (
            ["pair"],
            {"eval": {"base": "single_long"}},
            r"eval.base 'single_long' is not among the systems \(pair\)",
        ),
        (
            ["pair@2"],
            {},
            r"'pair@2' should be single_long or single_short, @ and a number of thoughts \(single_long@3\)",
        ),
        (["long_alone@2"], {}, "'long_alone@2' should be"),
        (["single_long@0"], {}, "'single_long@0' should be"),
        (["single_long@"], {}, "'single_long@' should be"),
        (
            [{"name": "x", "thoughts": 2}],
            {},
            r"x sets thoughts, but two models speak; say which one is alone \(alone: long\)",
        ),
        ([{"name": "x", "tokens": 9, "in_role": True}], {}, "x sets in_role and tokens, but two models speak"),
        (
            [{"name": "x", "alone": "long", "in_role": True, "thoughts": 2}],
            {},
            "x sets in_role and thoughts; a model in its role has",
        ),
        (
            [{"name": "x", "alone": "long", "in_role": True, "instructions": "Go."}],
            {},
            "x sets in_role and instructions; a model in",
        ),
        (
            ["long_alone"],
            {"protocol": {"name": "solo"}},
            "long_alone speaks between its role's tags, but protocol.name is solo",
        ),
        (
            ["cold_start"],
            {"coldstart": None},
            "eval.systems: cold_start: the models of the cold start, but the recipe has no coldstart",
        ),
        (
            ["single_long"],
            {"long": {"model": ""}},
            "eval.systems: single_long: long.model is empty; name a model folder or a hub name",
        ),
        (
            [{"name": "x", "long": "checkpoint-30"}],
            {},
            r"eval.systems: x, long: no folder 'checkpoint-30'.*; what a run made is called trained",
        ),
        ([{"name": "x", "short": "./none"}], {}, r"eval.systems: x, short: no folder './none'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(run, systems, changes, says):
    recipe, _ = run
    with pytest.raises(LongShortError, match=says):
        systems_of(recipe(systems, **changes))


def test_cross_play_is_every_long_model_with_every_short_model(run):
    recipe, folder = run
    team = str(folder / "base")
    crossed = models_of(recipe(eval={"cross_play": ["cold_start", "checkpoint-20", team]}), folder)
    assert len(crossed) == 9
    assert crossed["long@cold_start+short@checkpoint-20"] == both("run/models/cold-long", "run/checkpoint-20/short")
    assert crossed["long@base+short@cold_start"] == both("base/long", "run/models/cold-short")


def test_cross_play_tells_checkpoints_by_names_that_can_be_files_and_differ(run):
    recipe, folder = run
    for name in ("a b", "other/base"):
        for role in ROLES:
            model(folder / name / role)
    assert "long@a-b+short@a-b" in models_of(recipe(eval={"cross_play": [str(folder / "a b")]}), folder)
    twice = [str(folder / "base"), str(folder / "other" / "base")]
    with pytest.raises(LongShortError, match=r"eval.cross_play: base is the last part of more than one entry"):
        systems_of(recipe(eval={"cross_play": twice}))


# What is refused before an engine starts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two tiny models, and as `plain` the long one with a tokenizer that knows no role tags."""
    folder = tmp_path_factory.mktemp("tiny")
    models = tiny_models.make(folder)
    plain = Path(shutil.copytree(models[LONG], folder / "plain"))
    for path in plain.glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("think>", "thonk>").replace("answer>", "answor>"))
    return folder, models


def checked(folder, models, systems, **changes):
    config = tiny_models.config(folder, models, **changes)
    config = parse(config.model_dump() | {"eval": config.eval.model_dump() | {"systems": systems}})
    problem = Problem(id="p", question="a: 7*8*9?" * 4, answer="4")
    loaded = LoadedBenchmark(name="b", title="b", source="b", problems=(problem,))
    check_systems(config, systems_of(config), [Prepared(loaded=loaded, described=DescribedBenchmark())])


def test_a_plain_single_model_needs_no_role_tags_and_one_in_a_role_does(tiny):
    folder, models = tiny
    plain = {"name": "plain", "long": str(folder / "plain"), "alone": "long"}
    checked(folder, models, ["pair", "single_long@1", plain])
    with pytest.raises(
        LongShortError,
        match=r"protocol.tags is 'special' but the tokenizer of .*plain.* has no special token for <think>",
    ):
        checked(folder, models, [plain | {"in_role": True}])


def test_a_model_whose_context_is_too_short_for_its_engine_is_refused(tiny):
    folder, models = tiny
    long = tiny_models.role(models[LONG], max_model_len=512)
    with pytest.raises(LongShortError, match=r"long.engine.max_model_len is 512 but .* knows positions up to 256"):
        checked(folder, models, ["single_long"], long=long)


def test_the_context_that_counts_is_that_of_the_model_which_plays_the_role(tiny):
    folder, models = tiny
    short = tiny_models.role(models[SHORT], max_model_len=20)
    checked(folder, models, ["pair"], short=short)
    with pytest.raises(LongShortError, match=r"problem p: its prompt has \d+ tokens, the long model's context is 20"):
        checked(folder, models, ["short_plays_both"], short=short)


def test_a_folder_without_weights_is_refused_with_the_systems_name(tiny, tmp_path):
    folder, models = tiny
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LongShortError, match=r"hollow, short: .* holds no \*.safetensors"):
        checked(folder, models, [{"name": "hollow", "short": str(tmp_path)}])
