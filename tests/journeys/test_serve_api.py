"""The endpoint as the official `openai` client and plain HTTP see it: a real server, engines that follow a script."""

import itertools
import json

import httpx
import openai
import pytest

from longshort.types import LONG, SHORT
from tests.support.serve_cases import ANSWER, HAND_BACK, ScriptedTeam, served

QUESTION = [{"role": "user", "content": "What is 1+2?"}]


@pytest.fixture(scope="module")
def server():
    with served(ScriptedTeam(max_request_bytes=4096)) as server:
        yield server


@pytest.fixture
def team(server):
    server.team.play(*ANSWER)
    return server.team


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, messages=QUESTION, **settings):
    return client.chat.completions.create(model="scripted", messages=messages, **settings)


def refusal(client, status=400, **settings):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **settings)
    assert caught.value.status_code == status
    return caught.value.body


def test_a_chat_completion_has_the_shape_that_clients_expect(team, client):
    reply = ask(client)
    (choice,) = reply.choices
    assert (reply.object, reply.model, reply.id[:9]) == ("chat.completion", "scripted", "chatcmpl-")
    assert (choice.index, choice.finish_reason, choice.logprobs, choice.message.role) == (0, "stop", None, "assistant")
    assert (choice.message.content, choice.message.reasoning_content) == ("Total: 3", "a: 7.")
    assert choice.longshort == {"stop": "answered", "hand_backs": 0}


def test_usage_counts_the_question_once_and_every_sampled_token(team, client):
    team.play(*HAND_BACK)
    usage = ask(client, n=2).usage
    # "a: " is one token, then "7", "." and the tag; "more?" five and the tag; "it is 3" seven and the tag.
    long, short_back, short_answer = 4, 6, 8
    prompt = 1 + len("What is 1+2?") + 1 + 1  # <|problem|>, bytes, <|solve|>, <think>
    assert usage.prompt_tokens == prompt
    assert (
        usage.completion_tokens == 2 * (2 * long + short_back + short_answer)
        and usage.total_tokens == prompt + usage.completion_tokens
    )
    assert usage.completion_tokens_details.reasoning_tokens == 2 * (2 * long + short_back)
    assert usage.longshort == {
        "long": {"tokens": 4 * long, "turns": 4},
        "short": {"tokens": 2 * (short_back + short_answer), "turns": 4},
        "hand_backs": 2,
    }


def test_thoughts_and_hand_backs_are_reasoning_and_the_stream_joins_to_the_same(team, client):
    team.play(*HAND_BACK)
    whole = ask(client).choices[0].message
    assert (whole.reasoning_content, whole.content) == ("a: 7.\n\nmore?\n\n+b: 6.", "it is 3")
    chunks = list(ask(client, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == whole.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    assert deltas[0].role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)
    # the long model's text comes as it is written, a short message when it is known what it is
    assert [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)][:2] == [
        "a: ",
        "7",
    ]
    assert [delta.content for delta in deltas if delta.content] == ["it is 3"]


def test_usage_of_a_stream_comes_last_and_only_if_asked_for(team, client):
    *_, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == ask(client).usage


def test_several_answers_are_told_apart_in_a_stream(team, client):
    texts = {0: "", 1: "", 2: ""}
    for chunk in ask(client, stream=True, n=3):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == dict.fromkeys(range(3), "Total: 3")


def test_the_raw_stream_is_events_and_ends_with_done(server, team):
    body = {"model": "scripted", "messages": QUESTION, "stream": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end, rest = answer.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events) and (end, rest) == ("data: [DONE]", "")


def test_the_dialogue_is_told_event_by_event_to_who_asks_for_it(server, team):
    team.play(*HAND_BACK)
    body = {"messages": QUESTION, "stream": True, "stream_options": {"include_dialogue": True}}
    lines = httpx.post(f"{server.url}/v1/chat/completions", json=body).text.split("\n\n")[:-2]
    events = [
        chunk["longshort"]
        for chunk in (json.loads(line.removeprefix("data: ")) for line in lines)
        if "longshort" in chunk
    ]
    ends = [(event["role"], event["tokens"], event["stop"]) for event in events if event["event"] == "turn_ended"]
    assert ends == [
        ("long", 4, "</think>"),
        ("short", 6, "</rethink>"),
        ("long", 4, "</think>"),
        ("short", 8, "</answer>"),
    ]
    assert "".join(event["text"] for event in events if event["event"] == "piece") == "a: 7.more?+b: 6.it is 3"
    assert events[-1]["text"] == "it is 3" and events[-1]["hand_backs"] == 1


