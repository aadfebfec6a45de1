"""Plug-ins: modules that a recipe names add to the tables in the driver and in every process of a run."""

import pytest

from longshort.learning.losses import LOSSES
from longshort.recipe import plugins
from longshort.recipe.schema import load, parse
from longshort.types import LongShortError


def test_a_recipe_imports_its_plug_ins_from_the_current_folder(seven_plugin):
    (seven_plugin / "recipe.yaml").write_text("plugins: [seven_plugin]\nloss: {name: seven}\n")
    assert load(seven_plugin / "recipe.yaml").plugins == ["seven_plugin"]
    assert "seven" in LOSSES


def test_another_process_imports_what_the_driver_names(seven_plugin, monkeypatch):
    variables = plugins.environment(["seven_plugin"])
    monkeypatch.chdir("/")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plugins.import_from_environment()
    assert "seven" in LOSSES
    assert plugins.environment([]) == {}


@pytest.mark.parametrize(
    ("module", "code", "reason"),
    [
        ("nowhere.losses", None, "ModuleNotFoundError: No module named 'nowhere'"),
        ("broken_plugin", "1 / 0", "ZeroDivisionError: division by zero"),
        ("broken_plugin", "def", r"SyntaxError: invalid syntax \(broken_plugin.py, line 1\)"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_error(seven_plugin, module, code, reason):
    if code:
        (seven_plugin / "broken_plugin.py").write_text(code)
    with pytest.raises(LongShortError, match=rf"plugins: {module} cannot be imported \({reason}\); name an installed"):
        parse({"plugins": [module]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"name": "eight"}}, "loss.name: 'eight' is not known; known: grpo"),
        ({"loss": {"importance_correction": "x"}}, "loss.importance_correction: 'x' is not known; known: token_trunc"),
        ({"reward": {"name": "x"}}, "reward.name: 'x' is not known; known: synergy"),
        ({"reward": {"length": {"kind": "x"}}}, "reward.length.kind: 'x' is not known; known: kimi, laser"),
        ({"lr_scheduler_type": "x"}, "lr_scheduler_type: 'x' is not known; known: cosine, linear"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(settings, message):
    from longshort.preflight.checks import check_names

    with pytest.raises(LongShortError) as error:
        check_names(parse(settings))
    assert message in str(error.value)
