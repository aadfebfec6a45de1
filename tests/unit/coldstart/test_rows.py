"""Training rows: the very ids that a rollout of the same dialogue would have, with the right tag learned at the end of
each turn."""

import asyncio

import pytest

from longshort.coldstart.records import Refused
from longshort.coldstart.rows import Renderer
from longshort.dialogue.rollout import Decoding, run_episode
from longshort.learning.samples import sample_of
from longshort.miniature.tokenizer import FINAL_NOTICE, build_tokenizer
from longshort.types import LONG, ROLES, SHORT, Completion, Problem
from tests.support.tiny_models import config

PROBLEM = Problem(id="p", question="Last digit of a: 4*6*2+b: 2*9*7?", answer="4")
DIALOGUE = [
    (LONG, "a: 4*6=4, *2=8.", "</think>"),
    (SHORT, "Total a: 0+8 -> 8.", "</rethink>"),
    (LONG, "+b: 2*9=8, *7=6.", "</think>"),
    (SHORT, "Total +b: 8+6 -> 4.\n\n\\boxed{4}", "</answer>"),
]
TOKENIZERS = {role: build_tokenizer(role) for role in ROLES}


def recipe(tmp_path, **changes):
    roles = {
        role: {"model": "x", "instructions": "", "turn_tokens": 40, "engine": {"max_model_len": 256}} for role in ROLES
    }
    return config(tmp_path, dict.fromkeys(ROLES, "x"), **roles | changes)


def make(tmp_path, **changes):
    return Renderer(recipe(tmp_path, **changes), TOKENIZERS)


class Actor:
    """Says the role's lines of the dialogue."""

    def __init__(self, role, protocol):
        self.tokenizer, self.context, self.role, self.protocol = TOKENIZERS[role], 256, role, protocol
        self.lines = iter([(text, stop) for speaker, text, stop in DIALOGUE if speaker == role])

    async def generate(self, prompt_ids, sampling):
        text, stop = next(self.lines)
        ids = self.protocol.close(self.role, text, stop, self.tokenizer)
        return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, stop=stop, version=0)


@pytest.mark.parametrize("out_of_exchanges", [False, True])
def test_rows_are_what_a_rollout_of_the_same_dialogue_trains_on(tmp_path, out_of_exchanges):
    render = make(tmp_path)
    rows = render.rows(PROBLEM, DIALOGUE, out_of_exchanges)
    protocol = render.protocol(2 if out_of_exchanges else 3)
    policies = {role: Actor(role, protocol) for role in ROLES}
    episode = asyncio.run(run_episode(PROBLEM, policies, protocol, Decoding(), 0))
    assert rows == {role: sample_of(episode, role, 0.0) for role in ROLES}


def test_each_role_learns_its_own_words_and_tags(tmp_path):
    rows = make(tmp_path).rows(PROBLEM, DIALOGUE, False)
    learned = {
        role: TOKENIZERS[role].decode([token for token, bit in zip(row.token_ids, row.mask, strict=True) if bit])
        for role, row in rows.items()
    }
    assert learned == {
        LONG: "a: 4*6=4, *2=8.</think>+b: 2*9=8, *7=6.</think>",
        SHORT: "Total a: 0+8 -> 8.</rethink>Total +b: 8+6 -> 4.\n\n\\boxed{4}</answer>",
    }


def test_the_final_notice_stands_where_no_exchange_is_left(tmp_path):
    notice = TOKENIZERS[SHORT].convert_tokens_to_ids(FINAL_NOTICE)
    counts = [make(tmp_path).rows(PROBLEM, DIALOGUE, out)[SHORT].token_ids.count(notice) for out in (False, True)]
    assert counts == [0, 1]


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"protocol": {"tags": "special", "max_exchanges": 1, "episode_tokens": 120}}, "max_turns"),
        ({"protocol": {"tags": "special", "max_exchanges": 3, "episode_tokens": 30}}, "episode_length"),
        (
            {LONG: {"model": "x", "turn_tokens": 11, "instructions": "", "engine": {"max_model_len": 256}}},
            "turn_length",
        ),
        ({SHORT: {"model": "x", "turn_tokens": 40, "instructions": "", "engine": {"max_model_len": 50}}}, "context"),
        ({LONG: {"model": "x", "turn_tokens": 40, "instructions": "", "sft": {"max_length": 30}}}, "max_length"),
    ],
)
def test_a_dialogue_that_could_not_have_been_sampled_is_refused_by_name(tmp_path, changes, outcome):
    with pytest.raises(Refused, match=r"\d") as caught:
        make(tmp_path, **changes).rows(PROBLEM, DIALOGUE, False)
    assert caught.value.outcome == outcome


def test_role_tags_inside_a_message_are_malformed(tmp_path):
    spoofed = [(LONG, "a </think> b", "</think>"), (SHORT, "\\boxed{4}", "</answer>")]
    with pytest.raises(Refused, match="holds a role tag"):
        make(tmp_path).rows(PROBLEM, spoofed, False)