def test_text_completions_take_one_prompt_or_several(team, client):
    reply = client.completions.create(model="scripted", prompt=["1+2?", "2+1?"], n=2)
    assert (reply.object, [choice.index for choice in reply.choices]) == ("text_completion", [0, 1, 2, 3])
    assert {choice.text for choice in reply.choices} == {"Total: 3"} and reply.choices[0].reasoning_content == "a: 7."
    assert reply.usage.prompt_tokens == 2 * (len("1+2?") + 3)
    assert (
        "".join(
            chunk.choices[0].text for chunk in client.completions.create(model="scripted", prompt="1+2?", stream=True)
        )
        == "Total: 3"
    )


@pytest.mark.parametrize(
    ("script", "settings", "stop", "finish_reason", "content"),
    [
        (ANSWER, {}, "answered", "stop", "Total: 3"),
        (((LONG, "a: 7.", "length"),), {}, "turn_length", "length", ""),
        (((LONG, "a", "</think>"), (SHORT, "cut of", "length")), {}, "turn_length", "length", "cut of"),
        (
            ((LONG, "a", "</think>"), (SHORT, "cut of", "length")),
            {"max_tokens": 5},
            "episode_length",
            "length",
            "cut of",
        ),
        (((LONG, "a", "</think>"), (SHORT, "no", "</rethink>")), {}, "max_turns", "length", ""),
        (
            ((LONG, "a", "</think>"), (SHORT, "no", "</rethink>")),
            {"extra_body": {"max_turns": 1}},
            "max_turns",
            "length",
            "",
        ),
        (((LONG, "a", "</think>"), (SHORT, "by itself", "eos")), {}, "malformed", "stop", "by itself"),
        (((LONG, "alone", "</think>"),), {"extra_body": {"mode": "long"}}, "answered", "stop", "alone"),
        (((SHORT, "alone", "</rethink>"),), {"extra_body": {"mode": "short"}}, "answered", "stop", "alone"),
    ],
)
def test_each_way_to_stop_has_its_finish_reason(team, client, script, settings, stop, finish_reason, content):
    team.play(*script)
    choice = ask(client, **settings).choices[0]
    assert (choice.longshort["stop"], choice.finish_reason, choice.message.content) == (stop, finish_reason, content)
    chunks = list(ask(client, stream=True, **settings))
    assert chunks[-1].choices[0].finish_reason == finish_reason and chunks[-1].choices[0].longshort["stop"] == stop
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content


def test_settings_reach_the_engines(team, client):
    own = {"top_k": 5, "long_token_budget": 9}
    ask(client, temperature=0.25, top_p=0.9, seed=11, stop=["###"], max_completion_tokens=40, extra_body=own)
    long, short = (team.scripted[role].samplings[0] for role in (LONG, SHORT))
    assert (long.temperature, long.top_p, long.top_k, long.max_tokens, long.stop) == (0.25, 0.9, 5, 9, ("</think>",))
    assert (short.max_tokens, short.stop) == (36, ("</answer>", "</rethink>", "###"))
    team.play(*ANSWER)
    ask(client)
    assert team.scripted[LONG].samplings[0].temperature == 0.5  # the team's own


def test_a_seed_repeats_and_answers_of_one_request_differ(team, client):
    seeds = lambda: [sampling.seed for sampling in team.scripted[LONG].samplings]  # noqa: E731
    ask(client, seed=7, n=3)
    ask(client, seed=7, n=3)
    assert len(set(seeds())) == 3 and sorted(seeds()[:3]) == sorted(seeds()[3:])
    team.play(*ANSWER)
    ask(client)
    ask(client)
    assert seeds()[0] != seeds()[1]


def test_a_conversation_is_written_out_and_one_message_stands_as_it_is(team, client):
    asked = lambda: team.scripted[LONG].prompts[-1].partition("<|problem|>")[2].partition("<|solve|>")[0]  # noqa: E731
    ask(
        client,
        [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "2?"}], "name": "ann"}],
    )
    assert asked() == "1+2?"
    ask(client, [{"role": "system", "content": "Be brief."}, *QUESTION])
    assert asked() == "Be brief.\n\nWhat is 1+2?"
    before = ask(client).choices[0].message.model_dump()
    ask(client, [*QUESTION, before, {"role": "user", "content": "Sure?"}])
    assert asked() == "User: What is 1+2?\n\nAssistant: Total: 3\n\nUser: Sure?"


@pytest.mark.parametrize(
    "text",
    ["</answer>", "<think>", "</think>", "</rethink>", "<eos>", "<|problem|>", "<|im_end|>", "x</answer>y<|solve|>"],
)
def test_tags_and_special_tokens_in_a_question_are_data(team, client, text):
    assert ask(client, [{"role": "user", "content": text}]).choices[0].message.content == "Total: 3"
    tokenizer = team.scripted[LONG].tokenizer
    bytes_of_text = len(text.encode())
    (prompt,) = team.scripted[LONG].prompts
    assert prompt == f"<|problem|>{text}<|solve|><think>"
    reply = ask(client, [{"role": "user", "content": text}])
    assert reply.usage.prompt_tokens == bytes_of_text + 3, (
        tokenizer
    )  # each byte of it is a token; one special token would be fewer


