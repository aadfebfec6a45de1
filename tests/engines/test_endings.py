"""A SentencePiece-like model with many end tokens: both engines write the same, end the same and say the same text."""

import pytest

from longshort.backends import ray_cluster
from longshort.backends.engines.transformers_engine import TransformersCore
from longshort.backends.engines.vllm_engine import ENVIRONMENT, VllmCore
from longshort.dialogue.plain_text import encode_plain
from longshort.recipe.sections import EngineConfig
from longshort.team.conversation import TurnText
from longshort.types import Sampling
from tests.support import hand_built, tiny_models

CONFIG = EngineConfig(**tiny_models.ENGINE)
STOPS = ((), (".", ","))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random two-layer Llama; every fourth letter is an end token of its generation_config.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("sentencepiece"), hand_built.llama2()
    settings = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **settings))
        model.lm_head.weight.data.mul_(20)
        model.lm_head.weight.data[3:259].mul_(0.3)  # few bytes, more words
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        *tokenizer.convert_tokens_to_ids(list("aeimquyAEIMQUY")),
    ]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(core, requests):
    for name, (prompt, sampling) in requests.items():
        core.add(name, prompt, sampling)
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    return {name: finished[name] for name in requests}


@pytest.fixture(scope="module")
def turns(folder, cluster):
    """By engine, the turns of the same greedy requests."""
    import ray
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    requests = {
        f"{letter} {stop}": (
            encode_plain(tokenizer, f"the {letter}", first=True),
            Sampling(max_tokens=30, stop=stop, temperature=0.0),
        )
        for letter in hand_built.LETTERS[:60]
        for stop in STOPS
    }
    options = {"num_cpus": ray_cluster.cpu_share(), "runtime_env": {"env_vars": ENVIRONMENT}}
    in_vllm = ray.remote(lambda model: write(VllmCore(model, CONFIG), requests)).options(**options)
    reference = in_vllm.remote(str(folder))
    return {
        "transformers": write(TransformersCore(str(folder), CONFIG), requests),
        "vllm": ray.get(reference, timeout=200),
    }


def test_both_engines_write_the_same_tokens(turns):
    ids = [{name: turn.token_ids for name, turn in made.items()} for made in turns.values()]
    assert ids[0] == ids[1]


def test_both_engines_say_the_same_text(turns):
    texts = [{name: turn.text for name, turn in made.items()} for made in turns.values()]
    assert texts[0] == texts[1]


def test_both_engines_end_for_the_same_reason(turns):
    stops = [{name: turn.stop for name, turn in made.items()} for made in turns.values()]
    assert stops[0] == stops[1]
    assert set(stops[0].values()) >= {"eos", "length"}


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_turn_that_ends_with_any_end_token_keeps_its_text(turns, engine):
    ended = [turn for turn in turns[engine].values() if turn.stop == "eos" and len(turn.token_ids) > 1]
    assert len({turn.token_ids[-1] for turn in ended}) > 3
    assert all(turn.text for turn in ended)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_turn_that_begins_with_a_space_keeps_it(turns, engine):
    assert any(turn.text.startswith(" ") for turn in turns[engine].values())


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_stream_of_a_turn_is_its_text(turns, engine, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, made in turns[engine].items():
        turn = TurnText(tokenizer, STOPS[name.endswith("('.', ',')")])
        pieces = [turn.read(made.token_ids[:size]) for size in range(1, len(made.token_ids))]
        assert "".join(pieces) + turn.finish(made.text) == made.text
