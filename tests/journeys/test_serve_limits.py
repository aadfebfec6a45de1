"""The endpoint under stress: too many clients, clients that leave, engines that fail, a shutdown; and who may call."""

import asyncio
import re

import httpx
import openai
import pytest

from longshort.types import LONG, SHORT, LongShortError
from tests.support.serve_cases import ANSWER, BUG, DIE, HANG, ScriptedTeam, served

QUESTION = [{"role": "user", "content": "What is 1+2?"}]
BODY = {"messages": QUESTION}
STUCK = ((LONG, "a", HANG), (SHORT, "3", "</answer>"))


@pytest.fixture(scope="module")
def server():
    with served(ScriptedTeam(max_queue=3)) as server:  # 6 run (half as many again as two engines of two decode), 3 wait
        yield server


@pytest.fixture
def team(server):
    server.team.play(*ANSWER)
    yield server.team
    server.until(lambda: server.service.gate.running + server.service.gate.waiting == 0)


def in_many(server, count, work):
    """`work(client)` for `count` clients at once, in a loop of their own; their results in order."""

    async def all_of_them():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*(work(client) for _ in range(count)))

    return asyncio.run(all_of_them())


async def post(client, **more):
    return await client.post("/v1/chat/completions", json=BODY | more)


def test_a_full_house_refuses_at_once_and_serves_everyone_it_took(server, team):
    team.play(*ANSWER, delay=0.3)
    answers = in_many(server, 12, post)
    taken, refused = ([answer for answer in answers if answer.status_code == status] for status in (200, 429))
    assert (len(taken), len(refused)) == (9, 3)
    error = refused[0].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full") and int(
        refused[0].headers["retry-after"]
    ) >= 1
    assert "serve.max_queue is 3" in error["message"] and {
        one.json()["choices"][0]["finish_reason"] for one in taken
    } == {"stop"}


def test_answers_count_and_not_requests(server, team):
    team.play(*ANSWER, delay=0.3)
    answers = in_many(server, 2, lambda client: post(client, n=5))
    assert sorted(answer.status_code for answer in answers) == [200, 429]
    impossible = httpx.post(f"{server.url}/v1/chat/completions", json=BODY | {"n": 10}).json()["error"]
    assert (
        impossible["message"] == "the request asks for 10 answers but the server holds 9 at most"
        and impossible["param"] == "n"
    )


@pytest.mark.parametrize("more", [{}, {"stream": True}], ids=["whole", "streamed"])
def test_a_caller_who_leaves_frees_the_engine(server, team, more):
    team.play(*STUCK)
    with pytest.raises(httpx.ReadTimeout):
        in_many(server, 1, lambda client: client.post("/v1/chat/completions", json=BODY | more, timeout=0.5))
    server.until(lambda: team.scripted[LONG].left == 1 and server.service.gate.running == 0)


def test_a_caller_who_leaves_the_queue_gives_up_the_place(server, team):
    team.play(*STUCK)
    gate = server.service.gate

    async def scene():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            stuck = [asyncio.create_task(post(client)) for _ in range(6)]
            await asyncio.to_thread(server.until, lambda: gate.running == 6)
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/chat/completions", json=BODY, timeout=0.3)
            await asyncio.to_thread(server.until, lambda: gate.waiting == 0)
            left = gate.running, team.scripted[LONG].asked
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        return left

    assert asyncio.run(scene()) == (6, 6)
    server.until(lambda: gate.running == 0)


def test_a_stream_that_is_closed_half_way_ends_its_episode(server, team):
    team.play((LONG, "a: 7.", "</think>"), (SHORT, "never", HANG))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    with client, client.chat.completions.create(model="scripted", messages=QUESTION, stream=True) as stream:
        assert any(getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in stream)
    server.until(lambda: team.scripted[SHORT].left == 1)


def test_an_engine_that_is_given_up_fails_the_request_cleanly(server, team):
    team.play((LONG, "a", DIE))
    for more in ({}, {"stream": True}):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY | more)
        error = answer.json()["error"] if not more else None
        if error:
            assert (answer.status_code, error["type"], error["code"]) == (503, "server_error", "engine_failed")
            assert error["message"] == "the long engine failed 4 times" and answer.headers["retry-after"] == "1"
    assert (
        httpx.get(f"{server.url}/health").status_code == 503
        and httpx.get(f"{server.url}/health").json()["status"] == "failed"
    )
    team.play(*ANSWER)
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_an_engine_that_fails_under_a_stream_ends_it_with_an_error_event(server, team):
    team.play((LONG, "a: 7.", "</think>"), (SHORT, "b", DIE))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    with client, pytest.raises(openai.APIError, match="the short engine failed 4 times"):
        list(client.chat.completions.create(model="scripted", messages=QUESTION, stream=True))
    raw = httpx.post(f"{server.url}/v1/chat/completions", json=BODY | {"stream": True}).text
    assert raw.endswith('"type":"server_error","param":null,"code":"engine_failed"}}\n\ndata: [DONE]\n\n')


