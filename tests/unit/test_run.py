"""The stages of `longshort run`."""

import pytest

from longshort.recipe.schema import load
from longshort.run import stage_names
from longshort.types import LongShortError
from tests.support import ROOT

RECIPE = ROOT / "recipes" / "quickstart.yaml"


def test_the_quickstart_recipe_has_four_stages():
    assert stage_names(load(RECIPE)) == ["base", "baseline", "coldstart", "train"]


def test_a_recipe_may_name_its_stages():
    assert stage_names(load(RECIPE, ["stages=[base, train]"])) == ["base", "train"]


def test_an_unknown_stage_is_refused():
    with pytest.raises(LongShortError, match="'bas' is not a stage; known: base, baseline"):
        stage_names(load(RECIPE, ["stages=[bas]"]))
