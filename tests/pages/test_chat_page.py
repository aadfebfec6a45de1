"""The web page at `/` in a real browser, against a scripted endpoint."""

import json

import httpx
import pytest

from tests.support.browser import LOUD, started_browser  # noqa: F401
from tests.support.chat_server import Scripted, finished, serving, turn
from tests.support.report_runs import HOSTILE

CARD = "turn.className + ' | ' + turn.innerText.replaceAll('\\n', ' ')"
CARDS = f"[...document.querySelectorAll('.turn')].map(turn => {CARD})"
TEXTS = "[...document.querySelectorAll('.turn .text')].map(text => text.textContent)"
STATUS = "document.getElementById('status').textContent"
PROBLEM = "document.getElementById('problem').textContent"
ENDED = "[...document.querySelectorAll('.ended')].map(e => e.textContent)"
DIALOGUE = [
    *turn("long", "</think>", "7^6: 9 3 ", "1 7 9", tokens=9),
    *turn("short", "</rethink>", "9+", "4", tokens=3),
    *turn("long", "</think>", "13", tokens=2),
    "pause",
    *turn("short", "</answer>", "\\boxed", "{3}", tokens=5),
    finished("\\boxed{3}", hand_backs=1),
]


@pytest.fixture
def endpoint():
    return Scripted()