def test_a_response_that_fails_while_it_is_streamed_ends_as_failed(server, team):
    team.play((LONG, "a: 7.", "</think>"), (SHORT, "b", DIE))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        *_, last = client.responses.create(model="scripted", input="What is 1+2?", stream=True)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.message == "the short engine failed 4 times"
    assert [item.content[0].text for item in last.response.output] == ["a: 7."]


def test_a_bug_is_told_without_its_insides(server, team):
    team.play((LONG, "a: 7.", "</think>"), (SHORT, "b", BUG))
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
    assert (
        answer.status_code == 500
        and answer.json()["error"]["message"] == "internal error (KeyError); see the server's log"
    )
    page = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'requests_total\{path="/v1/chat/completions",status="500"\} 1', page), (
        "a bug is no client that left"
    )
    raw = httpx.post(f"{server.url}/v1/chat/completions", json=BODY | {"stream": True}).text
    assert '"message":"internal error (KeyError); see the server\'s log","type":"server_error"' in raw and raw.endswith(
        "data: [DONE]\n\n"
    )


def test_an_answer_that_takes_too_long_is_given_up():
    with served(ScriptedTeam(timeout_s=0.2)) as server:
        server.team.play(*STUCK)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        server.until(lambda: server.team.scripted[LONG].left == 1)


def test_a_drain_finishes_what_runs_and_takes_nothing_new():
    with served() as server:
        server.team.play(*ANSWER, delay=0.5)

        async def scene():
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                running = asyncio.create_task(post(client))
                await asyncio.to_thread(server.until, lambda: server.service.gate.running == 1)
                draining = asyncio.create_task(asyncio.to_thread(server.call, server.service.gate.drain(10)))
                await asyncio.to_thread(server.until, lambda: server.service.gate.draining)
                return await post(client), await client.get("/health"), await running, await draining

        refused, health, answered, finished = asyncio.run(scene())
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (
            503,
            "draining",
            "1",
        )
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert (answered.status_code, finished) == (200, True)


def test_a_drain_fails_what_is_not_done_in_time():
    with served() as server:
        server.team.play((LONG, "a: 7.", "</think>"), (SHORT, "never", HANG))

        async def scene():
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                running = [asyncio.create_task(post(client, **more)) for more in ({}, {"stream": True})]
                await asyncio.to_thread(server.until, lambda: server.team.scripted[SHORT].asked == 2)
                finished = await asyncio.to_thread(server.call, server.service.gate.drain(0.1))
                return [await one for one in running], finished

        (whole, streamed), finished = asyncio.run(scene())
        assert not finished and whole.status_code == 503 and "not done within 0.1 s" in whole.json()["error"]["message"]
        assert (
            streamed.status_code == 200
            and '"code":"draining"' in streamed.text
            and streamed.text.endswith("data: [DONE]\n\n")
        )
        assert server.team.scripted[SHORT].left == 2


def test_the_key_is_asked_for_and_never_told(capfd):
    with served(api_key="correct-horse") as server:
        models = lambda key: httpx.get(f"{server.url}/v1/models", headers={"authorization": key} if key else {})  # noqa: E731
        for wrong in (
            "",
            "Bearer wrong",
            "Bearer correct-horse2",
            "Basic correct-horse",
            "correct-horse",
            "Bearer correct-hörse".encode(),
        ):
            answer = models(wrong)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error" and "correct" not in answer.text
        assert models("Bearer correct-horse").status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        with (
            pytest.raises(openai.AuthenticationError),
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        ):
            client.chat.completions.create(model="scripted", messages=QUESTION)
    assert "correct-horse" not in "".join(capfd.readouterr())


def test_pages_of_other_sites_and_other_host_names_are_refused():
    with served(hosts=["127.0.0.1", "localhost", "::1"]) as server:
        own, netloc = {"host": f"localhost:{server.port}"}, f"127.0.0.1:{server.port}"
        get = lambda **headers: httpx.get(f"{server.url}/v1/models", headers=headers)  # noqa: E731
        ask = lambda **headers: httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers=headers)  # noqa: E731
        assert get(**own).status_code == get(host=f"[::1]:{server.port}").status_code == ask().status_code == 200
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "[", ""):
            assert (get(host=host).status_code, get(host=host).json()["error"]["code"]) == (403, "unknown_host")
        assert ask(origin=f"http://{netloc}").status_code == 200
        for origin in ("https://evil.example", "null", "http://localhost:1", f"http://{netloc}.evil.example"):
            refused = ask(origin=origin)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_origin")
        plain = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 415
        assert not [name for name in ask(origin=f"http://{netloc}").headers if name.startswith("access-control")]


