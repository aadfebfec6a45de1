"""The recipes that come with longshort: settings that fit each other."""

from pathlib import Path

import pytest

from longshort.coldstart.sft import rate_advice
from longshort.recipe.schema import LongShortConfig, load, parse
from longshort.types import LONG, ROLES

FOLDER = Path(__file__).parents[3] / "recipes"
RECIPES = {path.stem: load(path) for path in sorted(FOLDER.glob("*.yaml"))}


def sft(**settings) -> LongShortConfig:
    return parse({LONG: {"sft": settings}})


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", RECIPES)
def test_an_adapter_is_fine_tuned_at_the_rate_of_an_adapter(name, role):
    assert rate_advice(RECIPES[name], role) == ""


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["paper_rl_qwen7b", "paper_rl_llama8b"])
def test_the_cold_start_teaches_no_longer_turns_than_reinforcement_learning_allows(name, role):
    taught, allowed = RECIPES["paper_coldstart"].role(role).turn_tokens, RECIPES[name].role(role).turn_tokens
    assert taught <= allowed


@pytest.mark.parametrize("name", ["paper_rl_qwen7b", "paper_rl_llama8b"])
def test_the_cold_start_teaches_no_longer_dialogues_than_reinforcement_learning_allows(name):
    assert RECIPES["paper_coldstart"].protocol.episode_tokens <= RECIPES[name].protocol.episode_tokens


def test_an_adapter_at_the_rate_of_a_whole_model_gets_advice():
    assert rate_advice(sft(learning_rate=1e-5, lora={}), LONG) == (
        "long.sft.learning_rate is 1e-05: an adapter (lora) usually learns too little below 5e-05"
    )


def test_a_whole_model_at_that_rate_gets_none():
    assert rate_advice(sft(learning_rate=1e-5), LONG) == ""