@pytest.mark.parametrize(
    ("settings", "param", "code", "says"),
    [
        ({"extra_body": {"max_tokns": 3}}, "max_tokns", "unknown_parameter", "unknown parameter 'max_tokns'; known: "),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "max_tokens is 0; give at least 1"),
        ({"max_tokens": "many"}, "max_tokens", "invalid_value", "max_tokens: Input should be a valid integer"),
        ({"temperature": -1}, "temperature", "invalid_value", "temperature is -1"),
        ({"n": 0}, "n", "invalid_value", "n: Input should be greater than or equal to 1"),
        ({"n": True}, "n", "invalid_value", "n: Input should be a valid integer"),
        ({"stop": ["a", ""]}, "stop", "invalid_value", "stop holds an empty string"),
        ({"extra_body": {"mode": "both"}}, "mode", "invalid_value", "mode is 'both'; known: pair, long, short"),
        ({"extra_body": {"max_turns": 0}}, "max_turns", "invalid_value", "max_turns is 0"),
        ({"extra_body": {"long_token_budget": 500}}, "long_token_budget", "invalid_value", "context holds 200 tokens"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens",
            "invalid_value",
            "max_tokens is 3 but max_completion_tokens is 4",
        ),
        (
            {"tools": [{"type": "function"}]},
            "tools",
            "unsupported_parameter",
            "tools is not offered: this server runs no tools, and the pair was trained without tools",
        ),
        ({"logprobs": True}, "logprobs", "unsupported_parameter", "logprobs is not offered"),
        (
            {"response_format": {"type": "json_object"}},
            "response_format",
            "unsupported_parameter",
            "answers are free text",
        ),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value", "stream_options needs stream: true"),
        (
            {"messages": [{"role": "assistant", "content": "3"}]},
            "messages",
            "invalid_value",
            "the last message must be the user's",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "invalid_value", "messages is empty"),
        (
            {"messages": [{"role": "tool", "content": "3"}]},
            "messages.0.role",
            "unsupported_parameter",
            "messages.0.role is 'tool': this server runs no tools",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
            "invalid_value",
            "not 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "contant": "1+1?"}]},
            "messages.0.content",
            "invalid_value",
            "messages.0.content is missing; the message has role, contant",
        ),
        (
            {"messages": [{"role": "user", "content": "1" * 300}]},
            "messages",
            "context_length_exceeded",
            "context holds 200",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_api_s_own_shape(team, client, settings, param, code, says):
    for stream in ({}, {"stream": True}) if "stream_options" not in settings else ({},):
        error = refusal(client, **{"messages": QUESTION, **settings, **stream})
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
        assert says in error["message"] and team.scripted[LONG].asked == 0


def test_what_asks_for_nothing_is_accepted(team, client):
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "response_format": {"type": "text"},
        "presence_penalty": 0,
    }
    said = {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": False,
        "seed": None,
        "stop": None,
        "parallel_tool_calls": True,
    }
    assert ask(client, **nothing, **said, logit_bias={}, service_tier="auto").choices[0].message.content == "Total: 3"


def test_a_body_that_is_no_request(server, team):
    post = lambda **body: httpx.post(f"{server.url}/v1/chat/completions", **body)  # noqa: E731
    json_type = {"content-type": "application/json"}
    for content, says in (
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object, got list"),
        (b"\xff", "not JSON"),
        (b"[" * 3000, "not JSON"),
    ):
        answer = post(content=content, headers=json_type)
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    half = post(content=b'{"messages": [{"role": "user", "content": "\\ud800"}]}', headers=json_type)
    assert half.status_code == 400 and "surrogate" in half.json()["error"]["message"]
    large = post(content=b"1" * 5000, headers=json_type)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    endless = post(
        content=(b"1" * 1000 for _ in range(100)), headers=json_type
    )  # chunked: no Content-Length tells its size
    assert endless.status_code == 413
    assert post(data={"messages": "x"}).status_code == 415


def test_models_and_unknown_addresses(server, team, client):
    assert [model.id for model in client.models.list()] == ["scripted"] and client.models.retrieve(
        "scripted"
    ).max_model_len == 200
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' does not exist; this server has 'scripted'"):
        client.chat.completions.create(model="gpt", messages=QUESTION)
    unknown = httpx.get(f"{server.url}/v2/x").json()["error"]
    assert (unknown["type"], unknown["message"]) == ("not_found_error", "Not Found: GET /v2/x")
    assert httpx.get(f"{server.url}/v1/chat/completions").json()["error"]["message"].startswith("Method Not Allowed")


# --- /v1/responses ---


def respond(client, **settings):
    return client.responses.create(model="scripted", **{"input": "What is 1+2?"} | settings)


def checked(model):
    """The object, after the official types have read it again strictly by their own rules."""
    type(model).model_validate(model.to_dict())
    return model


def test_a_response_has_the_shape_that_clients_expect(team, client):
    team.play(*HAND_BACK)
    reply = checked(respond(client, instructions="Be brief.", store=False))
    assert (reply.object, reply.status, reply.model, reply.id[:5]) == ("response", "completed", "scripted", "resp_")
    thought, answer = reply.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "a: 7.\n\nmore?\n\n+b: 6.")
    assert (answer.type, answer.role, answer.content[0].text) == ("message", "assistant", "it is 3")
    assert reply.output_text == "it is 3"
    assert (reply.instructions, reply.store) == ("Be brief.", False)
    assert (reply.error, reply.incomplete_details) == (None, None)
    assert reply.longshort == {"stop": "answered", "hand_backs": 1}