@pytest.fixture
def page(endpoint, browser):
    """The browser, on the page of a running endpoint, once it has found the model."""
    with serving(endpoint.app) as address:
        browser("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.open(address)
        yield browser
        asked = [
            event["params"]["request"]["url"]
            for event in browser.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        bugs = [
            event
            for event in browser.events
            if event["method"] in LOUD and "Failed to load resource" not in json.dumps(event)
        ]
        assert bugs == []  # a status of 401 is on the console whatever a page does


def ask(page, question: str) -> None:
    page.js("document.getElementById('question').focus()")
    page("Input.insertText", text=question)
    page("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")


def enter(page, name: str, value: str) -> None:
    page.js(f"document.getElementById('ask').elements[{json.dumps(name)}].value = {json.dumps(value)}")


def test_the_dialogue_is_shown_while_it_is_written(endpoint, page):
    endpoint.script = DIALOGUE
    page.until("document.getElementById('name').textContent", "sum-team")
    assert page.js("document.title") == "sum-team – longshort"
    for name, value in {"mode": "pair", "temperature": "0.5", "max_turns": "3", "seed": "7"}.items():
        enter(page, name, value)
    ask(page, "Last digit of 7^6+4?")
    half = [
        "turn long | long 9 tokens 7^6: 9 3 1 7 9",
        "turn short | short 3 tokens ↩ hands back: think again 9+4",
        "turn long | long 2 tokens 13",
    ]
    page.until(CARDS, half)
    page.until("document.getElementById('talk').getAttribute('aria-busy')", "true")
    assert page.js("[document.getElementById('send').hidden, document.getElementById('stop').hidden]") == [True, False]
    endpoint.go.set()
    page.until(CARDS, [*half, "turn short answer | Answer short 5 tokens \\boxed{3}"])
    page.until(STATUS, "Answer: \\boxed{3}")
    facts = page.js("[...document.querySelectorAll('.sum div')].map(e => e.textContent)")
    assert facts[:3] == ["long11 tokens", "short8 tokens", "hand-backs1"]
    assert page.js("document.querySelector('h2').textContent") == "Last digit of 7^6+4?"
    page.until("[document.getElementById('send').hidden, document.getElementById('stop').hidden]", [False, True])
    (request,) = endpoint.requests
    assert request == {
        "model": "sum-team",
        "messages": [{"role": "user", "content": "Last digit of 7^6+4?"}],
        "stream": True,
        "stream_options": {"include_dialogue": True},
        "mode": "pair",
        "temperature": 0.5,
        "max_turns": 3,
        "seed": 7,
    }


def test_stop_ends_this_answer_at_the_server_too(endpoint, page):
    endpoint.script = [*turn("long", "</think>", "one", tokens=1)[:2], "pause"]
    ask(page, "?")
    page.until(CARDS, ["turn long writing | long one"])
    page.js("document.getElementById('stop').click()")
    page.until(ENDED, ["Stopped."])
    assert endpoint.left.wait(10)
    assert page.js(CARDS) == ["turn long | long one"] and page.js("document.activeElement.id") == "question"
    endpoint.left.clear()
    ask(page, "again")
    page.until("document.querySelectorAll('.turn.writing').length", 1)
    page.press("Escape")
    page.until(ENDED, ["Stopped.", "Stopped."])
    assert endpoint.left.wait(10) and page.js("document.getElementById('problem').hidden")


def test_what_goes_wrong_is_one_sentence(endpoint, page):
    endpoint.script = {"message": "the queue is full"}
    ask(page, "first")
    page.until(PROBLEM, "the queue is full")
    assert page.js("document.getElementById('question').value") == "first"  # to ask it again
    endpoint.script = [*turn("long", "</think>", "one", tokens=1), {"error": {"message": "the long engine died"}}]
    page.js("document.getElementById('ask').requestSubmit()")
    page.until(PROBLEM, "the long engine died")
    endpoint.script = [*turn("long", "</think>", "one", tokens=1), "break"]
    page.js("document.getElementById('ask').requestSubmit()")
    page.until(PROBLEM, "The connection broke before the answer was complete.")
    endpoint.script = [*turn("long", "episode_length", "one", tokens=1), finished("", stop="episode_length")]
    page.js("document.getElementById('ask').requestSubmit()")
    page.until(f"{ENDED}.at(-1)", "No answer: the dialogue reached its limit of tokens.")
    assert page.js("document.getElementById('problem').hidden") and page.js(STATUS) == "No answer."
    enter(page, "temperature", "-1")
    ask(page, "second")
    page.until("document.getElementById('settings').open", True)
    assert len(endpoint.requests) == 4  # the browser refused -1 and shows where it stands


def test_a_key_is_asked_for_and_kept_nowhere(endpoint, page):
    endpoint.key = "s3cret"
    page.reload()
    page.until(PROBLEM, "This server needs an API key: enter it in the settings.")
    assert page.js("[document.getElementById('settings').open, document.activeElement.name]") == [True, "key"]
    enter(page, "key", "wrong")
    ask(page, "?")
    page.until(PROBLEM, "The server does not accept this API key.")
    enter(page, "key", "s3cret")
    endpoint.script = [*turn("short", "</answer>", "4", tokens=2), finished("4")]
    page.js("document.getElementById('ask').requestSubmit()")
    page.until(STATUS, "Answer: 4")
    assert (
        endpoint.keys[-1] == "Bearer s3cret"
        and page.js("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
    )
    page.reload()
    assert page.js("document.getElementById('ask').elements.key.value") == ""


def test_hostile_text_is_only_text(endpoint, page):
    page("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    hostile = HOSTILE.replace("\ud800", "").replace("\0", "")
    endpoint.script = [
        *turn("long", "</think>", hostile, "w" * 300, tokens=9),
        *turn("short", "</answer>", hostile, tokens=1),
        finished(hostile),
    ]
    ask(page, hostile.replace("\u2028", ""))
    page.until(TEXTS, [hostile + "w" * 300, hostile])
    inert = "document.querySelectorAll('main img, main script, main iframe').length"
    assert page.js(inert) == 0 and page.js("typeof window.hacked") == "undefined"
    assert page.js("document.documentElement.scrollWidth") == 390


def test_the_page_is_one_file_that_may_do_little(endpoint):
    with serving(endpoint.app) as address:
        answer = httpx.get(address)
        assert httpx.post(address).status_code == 405
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "connect-src 'self'" in policy
    assert "set-cookie" not in answer.headers and "innerHTML" not in answer.text and "http" not in answer.text.lower()
