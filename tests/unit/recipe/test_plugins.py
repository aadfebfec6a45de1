"""Plug-ins: modules that a recipe names add to the tables in the driver and in every process of a run."""

import sys

import pytest

from longshort.learning.losses import LOSSES
from longshort.recipe import plugins
from longshort.recipe.schema import load, parse
from longshort.types import LongShortError

SEVEN = """
from longshort.data import GENERATORS
from longshort.dialogue.rewards import REWARDS
from longshort.learning.losses import LOSSES, Loss, per_token, token_ratio, up_to
from longshort.types import Reward

def seven(ratio, logp, advantage, low, high):
    return 7.0 + 0.0 * logp

def by_length(problem, episodes, progress):
    return [Reward(totals=dict.fromkeys(("long", "short"), float(i)), terms={}) for i, _ in enumerate(episodes)]

def sums(part, limit):
    for number in range(8):
        yield f"sums:{part}, {number}", {"problem": f"{number}+1?", "answer": str(number + 1)}

LOSSES["seven"] = Loss(token_ratio, up_to, seven, per_token)
REWARDS["by_length"] = lambda config, prices, protocol, pool: by_length
GENERATORS["sums"] = sums
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory that holds the plug-in; nothing of it is left in this process afterwards."""
    (tmp_path / "seven_plugin.py").write_text(SEVEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(LOSSES, "seven", raising=False)
    yield tmp_path
    sys.modules.pop("seven_plugin", None)


def test_a_recipe_imports_its_plug_ins_from_the_current_folder(folder):
    (folder / "recipe.yaml").write_text("plugins: [seven_plugin]\nloss: {name: seven}\n")
    assert load(folder / "recipe.yaml").plugins == ["seven_plugin"]
    assert "seven" in LOSSES


def test_another_process_imports_what_the_driver_names(folder, monkeypatch):
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
def test_a_plug_in_that_cannot_be_imported_is_one_error(folder, module, code, reason):
    if code:
        (folder / "broken_plugin.py").write_text(code)
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