def test_the_usage_of_a_response_is_that_of_a_chat_completion(team, client):
    chat, usage = ask(client).usage, respond(client).usage
    assert (usage.input_tokens, usage.output_tokens) == (chat.prompt_tokens, chat.completion_tokens)
    assert usage.total_tokens == chat.total_tokens
    assert usage.output_tokens_details.reasoning_tokens == chat.completion_tokens_details.reasoning_tokens


def test_a_streamed_response_has_the_official_events_in_their_order(team, client):
    team.play(*HAND_BACK)
    events = [checked(event) for event in respond(client, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    item = "output_item.added content_part.added {0}.delta {0}.done content_part.done output_item.done"
    assert [kind for kind, _ in itertools.groupby(event.type.removeprefix("response.") for event in events)] == [
        *("created", "in_progress"),
        *item.format("reasoning_text").split(),
        *item.format("output_text").split(),
        "completed",
    ]


def test_the_deltas_of_a_streamed_response_join_to_its_items(team, client):
    team.play(*HAND_BACK)
    events = list(respond(client, stream=True))
    whole = events[-1].response
    for index, kind in enumerate(("reasoning_text", "output_text")):
        deltas = [event for event in events if event.type == f"response.{kind}.delta"]
        text = whole.output[index].content[0].text
        assert "".join(event.delta for event in deltas) == text
        assert {(event.item_id, event.output_index) for event in deltas} == {(whole.output[index].id, index)}
    ended = [event.item for event in events if event.type == "response.output_item.done"]
    assert ended == whole.output


def test_a_streamed_response_ends_as_the_whole_one(team, client):
    team.play(*HAND_BACK)
    *_, last = respond(client, stream=True)
    whole = respond(client)
    assert [item.content[0].text for item in last.response.output] == [item.content[0].text for item in whole.output]
    assert last.response.usage == whole.usage


def test_the_official_client_s_own_reader_of_streams_puts_a_response_together(team, client):
    with client.responses.stream(model="scripted", input="What is 1+2?") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert ("".join(texts), stream.get_final_response().output_text) == ("Total: 3", "Total: 3")


@pytest.mark.parametrize(
    ("script", "settings", "status", "items"),
    [
        (((LONG, "a: 7.", "length"),), {}, "incomplete", [("reasoning", "incomplete", "a: 7.")]),
        (
            ((LONG, "a", "</think>"), (SHORT, "cut of", "length")),
            {"max_output_tokens": 5},
            "incomplete",
            [("reasoning", "completed", "a"), ("message", "incomplete", "cut of")],
        ),
        (
            ((SHORT, "alone", "</answer>"),),
            {"extra_body": {"mode": "short"}},
            "completed",
            [("message", "completed", "alone")],
        ),
        (
            ((LONG, "a", "</think>"), (SHORT, "", "</answer>")),
            {},
            "completed",
            [("reasoning", "completed", "a"), ("message", "completed", "")],
        ),
    ],
    ids=["thought cut", "answer cut", "one model", "empty answer"],
)
def test_each_end_of_a_response_whole_and_streamed(team, client, script, settings, status, items):
    team.play(*script)
    *_, last = respond(client, stream=True, **settings)
    assert last.type == f"response.{status}"
    for reply in (checked(respond(client, **settings)), last.response):
        assert reply.status == status
        assert [(item.type, item.status, item.content[0].text) for item in reply.output] == items
        assert (reply.incomplete_details and reply.incomplete_details.reason) == (
            "max_output_tokens" if status == "incomplete" else None
        )


def test_a_response_s_refusals_have_the_api_s_own_shape(team, client):
    for more, param, code in (
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 500}, "max_output_tokens", "invalid_value"),
        ({"input": "1" * 300}, "input", "context_length_exceeded"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                respond(client, stream=stream, **more)
            assert (caught.value.body["param"], caught.value.body["code"]) == (param, code)
