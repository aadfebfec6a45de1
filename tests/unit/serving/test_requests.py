"""The bodies of requests: what asks for nothing, what is refused and at which place, what a conversation becomes."""

import json

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from longshort.serving.errors import ApiError
from longshort.serving.keys import ABOUT_THE_REQUEST, NEUTRAL, NOT_OFFERED
from longshort.serving.requests import LEVELS, ChatRequest, TextRequest, read_request
from longshort.serving.responses import ResponseRequest
from longshort.team.conversation import ImpossibleQuery

QUESTION = [{"role": "user", "content": "1+2?"}]


def chat(**more) -> ChatRequest:
    return read_request(ChatRequest, json.dumps({"messages": QUESTION} | more).encode())


def response(**more) -> ResponseRequest:
    return read_request(ResponseRequest, json.dumps({"input": "1+2?"} | more).encode())


def refused(read, **more) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**more)
    assert caught.value.status == 400
    return caught.value


def asked(messages) -> str:
    return chat(messages=messages).questions[0]


# --- what asks for nothing ---


@pytest.mark.parametrize("key", sorted(key for key in NOT_OFFERED if "." not in key and key != "n"))
def test_null_and_empty_values_of_a_known_key_ask_for_nothing(key):
    empty = [None, "", []] if key == "web_search_options" else [None, "", [], {}]  # an empty object searches the web
    assert [chat(**{key: value}) for value in empty] == [chat()] * len(empty)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_p", 0),
        ("min_p", 0.0),
        ("repetition_penalty", 1.0),
        ("length_penalty", 1.0),
        ("frequency_penalty", 0),
        ("presence_penalty", -0.0),
        ("min_tokens", 0),
        ("top_logprobs", 0),
        ("n", 1),
        ("best_of", 1),
        ("logprobs", False),
        ("echo", False),
        ("ignore_eos", False),
        ("use_beam_search", False),
        ("skip_special_tokens", True),
        ("add_generation_prompt", True),
        ("include_reasoning", True),
        ("return_token_ids", False),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("reasoning_effort", "medium"),
        ("verbosity", "medium"),
        ("store", False),
        ("metadata", {}),
        ("text", {"format": {"type": "text"}, "verbosity": "medium"}),
        ("reasoning", {"effort": None, "summary": None}),
        ("stream_options", {}),
        ("stream_options", {"include_usage": False, "include_obfuscation": False}),
        ("stop", ""),
        ("stop", []),
        ("some_key_of_another_server", {}),
        ("some_key_of_another_server", None),
    ],
)
def test_a_neutral_value_asks_for_nothing(key, value):
    assert chat(**{key: value}).queries()[0].temperature is None


@pytest.mark.parametrize("options", [{"include_obfuscation": False}, {"continuous_usage_stats": False}])
def test_stream_options_that_ask_for_nothing_leave_the_usage_on(options):
    assert chat(stream=True, stream_options={"include_usage": True} | options).stream_options.include_usage


def test_top_k_of_minus_one_is_vllm_s_way_to_switch_it_off():
    assert chat(top_k=-1).queries()[0].top_k == 0


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "seed", "n", "top_k", "max_turns"])
def test_a_whole_number_may_be_written_with_a_point(key):
    assert getattr(chat(**{key: 3.0}), key) == 3


def test_a_number_with_a_fraction_is_no_integer():
    assert str(refused(chat, max_tokens=3.5)) == "max_tokens: Input should be a valid integer"


# --- what is refused ---


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"logprobs": 0}, "logprobs", "log-probs of an answer"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "without penalties"),
        ({"repetition_penalty": 0}, "repetition_penalty", "without penalties"),
        ({"min_p": 0.1}, "min_p", "temperature, top_p and top_k"),
        ({"min_tokens": 5}, "min_tokens", "ends by the protocol"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "free text"),
        ({"include_reasoning": False}, "include_reasoning", "beside the answer"),
        ({"web_search_options": {}}, "web_search_options", "runs no tools"),
        ({"tool_choice": "required"}, "tool_choice", "runs no tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "max_turns or long_token_budget"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "max_turns or long_token_budget"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "writes the prompts"),
    ],
)
def test_a_key_that_asks_for_what_is_not_offered_is_refused_with_the_reason(more, param, says):
    error = refused(chat, **more)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert str(error).startswith(f"{param} is not offered: ") and says in str(error)


def test_stream_options_that_ask_are_refused_at_their_level():
    error = refused(chat, stream=True, stream_options={"include_obfuscation": True})
    assert str(error).startswith("stream_options.include_obfuscation is not offered: chunks are sent as they come")


def test_an_unknown_key_is_refused_with_the_keys_known_at_its_level():
    error = refused(chat, stream=True, stream_options={"include_usgae": True})
    assert (error.param, error.code) == ("stream_options.include_usgae", "unknown_parameter")
    assert str(error) == (
        "unknown parameter 'stream_options.include_usgae'; known there: include_usage, include_dialogue, "
        "include_obfuscation, continuous_usage_stats"
    )
    assert "; known: model, temperature, top_p" in str(refused(chat, max_tokns=3))


