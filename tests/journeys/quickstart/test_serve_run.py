"""`longshort serve` as users run it: a real process, real engines, killed engines, clients that leave, SIGTERM."""

import asyncio
import os
import re
import signal
import subprocess
import time
from types import SimpleNamespace

import httpx
import openai
import psutil
import pytest

from longshort.dialogue.rollout import stable_seed
from longshort.serving.replies import texts
from longshort.types import ROLES
from tests.journeys.quickstart.conftest import SAMPLES, SEED
from tests.support.commands import LONGSHORT

TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}


@pytest.fixture(scope="module")
def served(journey, pairs_episodes):
    """The run's team behind an endpoint: its process and its address."""
    command = [*LONGSHORT, "serve", str(journey.folder / "team"), "--port", "0", "--name", "mini"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if address := re.search(r"serving mini at (http://127\.0\.0\.1:\d+) ", line):
            break
    else:
        raise AssertionError("".join(lines))
    until(lambda: reachable(address[1]))
    yield SimpleNamespace(process=process, url=address[1])
    process.kill()
    process.wait()


def expected(episodes):
    """Per episode: reasoning, content, tokens by role, and why it stopped."""
    return [
        (*texts(episode, True), {role: episode.tokens(role) for role in ROLES}, episode.stop) for episode in episodes
    ]


def reachable(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def engines(process):
    """Process ids of the server's engines."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "EngineActor" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


def asked(episode, number, decoding):
    """The request with the evaluation's seed of this episode."""
    sample = number % SAMPLES if decoding == "sampled" else 0
    return {
        "model": "mini",
        "messages": [{"role": "user", "content": episode.problem.question}],
        "temperature": TEMPERATURES[decoding],
        "seed": stable_seed(SEED, episode.problem.id, sample),
    }


async def whole(client, request):
    reply = await client.chat.completions.create(**request)
    choice, tokens = reply.choices[0], {role: reply.usage.longshort[role]["tokens"] for role in ROLES}
    return choice.message.reasoning_content or "", choice.message.content, tokens, choice.longshort["stop"]


async def streamed(client, request):
    thought = content = ""
    async for chunk in await client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            stop = getattr(choice, "longshort", {}).get("stop")
    return thought, content, {role: chunk.usage.longshort[role]["tokens"] for role in ROLES}, stop


async def answers(url, ask, episodes, decoding="sampled"):
    """The client's answers to the questions of these episodes, all asked at once."""
    requests = [asked(episode, number, decoding) for number, episode in enumerate(episodes)]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        return await asyncio.gather(*(ask(client, request) for request in requests))


@pytest.mark.parametrize("decoding", TEMPERATURES)
@pytest.mark.parametrize("ask", [whole, streamed])
def test_answers_are_those_of_the_evaluation(served, pairs_episodes, ask, decoding):
    episodes = pairs_episodes[decoding]
    assert asyncio.run(answers(served.url, ask, episodes, decoding)) == expected(episodes)


def test_whole_dialogues_and_cut_ones_were_compared(pairs_episodes):
    assert {"answered", "turn_length"} <= {episode.stop for episode in pairs_episodes["sampled"]}


def test_the_same_port_again_is_refused_in_one_sentence(served, journey):
    port = served.url.rpartition(":")[2]
    command = [*LONGSHORT, "serve", str(journey.folder / "team"), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    sentence = f"port {port} on 127.0.0.1 is in use; choose another with --port, or stop what listens there"
    assert done.stderr == f"longshort: {sentence}\n"


def test_clients_who_leave_free_the_engines(served, pairs_episodes):
    question = pairs_episodes["sampled"][0].problem.question
    body = {"messages": [{"role": "user", "content": question}], "n": 32}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.05)
    until(lambda: httpx.get(f"{served.url}/health").json() == {"status": "ok", "running": 0, "queued": 0}, 10.0)


def test_an_engine_that_is_killed_is_replaced_and_nobody_loses_an_answer(served, pairs_episodes):
    async def scene():
        running = asyncio.create_task(answers(served.url, whole, pairs_episodes["sampled"]))
        await asyncio.sleep(0.2)
        os.kill(engines(served.process)[0], signal.SIGKILL)
        return await running

    assert asyncio.run(scene()) == expected(pairs_episodes["sampled"])


def test_the_metrics_count_the_engine_that_was_replaced(served):
    page = httpx.get(f"{served.url}/metrics").text
    restarts = re.findall(r"^longshort_engine_restarts_total\{.*\} (\S+)$", page, re.M)
    assert sorted(restarts) == ["0.0", "1.0"]
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


@pytest.fixture(scope="module")
def ended(served, pairs_episodes):
    """SIGTERM while 32 answers are being streamed: the answers, and the processes that the server had."""
    children = psutil.Process(served.process.pid).children(recursive=True)

    async def scene():
        running = asyncio.create_task(answers(served.url, streamed, pairs_episodes["sampled"][:32]))
        async with httpx.AsyncClient() as client:
            while not (await client.get(f"{served.url}/health")).json()["running"]:
                await asyncio.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        return await running

    return SimpleNamespace(answers=asyncio.run(scene()), children=children)


def test_sigterm_finishes_what_runs(ended, pairs_episodes):
    assert ended.answers == expected(pairs_episodes["sampled"][:32])


def test_sigterm_ends_the_server_with_status_0_and_a_word(served, ended):
    assert served.process.wait(60) == 0
    assert "stopped\n" in served.process.stdout.read()


def test_sigterm_leaves_no_process_behind(ended):
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in ended.children))
