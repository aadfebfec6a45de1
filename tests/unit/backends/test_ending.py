"""How a turn ended and its text, from the ids: any end token is "eos", tags and strings are cut off the text only."""

import pytest

from longshort.backends.engines.ending import ending
from longshort.backends.engines.vllm_engine import VllmCore
from longshort.dialogue.plain_text import encode_plain
from longshort.types import Sampling
from tests.support import hand_built

TOKENIZER = hand_built.llama2()
IDS = encode_plain(TOKENIZER, " the a, b.")
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def of(*ids, reason="length", **sampling):
    return ending(TOKENIZER, ids, Sampling(max_tokens=99, **{"stop": ()} | sampling), reason)


def test_a_turn_without_an_end_has_its_whole_text():
    assert of(*IDS) == ("length", " the a, b.")


def test_an_end_token_is_no_part_of_the_text():
    assert of(*IDS, END, reason="eos") == ("eos", " the a, b.")


def test_a_stop_token_is_named_by_its_tag_also_where_it_is_an_end_token():
    assert of(*IDS, END, reason="eos", stop=("</answer>",), stop_token_ids=(END,)) == ("</answer>", " the a, b.")


@pytest.mark.parametrize(("stops", "expected"), [((".", ","), (",", " the a")), (("a, b", ","), (",", " the a"))])
def test_the_string_that_is_complete_first_ends_the_turn(stops, expected):
    assert of(*IDS, stop=stops) == expected


def test_a_string_after_tags_that_are_tokens_ends_the_turn_too():
    assert of(*IDS, stop=("</answer>", "b"), stop_token_ids=(END,)) == ("b", " the a, ")


def test_a_turn_of_nothing_but_an_end_token_has_no_text():
    assert of(END, reason="eos") == ("eos", "")


class Answer:
    """What vLLM returns of a turn: its own text, which another decoder made, is never used."""

    prompt_token_ids, num_cached_tokens, request_id = [1], 0, "0"
    text = "made by another decoder"

    def __init__(self, ids, finish_reason, stop_reason):
        self.token_ids, self.finish_reason, self.stop_reason = ids, finish_reason, stop_reason
        self.logprobs, self.outputs = [dict.fromkeys(ids, self)] * len(ids), [self]

    logprob = -1.0


def completion(answer, **sampling):
    core = object.__new__(VllmCore)
    core._tokenizer, core.version, core.prompt_tokens, core.cached_tokens = TOKENIZER, 0, 0, 0
    core._sampling, core._updates = {"0": Sampling(max_tokens=99, **{"stop": ()} | sampling)}, {"0": []}
    done = core._completion(answer)
    return done.stop, done.text


@pytest.mark.parametrize(
    ("answer", "sampling", "expected"),
    [
        (Answer([*IDS, END], "stop", None), {}, ("eos", " the a, b.")),
        (Answer([*IDS, END], "stop", END), {}, ("eos", " the a, b.")),
        (Answer([*IDS, END], "stop", END), {"stop": (".!",)}, ("eos", " the a, b.")),
        (Answer([*IDS, END], "stop", END), {"stop": ("</a>",), "stop_token_ids": (END,)}, ("</a>", " the a, b.")),
        (Answer([*IDS], "stop", "."), {"stop": ("!", ".")}, (".", " the a, b")),
        (Answer([*IDS], "length", None), {}, ("length", " the a, b.")),
        (Answer([*IDS], "abort", None), {}, ("abort", " the a, b.")),
    ],
)
def test_vllms_reasons_become_ours(answer, sampling, expected):
    assert completion(answer, **sampling) == expected