@pytest.mark.parametrize("value", [0, False, 1, "x", [0]])
def test_an_unknown_key_may_not_be_a_misspelt_setting(value):
    assert refused(chat, temprature=value).code == "unknown_parameter"


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_refused_under_the_name_by_which_it_was_sent(key):
    body = chat(**{key: 0})
    with pytest.raises(ImpossibleQuery) as caught:
        body.queries()
    error = body.refusal(caught.value)
    assert (error.param, str(error)) == (key, f"{key} is 0; give at least 1, or leave it out")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (ChatRequest, "messages", [{"role": "user", "content": "a\ud83d"}]),
        (TextRequest, "prompt", ["1+2?", " "]),
        (ResponseRequest, "input", ""),
    ],
)
def test_a_question_is_refused_under_the_name_by_which_it_was_sent(kind, key, value):
    body = read_request(kind, json.dumps({key: value}).encode())
    with pytest.raises(ImpossibleQuery) as caught:
        body.queries()
    error = body.refusal(caught.value)
    assert error.param == key
    assert str(error).startswith(f"{key} ")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_are_refused_with_the_reason(prompt):
    with pytest.raises(ApiError) as caught:
        read_request(TextRequest, json.dumps({"prompt": prompt}).encode())
    assert str(caught.value) == (
        "prompt is a list of token ids: two models have two vocabularies, so a token id means nothing here; send text"
    )


@pytest.mark.parametrize("key", ["text", "reasoning", "stream_options"])
def test_a_key_with_keys_of_its_own_must_be_an_object(key):
    assert str(refused(response, **{key: "x"})) == f"{key} must be an object, not 'x'"


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ChatRequest, chat_params.CompletionCreateParamsBase),
        (TextRequest, text_params.CompletionCreateParamsBase),
        (ResponseRequest, response_params.ResponseCreateParamsBase),
    ],
    ids=lambda each: each.__name__,
)
def test_every_key_of_the_official_client_is_read_passed_over_or_refused_with_a_reason(kind, params):
    known = {*kind.model_fields, *LEVELS, *NOT_OFFERED, *ABOUT_THE_REQUEST}
    assert params.__annotations__.keys() <= known


def test_every_neutral_value_belongs_to_a_key_that_is_not_offered():
    assert NEUTRAL.keys() <= NOT_OFFERED.keys()


@pytest.mark.parametrize(
    "more", [{"\ud800": 1}, {"stream_options": {"\ud800": 1}}, {"messages": [{"\ud800": 1, "role": "user"}]}]
)
def test_a_key_with_half_a_character_is_refused_in_a_text_that_can_be_sent(more):
    assert "\\ud800" in json.dumps(refused(chat, **more).body, ensure_ascii=False).encode().decode()


def test_a_refusal_repeats_little_of_a_large_value():
    assert len(str(refused(chat, messages=[{"role": "user", "content": ["x" * 10_000]}]))) < 200


# --- messages ---


@pytest.mark.parametrize(
    "more",
    [
        {"id": "msg_1"},
        {"opts": {"temperature": 0}},
        {"name": "ann"},
        {"annotations": [{"type": "url_citation"}]},
        {"audio": None},
        {"refusal": None},
        {"tool_calls": []},
        {"tool_calls": None},
        {"function_call": None},
        {"reasoning_content": "a thought"},
        {"reasoning": "a thought"},
        {"some_key_of_a_client": 7},
    ],
    ids=lambda more: next(iter(more)),
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_keys_of_a_client_s_history_change_nothing_that_the_pair_reads(role, more):
    history = [{"role": role, "content": "earlier"}, *QUESTION]
    assert asked([history[0] | more, *QUESTION]) == asked(history)


def test_a_refusal_is_what_the_assistant_said_as_a_part_or_as_a_key():
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]}
    key = {"role": "assistant", "content": None, "refusal": "I cannot."}
    for refusal in (part, key):
        assert asked([*QUESTION, refusal, *QUESTION]) == "User: 1+2?\n\nAssistant: I cannot.\n\nUser: 1+2?"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "messages.1.tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages.1.function_call"),
    ],
)
def test_calls_of_tools_in_a_history_are_refused_where_they_stand(message, param):
    error = refused(chat, messages=[*QUESTION, message, *QUESTION])
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert str(error).startswith(f"{param} is not offered: this server runs no tools")
    assert "known there: role, content, refusal" in str(error)


