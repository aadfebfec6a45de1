"""The endpoint as libraries see it that many programs call models through; each that is not installed is skipped.

    pip install litellm langchain-openai instructor

Their requests hold what no list foresees: keys of their own, empty values, histories that they put together.
"""

import asyncio
import os

import pytest

from longshort.types import LONG, SHORT
from tests.support.serve_cases import HAND_BACK, ScriptedTeam, served

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}  # no test reaches the network
QUESTION = "What is 1+2?"
ASKED = [{"role": "user", "content": QUESTION}]
REASONING, ANSWER = "a: 7.\n\nmore?\n\n+b: 6.", "it is 3"
HISTORY = f"Be brief.\n\nUser: {QUESTION}\n\nAssistant: {ANSWER}\n\nUser: Sure?"


@pytest.fixture(scope="module")
def server():
    with served(ScriptedTeam(context=4000)) as server:
        yield server


@pytest.fixture
def team(server):
    server.team.play(*HAND_BACK)
    return server.team


@pytest.fixture
def where(server, team):
    return {"base_url": f"{server.url}/v1", "api_key": "none"}


def read_by_the_pair(team) -> str:
    """The question of the newest dialogue, as the long model read it."""
    return team.scripted[LONG].prompts[-1].partition("<|problem|>")[2].partition("<|solve|>")[0]


def joined(pieces) -> str:
    return "".join(piece or "" for piece in pieces)


# --- openai ---


@pytest.fixture
def openai(where):
    return pytest.importorskip("openai", reason="openai is not installed").AsyncOpenAI(**where)


def test_openai_asks_side_by_side_in_both_apis(openai):
    async def both():
        async with openai as client:
            chat = client.chat.completions.create(model="scripted", messages=ASKED)
            return await asyncio.gather(chat, client.responses.create(model="scripted", input=QUESTION))

    chat, response = asyncio.run(both())
    assert (chat.choices[0].message.content, response.output_text) == (ANSWER, ANSWER)


def test_openai_puts_a_streamed_response_together(openai):
    async def streamed():
        async with openai as client, client.responses.stream(model="scripted", input=QUESTION) as stream:
            return await stream.get_final_response()

    thought, answer = asyncio.run(streamed()).output
    assert (thought.content[0].text, answer.content[0].text) == (REASONING, ANSWER)


# --- litellm ---


@pytest.fixture
def litellm():
    return pytest.importorskip("litellm", reason="litellm is not installed")


def of_litellm(where, **more):
    return {"model": "openai/scripted", "api_base": where["base_url"], "api_key": "none"} | more


def test_litellm_reads_reasoning_and_answer(litellm, where):
    message = litellm.completion(**of_litellm(where, messages=ASKED)).choices[0].message
    assert (message.reasoning_content, message.content) == (REASONING, ANSWER)


def test_litellm_reads_a_stream_and_its_usage(litellm, where):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**of_litellm(where, messages=ASKED, **options)))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert joined(delta.content for delta in deltas) == ANSWER
    assert joined(getattr(delta, "reasoning_content", None) for delta in deltas) == REASONING
    assert chunks[-1].usage.completion_tokens == 22


def test_litellm_sends_a_history_back(litellm, where, team):
    answer = litellm.completion(**of_litellm(where, messages=ASKED)).choices[0].message
    talk = [{"role": "system", "content": "Be brief."}, *ASKED, answer, {"role": "user", "content": "Sure?"}]
    litellm.completion(**of_litellm(where, messages=talk))
    assert read_by_the_pair(team) == HISTORY


def test_litellm_reads_a_response_whole_and_streamed(litellm, where):
    whole = litellm.responses(**of_litellm(where, input=QUESTION))
    *_, last = litellm.responses(**of_litellm(where, input=QUESTION, stream=True))
    for response in (whole, last.response):
        assert [item.content[0].text for item in response.output] == [REASONING, ANSWER]


def test_litellm_passes_a_refusal_on(litellm, where):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(litellm.BadRequestError, match="tools is not offered: this server runs no tools"):
        litellm.completion(**of_litellm(where, messages=ASKED, tools=[tool]))


# --- langchain-openai ---


@pytest.fixture(params=[False, True], ids=["chat completions", "responses"])
def langchain(request, where):
    module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return module.ChatOpenAI(model="scripted", use_responses_api=request.param, **where)


def test_langchain_reads_an_answer(langchain):
    answer = langchain.invoke(QUESTION)
    assert (answer.text, answer.usage_metadata["output_tokens"]) == (ANSWER, 22)


def test_langchain_reads_a_stream(langchain):
    assert joined(chunk.text for chunk in langchain.stream(QUESTION)) == ANSWER


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_langchain_sends_a_history_back(langchain, team, streamed):
    answer = langchain.invoke(QUESTION)
    if streamed:
        first, *more = langchain.stream(QUESTION)
        answer = sum(more, start=first)
    langchain.invoke([("system", "Be brief."), ("user", QUESTION), answer, ("user", "Sure?")])
    assert read_by_the_pair(team) == HISTORY


# --- instructor ---


@pytest.fixture
def instructor():
    return pytest.importorskip("instructor", reason="instructor is not installed")


def extracted(instructor, mode, where):
    """What instructor makes of an answer in this mode."""
    import openai
    from pydantic import create_model

    with openai.OpenAI(**where, max_retries=0) as client:
        answer = instructor.from_openai(client, mode=mode).chat.completions.create(
            model="scripted", messages=ASKED, response_model=create_model("Sum", value=(int, ...)), max_retries=1
        )
    return answer.value


def test_instructor_reads_an_object_that_the_answer_holds_as_text(instructor, where, team):
    team.play((LONG, "a", "</think>"), (SHORT, '```json\n{"value": 3}\n```', "</answer>"))
    assert extracted(instructor, instructor.Mode.MD_JSON, where) == 3
    assert QUESTION in read_by_the_pair(team)


@pytest.mark.parametrize(("mode", "key"), [("TOOLS", "tool"), ("JSON", "response_format")])
def test_instructor_passes_on_why_its_other_modes_are_refused(instructor, where, mode, key):
    with pytest.raises(Exception, match=f"{key}.* is not offered: "):
        extracted(instructor, instructor.Mode[mode], where)