PAGE = "https://app.example"


@pytest.fixture(scope="module")
def for_a_page():
    team = ScriptedTeam(allowed_origins=[PAGE])
    with served(team, hosts=["127.0.0.1"], api_key="correct-horse") as server:
        yield server


def preflight(server, origin):
    """What a browser asks before it lets a page send its request."""
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return httpx.options(f"{server.url}/v1/chat/completions", headers={"origin": origin} | wanted)


def test_a_page_that_the_operator_allows_may_ask_and_read(for_a_page):
    before = preflight(for_a_page, PAGE)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "authorization" in before.headers["access-control-allow-headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in before.headers
    headers = {"origin": PAGE, "authorization": "Bearer correct-horse"}
    answer = httpx.post(f"{for_a_page.url}/v1/chat/completions", json=BODY, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)


def test_a_page_that_is_allowed_can_read_why_it_is_refused(for_a_page):
    answer = httpx.post(f"{for_a_page.url}/v1/chat/completions", json=BODY, headers={"origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", f"{PAGE}.evil.example", "null"])
def test_a_page_of_another_origin_may_neither_ask_nor_read(for_a_page, origin):
    before = preflight(for_a_page, origin)
    assert before.status_code == 400 and "access-control-allow-origin" not in before.headers
    headers = {"origin": origin, "authorization": "Bearer correct-horse"}
    answer = httpx.post(f"{for_a_page.url}/v1/chat/completions", json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_origin")
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_page_does_not_open_other_host_names(for_a_page):
    headers = {"origin": PAGE, "authorization": "Bearer correct-horse", "host": "evil.example"}
    answer = httpx.post(f"{for_a_page.url}/v1/chat/completions", json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


def test_without_allowed_origins_a_preflight_is_refused(server):
    assert preflight(server, PAGE).status_code == 403


@pytest.mark.parametrize("origin", ["*", "app.example", f"{PAGE}/", f"{PAGE}/chat", "https://App.example", "null"])
def test_what_is_no_origin_is_refused_where_the_settings_are_read(origin):
    with pytest.raises(LongShortError, match=r"serve\.allowed_origins: .* is no origin; write https://"):
        ScriptedTeam(allowed_origins=[origin])


def test_a_name_behind_a_proxy_is_let_in():
    with served(ScriptedTeam(allowed_hosts=["pair.example"]), hosts=["127.0.0.1"]) as server:
        headers = {"host": "pair.example", "origin": "https://pair.example"}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers=headers).status_code == 200
        assert (
            httpx.post(
                f"{server.url}/v1/chat/completions", json=BODY, headers=headers | {"host": "127.0.0.1"}
            ).status_code
            == 200
        )


def test_metrics_count_what_passed(server, team):
    value = lambda name, page: float(re.search(rf"^{re.escape(name)} (\S+)$", page, re.M)[1])  # noqa: E731
    page = lambda: httpx.get(f"{server.url}/metrics").text  # noqa: E731
    team.play(
        (LONG, "a: 7.", "</think>"),
        (SHORT, "more?", "</rethink>"),
        (LONG, "+b: 6.", "</think>"),
        (SHORT, "3", "</answer>"),
    )
    names = {
        'longshort_requests_total{path="/v1/chat/completions",status="200"}': 2,
        'longshort_requests_total{path="other",status="404"}': 1,
        'longshort_tokens_total{role="long"}': 16,
        'longshort_tokens_total{role="short"}': 16,
        'longshort_turns_total{role="long"}': 4,
        "longshort_hand_backs_total": 2,
        'longshort_episodes_total{stop="answered"}': 2,
        "longshort_time_to_first_token_seconds_count": 1,
    }
    httpx.get(f"{server.url}/nowhere")
    for more in ({}, {"stream": True}):
        httpx.post(f"{server.url}/v1/chat/completions", json=BODY | more)
    before = page()
    httpx.get(f"{server.url}/nowhere/else")
    for more in ({}, {"stream": True}):
        httpx.post(f"{server.url}/v1/chat/completions", json=BODY | more)
    after = page()
    assert {name: value(name, after) - value(name, before) for name in names} == names
    assert value("longshort_episodes_running", after) == value("longshort_draining", after) == 0
    assert value('longshort_engine_busy_seconds_total{role="long"}', after) == 1.5
    assert value('longshort_prefix_cache_hit_tokens_total{role="short"}', after) == 5
    assert value('longshort_engine_restarts_total{role="short"}', after) == 1