@pytest.mark.parametrize("role", ["tool", "function"])
def test_results_of_tools_in_a_history_are_refused_where_they_stand(role):
    error = refused(chat, messages=[*QUESTION, {"role": role, "content": "3", "tool_call_id": "1"}, *QUESTION])
    assert (error.param, error.code) == ("messages.1.role", "unsupported_parameter")
    assert str(error).startswith(f"messages.1.role is '{role}': this server runs no tools")
    assert str(error).endswith("; known there: system, developer, user, assistant")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "contant": "x"}, "messages.0.content is missing; the message has role, contant"),
        ({"role": "user", "content": None}, "messages.0.content is missing; the message has role"),
        ({"role": "critic", "content": "x"}, "messages.0.role is 'critic'; known: system, developer, user, assistant"),
        ({"content": "x"}, "messages.0.role is None; known: system, developer, user, assistant"),
        ("x", 'messages.0: send {"role": "user", "content": "…"}, not \'x\''),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            'messages.0.content: the models read text only: send {"type": "text", "text": "…"}, not \'image_url\'',
        ),
        (
            {"role": "user", "content": [{"type": ["text"]}]},
            'messages.0.content: the models read text only: send {"type": "text", "text": "…"}, not [\'text\']',
        ),
        (
            {"role": "user", "content": 7},
            'messages.0.content: the models read text only: send {"type": "text", "text": "…"}, not 7',
        ),
    ],
)
def test_a_message_that_cannot_be_read_is_refused_where_it_stands(message, says):
    assert str(refused(chat, messages=[message])) == says


def test_many_system_messages_are_read_in_a_moment():
    many = [{"role": "system", "content": ""}, {"role": "user", "content": "x"}] * 20_000
    assert asked(many).endswith("User: x")


# --- /v1/completions and /v1/responses ---


def test_an_empty_prompt_is_not_taken_for_none():
    body = read_request(TextRequest, b'{"prompt": ""}')
    with pytest.raises(ImpossibleQuery, match="question is empty"):
        body.queries()


@pytest.mark.parametrize(
    "items",
    [
        "1+2?",
        [{"role": "user", "content": "1+2?"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+2?"}]}],
        [{"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "1+2?", "status": None}],
    ],
)
def test_an_input_is_text_or_messages(items):
    assert response(input=items).questions == ["1+2?"]


def test_instructions_stand_before_the_input():
    assert response(instructions="Be brief.").questions == ["Be brief.\n\n1+2?"]


def test_what_a_response_put_out_may_be_sent_back():
    said = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "a: 7."}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "3", "annotations": [], "logprobs": []}],
        },
    ]
    first, more = {"role": "user", "content": "1+2?"}, {"role": "user", "content": "Sure?"}
    assert response(input=[first, *said, more]).questions == ["User: 1+2?\n\nAssistant: 3\n\nUser: Sure?"]


def test_the_limit_and_the_sampling_of_a_response_reach_the_query():
    (query,) = response(max_output_tokens=9, temperature=0, top_p=0.5, mode="short").queries()
    assert (query.max_tokens, query.temperature, query.top_p, query.mode) == (9, 0, 0.5, "short")


@pytest.mark.parametrize(
    "more",
    [
        {"store": False},
        {"background": False},
        {"include": []},
        {"truncation": "disabled"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"text": {"format": {"type": "text"}}},
        {"reasoning": {"effort": "medium", "summary": None}},
        {"stream_options": {"include_obfuscation": False}},
        {"n": 1},
        {"previous_response_id": None},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_response_may_be_asked_for_nothing_more(more):
    assert response(**more) == response()


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored here; send the whole"),
        ({"conversation": "conv_1"}, "conversation", "nothing is stored"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "input.0.type", "nothing is stored"),
        ({"input": [{"type": "compaction"}]}, "input.0.type", "nothing is stored"),
        ({"input": [{"type": "mcp_call"}]}, "input.0.type", "runs no tools"),
        ({"input": [{"type": "note"}]}, "input.0.type", "input.0 is a 'note'; known: message, reasoning"),
        ({"background": True}, "background", "answers while the client waits"),
        ({"tools": [{"type": "web_search"}]}, "tools", "runs no tools"),
        ({"input": [{"type": "function_call_output", "output": "3"}]}, "input.0.type", "runs no tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content", "text only"),
        ({"input": [{"role": "assistant", "content": "3"}]}, "input", "the last message must be the user's"),
        ({"input": []}, "input", "the last message must be the user's"),
        ({"input": 7}, "input", "Input should be a string or a list of messages"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "free text"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "as it was written"),
        ({"reasoning": {"effrt": "high"}}, "reasoning.effrt", "known there: effort, mode, summary"),
        ({"truncation": "auto"}, "truncation", "never cut"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "nothing beside"),
        ({"n": 2}, "n", "one answer"),
        ({"max_tokens": 5}, "max_tokens", "known: model, "),
        ({"stream": True, "stream_options": {"include_dialogue": True}}, "stream_options.include_dialogue", "unknown"),
    ],
)
def test_what_a_response_cannot_have_is_refused_with_the_reason(more, param, says):
    with pytest.raises(ApiError) as caught:
        response(**more).queries()
    assert caught.value.param == param and says in str(caught.value)
