"""The report's viewer of episodes in a real browser: filters, a dialogue, the numbers of a token, hostile text."""

import json

import pytest

from longshort.report.report_page import write_report
from longshort.types import LONG, ROLES, SHORT
from tests.support.browser import started_browser  # noqa: F401
from tests.support.report_runs import (
    HOSTILE,
    SHOWN_HOSTILE,
    graded,
    tokenizer,
    trained,
    turn,
    write_graded,
    write_lines,
)

ORDER = ["E0", "E1", "B0", "A2", "A3", "A0", "A1"]
"""The episodes of the page as it orders them: evaluations, then the newest step first."""
TEXTS = "[...document.querySelectorAll('.turn .text')].map(text => text.firstChild.textContent)"
LISTED = "[...document.querySelectorAll('#list button')].map(button => Number(button.dataset.at))"


@pytest.fixture
def page(tmp_path) -> str:
    """The address of a report on two small runs."""
    alpha, beta = tmp_path / "alpha", tmp_path / "beta"

    def talk(*said):
        return [turn(ROLES[at % 2], text, tag, version=3) for at, (text, tag) in enumerate(said)]

    a0 = trained(1, talk(("1+1", "</think>"), ("é2", "</answer>")), gaps={"long": [0.0, -0.03, 0.004, 0.6]})
    a0["turns"][0]["logprobs"] = [-0.6931, 0.0, 0.0, -5.0]
    a1 = trained(1, talk(("7", "</think>"), ("needle 3", "</answer>")), False, reward={"long": 0.5, "short": 0.5})
    a2 = trained(2, talk((HOSTILE, "</think>"), ("a", "</rethink>"), ("b", "</answer>")), question=HOSTILE)
    a3 = trained(2, talk(("long long", "length")), False, stop="turn_length", reward={"long": 0.0, "short": 0.0})
    write_lines(alpha / "episodes/step-000001.jsonl", [a0, a1])
    write_lines(alpha / "episodes/step-000002.jsonl", [a2, a3])
    write_lines(beta / "episodes/step-000003.jsonl", [trained(3, talk(("8", "</think>")), terms={})])
    said = talk(("9", "</think>"), ("0", "</answer>"))
    write_graded(alpha, [graded(said), graded(said, right=False)])
    for role in ROLES:
        tokenizer(role).save_pretrained(alpha / "checkpoint-2" / role)
    return write_report([alpha, beta]).as_uri()


def enter(browser, name: str, value: str) -> None:
    field = f"document.getElementById('filters').elements[{json.dumps(name)}]"
    browser.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def listed(browser, *names: str) -> None:
    browser.until(LISTED, [ORDER.index(name) for name in names])


def choose(browser, name: str) -> None:
    browser.js(f"document.querySelector('[data-at=\"{ORDER.index(name)}\"]').click()")


FILTERS = [
    ("q", "NEEDLE", ["A1"]),
    ("q", "esrever", ["A2"]),
    ("run", "beta", ["B0"]),
    ("source", "training", ["B0", "A2", "A3", "A0", "A1"]),
    ("source", "final · pair · math · greedy", ["E0", "E1"]),
    ("verdict", "not graded", ["B0"]),
    ("verdict", "wrong", ["E1", "A3", "A1"]),
    ("stop", "turn_length", ["A3"]),
    ("step-from", "2", ["B0", "A2", "A3"]),
    ("turns-from", "3", ["A2"]),
    ("tokens-to", "2", ["B0"]),
    ("sort", "-tokens", ["A2", "A1", "A3", "A0", "E0", "E1", "B0"]),
    ("sort", "+reward", ["A3", "A1", "B0", "A2", "A0", "E0", "E1"]),
]


def test_filters_and_order(page, browser):
    browser.open(page)
    listed(browser, *ORDER)
    for name, value, left in FILTERS:
        enter(browser, name, value)
        listed(browser, *left)
        assert browser.js("document.getElementById('matching').textContent") == str(len(left))
        enter(browser, name, "")
        listed(browser, *ORDER)
    assert browser.complaints() == []


def test_the_address_keeps_filters_and_episode(page, browser):
    browser.open(page)
    enter(browser, "verdict", "wrong")
    listed(browser, "E1", "A3", "A1")
    choose(browser, "A1")
    browser.reload()
    listed(browser, "E1", "A3", "A1")
    assert browser.js(TEXTS) == ["7", "needle 3"]


def test_a_dialogue_and_its_tokens(page, browser):
    browser.open(page)
    choose(browser, "A0")
    assert browser.js(TEXTS) == ["1+1", "é2"]
    facts = browser.js("[...document.querySelectorAll('#detail .facts div')].map(e => e.textContent)")
    assert facts[:3] == ["problemp", "gold answer2", "verdict✓ right"]
    assert {"advantagelong 0.25, short −0.25", "correct1"} <= set(facts)

    browser.js("document.querySelectorAll('.views button')[1].click()")
    tokens = "[...document.querySelectorAll('.tokens')[%d].children].map(t => t.textContent + ' ' + t.className)"
    assert browser.js(tokens % 0) == ["1 token p3", "+ token p0", "1 token p0", "</think> token p8"]
    browser.js("document.querySelector('.tokens').scrollIntoView({block: 'center'})")
    box = browser.js(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.token').getBoundingClientRect())"
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    card = "document.querySelector('.token-card').textContent"
    browser.until(card, "1 log-prob −0.6931 · probability 0.5 · gap 0 · advantage 0.25")

    browser.js("document.querySelectorAll('.views button')[2].click()")
    assert browser.js(tokens % 0) == ["1 token p0", "+ token below2", "1 token p0", "</think> token above4"]
    assert browser.js(tokens % 1)[-1] == "</answer> token unknown"
    assert browser.complaints() == []


def test_hostile_text_is_only_text(page, browser):
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(page)
    choose(browser, "A2")
    assert browser.js(TEXTS) == [SHOWN_HOSTILE, "a", "b"]
    assert browser.js("document.querySelector('#detail h3').textContent") == SHOWN_HOSTILE
    assert browser.js("getComputedStyle(document.querySelector('.turn .text')).unicodeBidi") == "plaintext"
    browser.js("document.querySelectorAll('.views button')[1].click()")
    assert "⟨U+0000⟩" in browser.js("document.querySelector('.tokens').textContent")
    assert browser.js("document.querySelectorAll('#episodes img, #detail script').length") == 0
    assert browser.js("document.documentElement.scrollWidth") == 390
    assert browser.js("typeof window.hacked") == "undefined"
    assert browser.complaints() == []


def test_thousands_of_episodes_are_listed_some_at_a_time(tmp_path, browser):
    row = trained(1, [turn(LONG, "1", "</think>"), turn(SHORT, "2", "</answer>")])
    write_lines(tmp_path / "run/episodes/step-000001.jsonl", [row] * 2500)
    browser.open(write_report([tmp_path / "run"]).as_uri())
    assert browser.js("document.querySelectorAll('#list li').length") == 200
    browser.js("document.getElementById('more').click()")
    assert browser.js("document.querySelectorAll('#list li').length") == 400
    enter(browser, "q", "no message says this")
    listed(browser)
    assert browser.complaints() == []
