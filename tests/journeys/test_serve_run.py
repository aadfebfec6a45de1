"""`longshort serve` as users run it: a real process, real engines, killed engines, clients that leave, SIGTERM."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import openai
import psutil
import pytest

from longshort.dialogue.rollout import Decoding, stable_seed
from longshort.evaluation.runner import evaluate
from longshort.grading.pool import GradingPool
from longshort.miniature.world import make_problems
from longshort.recipe.schema import dump
from longshort.serving.replies import texts
from longshort.team.team import Team
from longshort.types import ROLES
from tests.support import tiny_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
COMMAND = [sys.executable, "-m", "longshort.cli", "serve"]
PROBLEMS, SEED = make_problems("test", 200, 0), 5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    config = tiny_models.config(folder, tiny_models.make_speaking(folder), serve={"drain_s": 60})
    (folder / "recipe.yaml").write_text(dump(config))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def evaluated(recipe):
    """What the evaluation's own code finds, by temperature: per problem (reasoning, content, tokens by role, stop)."""

    async def run():
        async with Team.from_pretrained(recipe) as team:
            with GradingPool() as pool:
                return {
                    temperature: await evaluate(
                        team.engines(), team.protocol, PROBLEMS, pool, Decoding(temperature=temperature), seed=SEED
                    )
                    for temperature in (0.0, 1.0)
                }

    return {
        temperature: [
            (*texts(episode, True), {role: episode.tokens(role) for role in ROLES}, episode.stop)
            for episode in found.episodes
        ]
        for temperature, found in asyncio.run(run()).items()
    }


@pytest.fixture(scope="module")
def served(recipe, evaluated):
    process = subprocess.Popen(
        [*COMMAND, str(recipe), "--port", "0", "--name", "mini"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"serving mini at (http://127\.0\.0\.1:\d+) ", line):
            break
    else:
        raise AssertionError("".join(lines))
    url = found[1]
    until(lambda: reachable(url))
    yield SimpleNamespace(process=process, url=url)
    process.kill()
    process.wait()


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


def asked(problem, temperature):
    """The request that has the evaluation's dice."""
    messages = [{"role": "user", "content": problem.question}]
    return {"model": "mini", "messages": messages, "temperature": temperature, "seed": stable_seed(SEED, problem.id, 0)}


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


async def answers(url, ask, problems, temperature=1.0):
    """What the client gets for these problems, all at once."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        return await asyncio.gather(*(ask(client, asked(problem, temperature)) for problem in problems))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ask", [whole, streamed])
def test_two_hundred_answers_are_those_of_the_evaluation(served, evaluated, ask, temperature):
    assert asyncio.run(answers(served.url, ask, PROBLEMS, temperature)) == evaluated[temperature]
    stops = {stop for *_, stop in evaluated[1.0]}
    assert {"answered", "turn_length"} <= stops  # whole dialogues and cut ones are compared


def test_an_engine_that_is_killed_is_replaced_and_nobody_loses_an_answer(served, evaluated):
    async def scene():
        running = asyncio.create_task(answers(served.url, whole, PROBLEMS[:64]))
        await asyncio.sleep(0.5)
        os.kill(engines(served.process)[0], signal.SIGKILL)
        return await running

    assert asyncio.run(scene()) == evaluated[1.0][:64]
    page = httpx.get(f"{served.url}/metrics").text
    restarts = re.findall(r"^longshort_engine_restarts_total\{.*\} (\S+)$", page, re.M)
    assert sorted(restarts) == ["0.0", "1.0"] and httpx.get(f"{served.url}/health").json()["status"] == "ok"


def test_clients_who_leave_free_the_engines(served):
    body = {"messages": [{"role": "user", "content": PROBLEMS[0].question}], "n": 32}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.05)
    until(lambda: httpx.get(f"{served.url}/health").json() == {"status": "ok", "running": 0, "queued": 0}, 10.0)


def test_the_same_port_again_is_refused_in_one_sentence(served, recipe):
    port = served.url.rpartition(":")[2]
    done = subprocess.run([*COMMAND, str(recipe), "--port", port], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr
        == f"longshort: port {port} on 127.0.0.1 is in use; choose another with --port, or stop what listens there\n"
    )


def test_sigterm_finishes_what_runs_and_leaves_nothing_behind(served, evaluated):
    children = psutil.Process(served.process.pid).children(recursive=True)

    async def scene():
        running = asyncio.create_task(answers(served.url, streamed, PROBLEMS[:32]))
        async with httpx.AsyncClient() as client:
            while not (await client.get(f"{served.url}/health")).json()["running"]:
                await asyncio.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        return await running

    assert asyncio.run(scene()) == evaluated[1.0][:32]
    assert served.process.wait(60) == 0 and "stopped\n" in served.process.stdout.read()
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
