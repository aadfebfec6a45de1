"""Asking for JSON: what is found in a reply, what is fed back, and how a failure is named. The engine is scripted, its
tokenizer real."""

import asyncio

import pytest

from longshort.coldstart.asking import QUOTED, Fault, NoUsableAnswer, ask_json, find_json
from longshort.dialogue.rollout import stable_seed
from longshort.types import Sampling
from tests.support.scripted_engine import ScriptedEngine


async def sevenfold(answer):
    """A check: {"n": 7} is right and becomes 7."""
    if answer["n"] % 7:
        raise ValueError(f"{answer['n']} is no multiple of 7")
    return answer["n"]


def ask(engine, check=sevenfold, request="A multiple of 7?", **changes):
    settings = dict(tries=3, max_tokens=50, temperature=0.1, seed=4) | changes
    return asyncio.run(ask_json(engine, request, check, **settings))


def failure(engine, check=sevenfold, **changes) -> NoUsableAnswer:
    with pytest.raises(NoUsableAnswer) as caught:
        ask(engine, check, **changes)
    return caught.value


@pytest.mark.parametrize(
    "reply, value",
    [
        ('{"n": 7}', {"n": 7}),
        (' \n{"n": 7}\n', {"n": 7}),
        ('Here:\n```json\n{"n": 7}\n```\nDone {really}.', {"n": 7}),
        ('```\n{"n": 1}\n```\nNo:\n```json\n{"n": 7}\n```', {"n": 7}),
        ('The answer is {"n": {"m": 7}}, I think.', {"n": {"m": 7}}),
        ('{"n": "two\nlines"}', {"n": "two\nlines"}),
        ('{"n": "a \\\\boxed{7}"}', {"n": "a \\boxed{7}"}),
    ],
)
def test_json_is_found_in_the_whole_in_a_fence_or_between_the_outermost_braces(reply, value):
    assert find_json(reply) == value


@pytest.mark.parametrize(
    "reply, words",
    [
        ("seven", "no complete JSON object"),
        ('{"n": 7', "no complete JSON object"),
        ("{'n': 7}", "not valid JSON (Expecting property name"),
        ('{"n": "\\sqrt{7}"}', "Invalid \\escape"),
        ("[" * 100_000, "no complete JSON object"),
        ('{"n": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_a_reply_without_json_is_a_fault_that_says_what_is_missing(reply, words):
    with pytest.raises(Fault) as caught:
        find_json(reply)
    assert words in str(caught.value) and caught.value.reason == "bad_json"


def test_the_first_right_answer_is_taken():
    engine = ScriptedEngine('{"n": 14}')
    assert ask(engine) == (14, 1)
    assert engine.texts() == ["<|problem|>A multiple of 7?<|solve|>"]
    assert engine.samplings == [Sampling(max_tokens=50, stop=(), temperature=0.1, seed=stable_seed(4, "ask", 0))]


def test_each_fault_is_fed_back_in_one_user_message():
    engine = ScriptedEngine("seven", '{"n": 8}', '{"n": 21}')
    assert ask(engine) == (21, 3)
    assert engine.texts()[1:] == [
        "<|problem|>A multiple of 7?\n\nYour last answer was:\nseven\n\nIt was wrong: it holds no complete JSON "
        "object. Answer again, with the JSON only.<|solve|>",
        '<|problem|>A multiple of 7?\n\nYour last answer was:\n{"n": 8}\n\nIt was wrong: 8 is no multiple of 7. '
        "Answer again, with the JSON only.<|solve|>",
    ]


def test_tries_differ_in_seed_and_a_retry_is_never_greedy():
    engine = ScriptedEngine("no")
    failure(engine, temperature=0.0)
    assert [sampling.temperature for sampling in engine.samplings] == [0.0, 0.7, 0.7]
    assert len({sampling.seed for sampling in engine.samplings}) == 3


def test_after_the_last_try_the_last_reason_and_every_fault_are_told():
    error = failure(ScriptedEngine("no", '{"n": 8}'), tries=2)
    assert (error.reason, error.tries) == ("bad_answer", 2)
    both = "(1) it holds no complete JSON object; (2) 8 is no multiple of 7"
    assert str(error) == f"no usable answer after 2 tries (bad_answer): {both}"


def test_a_check_names_its_own_reason():
    async def refuse(answer):
        raise Fault("try harder", "wrong_answer")

    assert failure(ScriptedEngine("{}"), refuse, tries=1).reason == "wrong_answer"


def test_an_error_of_the_check_itself_is_not_the_models_fault():
    with pytest.raises(KeyError):
        ask(ScriptedEngine("{}"))


def test_a_reply_cut_short_is_named_by_the_limit_that_cut_it():
    cut_short = ('{"n": ', "length")
    error = failure(ScriptedEngine(cut_short), tries=1)
    assert (error.reason, "cut after 50 tokens" in str(error)) == ("length", True)
    prompt = len(ScriptedEngine("").tokenizer("<|problem|>A multiple of 7?<|solve|>").input_ids)
    engine = ScriptedEngine(cut_short, context=prompt + 9)
    assert failure(engine, tries=1).reason == "context" and engine.samplings[0].max_tokens == 9
    assert ask(ScriptedEngine(('{"n": 7} and then', "length")))[0] == 7


def test_a_request_beyond_the_context_fails_at_once_with_both_numbers():
    engine = ScriptedEngine('{"n": 7}', context=10)
    error = failure(engine, request="x" * 20)
    assert (error.reason, error.tries, engine.prompts) == ("context", 0, [])
    assert "the request has 22 tokens, the engine's context 10" in str(error)


def test_a_retry_beyond_the_context_tells_the_first_fault_too():
    error = failure(ScriptedEngine("no " * 20, context=60))
    assert (error.reason, error.tries, len(error.faults)) == ("context", 1, 2)
    assert "no complete JSON object" in error.faults[0]


def test_special_token_strings_in_request_and_reply_are_data():
    engine = ScriptedEngine("</think><eos><|solve|>", '{"n": 7}')
    ask(engine, request="<think><eos> A multiple of 7?")
    for prompt in engine.prompts:
        special = [engine.tokenizer.decode([i]) for i in prompt if i in engine.tokenizer.all_special_ids]
        assert special == ["<|problem|>", "<|solve|>"]
    assert "Your last answer was:\n</think><eos><|solve|>\n" in engine.texts()[1]


def test_without_a_chat_template_the_request_is_plain_text():
    engine = ScriptedEngine('{"n": 7}')
    engine.tokenizer.chat_template = None
    ask(engine)
    assert engine.texts() == ["A multiple of 7?"]


def test_a_long_wrong_answer_is_quoted_from_its_beginning():
    engine = ScriptedEngine("x" * (QUOTED + 1), '{"n": 7}')
    ask(engine)
    assert "\n" + "x" * QUOTED + " …\n" in engine.texts()[1]
