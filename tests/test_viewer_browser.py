"""The report's viewer of episodes in a real browser: every filter, every number of a token, side by side, reload, hostile text."""

import json

import pytest

from longshort.dialogue.encoding import encode_plain
from longshort.report.report_page import write_report
from longshort.types import LONG, ROLES
from tests.browser import started_browser  # noqa: F401
from tests.test_viewer import HOSTILE, SHOWN_HOSTILE, made_tokenizers, row, tiny, write  # noqa: F401

ORDER = ["E0", "E1", "B0", "A2", "A3", "A0", "A1"]
"""The demo's episodes as the page orders them: evaluations, then the newest step first, the run beta's (older format) before alpha's."""


@pytest.fixture
def report(tmp_path, tokenizers) -> str:
    """The address of a report on two small runs."""
    alpha, beta = tmp_path / "alpha", tmp_path / "beta"
    tags = {
        role: {tag: tokenizers[role].convert_tokens_to_ids(tag) for tag in ("</think>", "</rethink>", "</answer>")}
        for role in ROLES
    }

    def talk(problem, *said, **more):
        """Messages of long and short in turn; the first token of each has log-prob ln 0.5, the others 0."""
        turns = []
        for number, (text, tag) in enumerate(said):
            role = ROLES[number % 2]
            ids = [
                *encode_plain(tokenizers[role], text.replace("\ud800", "?")),
                *([tags[role][tag]] if tag in tags[role] else []),
            ]
            turns.append((role, text, tag, ids, [-0.6931] + [0.0] * (len(ids) - 1)))
        made = row(problem, turns, **more)
        for turn in made["turns"]:
            turn["context_ids"] = encode_plain(tokenizers[turn["role"]], "Q ")
        return made

    graded = lambda right, reward: {"terms": {"correct": right}, "reward": {"long": reward, "short": reward}}  # noqa: E731
    a0 = talk(
        "p",
        ("1+1", "</think>"),
        ("é2", "</answer>"),
        step=1,
        **graded(1.0, 1.5),
        advantages={"long": 0.25, "short": -0.25},
    )
    a0["gaps"] = {"long": [0.0, -0.03, 0.004, 0.6]}
    a1 = talk("p", ("7", "</think>"), ("needle 3", "</answer>"), step=1, **graded(0.0, 0.5))
    a2 = talk(
        "q",
        (HOSTILE, "</think>"),
        ("a", "</rethink>"),
        ("b", "</think>"),
        ("c", "</answer>"),
        question=HOSTILE,
        step=2,
        **graded(1.0, 2.0),
    )
    a3 = talk("p", ("long long", "length"), stop="turn_length", step=2, **graded(0.0, 0.0))
    b0 = talk("p", ("8", "</think>"), ("2", "</answer>"), step=3)
    for turn in b0["turns"]:
        del turn["context_ids"]
    samples = [
        talk("p", ("9", "</think>"), (str(n), "</answer>"), correct=n == 0, reason="match" if n == 0 else "no_answer")
        for n in range(2)
    ]
    write(alpha / "episodes/step-000001.jsonl", [a0, a1])
    write(alpha / "episodes/step-000002.jsonl", [a2, a3])
    write(beta / "episodes/step-000003.jsonl", [b0])
    write(alpha / "eval/final/pair.miniature:test.sampled.jsonl", samples)
    for role in ROLES:
        tokenizers[role].save_pretrained(alpha / "checkpoint-2" / role)
    return write_report([alpha, beta]).as_uri()


LISTED = "[...document.querySelectorAll('#episode-list .option')].map(option => Number(option.dataset.at))"
TEXTS = "[...document.querySelectorAll('.episode .turn .text')].map(text => text.firstChild.textContent)"
WHERE = "[...document.querySelectorAll('.episode h4')].map(title => title.textContent)"
TIP = "[...document.querySelectorAll('#token-tip dd')].map(value => value.textContent)"


def click(browser, selector: str, text: str) -> None:
    """Click the first element of which the text or the label begins with `text`."""
    named = f"(e.getAttribute('aria-label') ?? e.textContent).startsWith({json.dumps(text)})"
    found = f"[...document.querySelectorAll({json.dumps(selector)})].find(e => {named})"
    browser.js(f"{found}.click()")


def enter(browser, name: str, value: str) -> None:
    field = f"document.getElementById('episode-filters').elements[{json.dumps(name)}]"
    browser.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def listed(browser, *names: str) -> None:
    browser.until(LISTED, [ORDER.index(name) for name in names])


FILTERS = [
    ("q", "NEEDLE", ["A1"]),
    ("q", "esrever", ["A2"]),
    ("q", "é2", ["A0"]),
    ("run", "beta", ["B0"]),
    ("source", "training", ["B0", "A2", "A3", "A0", "A1"]),
    ("source", "evaluation", ["E0", "E1"]),
    ("source", "final · pair · miniature:test · sampled", ["E0", "E1"]),
    ("verdict", "right", ["E0", "A2", "A0"]),
    ("verdict", "wrong", ["E1", "A3", "A1"]),
    ("verdict", "none", ["B0"]),
    ("stop", "turn_length", ["A3"]),
    ("step-from", "2", ["B0", "A2", "A3"]),
    ("step-to", "1", ["A0", "A1"]),
    ("turns-from", "3", ["A2"]),
    ("turns-to", "1", ["A3"]),
    ("tokens-to", "4", ["E0", "E1", "B0"]),
    ("tokens-from", "10", ["A2", "A1"]),
]
SORTS = [
    ("step", ["A0", "A1", "A2", "A3", "B0", "E0", "E1"]),
    ("most", ["A2", "A1", "A3", "A0", "E0", "E1", "B0"]),
    ("fewest", ["E0", "E1", "B0", "A0", "A3", "A1", "A2"]),
    ("highest", ["A2", "A0", "A1", "A3", "E0", "E1", "B0"]),
    ("lowest", ["A3", "A1", "A0", "A2", "E0", "E1", "B0"]),
]


def by_key(browser, name: str) -> None:
    """Choose an episode in the list."""
    browser.js(f"document.querySelector('.option[data-at=\"{ORDER.index(name)}\"]').click()")


@pytest.mark.engine
def test_filters_and_order(report, browser):
    browser.open(report)
    listed(browser, *["E0", "E1", "B0", "A2", "A3", "A0", "A1"])
    for name, value, left in FILTERS:
        enter(browser, name, value)
        listed(browser, *left)
        assert browser.js("document.getElementById('episode-count').textContent") == f"{len(left)} of 7 episodes"
        browser.js("document.getElementById('episode-clear').click()")
        listed(browser, *ORDER)
    for name, order in SORTS:
        enter(browser, "sort", name)
        listed(browser, *order)
    enter(browser, "q", "nothing says this")
    listed(browser)
    assert browser.complaints() == []


@pytest.mark.engine
def test_a_dialogue_and_its_tokens(report, browser, tokenizers):
    browser.open(report)
    browser("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.until(TEXTS, ["9", "0"])
    assert (
        browser.js("document.querySelector('.episode .facts').textContent")
        == "verdict✓ right (match)stopansweredturns2tokens4"
    )
    browser.js("document.getElementById('episode-list').focus()")
    for _ in range(5):
        browser.press("ArrowDown")
    browser.until(TEXTS, ["1+1", "é2"])
    assert browser.js("[...document.querySelectorAll('.turn')].map(turn => turn.className)") == [
        "turn long",
        "turn short",
    ]
    assert browser.js("[...document.querySelectorAll('.turn .head')].map(e => e.textContent)") == [
        "long4 tokensweights 3",
        "short4 tokensweights 3",
    ]
    assert browser.js("[...document.querySelectorAll('.turn .tag')].map(e => e.textContent)") == [
        "</think>",
        "</answer>",
    ]
    cells = browser.js(
        "[...document.querySelectorAll('.roles tbody tr')].map(e => [...e.children].map(c => c.textContent))"
    )
    assert cells == [["long", "4", "1.5", "0.25"], ["short", "4", "1.5", "−0.25"]]
    assert browser.js("document.querySelector('.terms').textContent") == "correct1"

    click(browser, ".choice button", "Tokens")
    browser.until("document.querySelectorAll('.turn .tokens').length", 2)
    tokens = "[...document.querySelectorAll('.tokens')[%d].children].map(t => t.textContent + ' ' + t.className)"
    assert browser.js(tokens % 0) == ["1 token p3", "+ token p0", "1 token p0", "</think> token p0 control"]
    assert browser.js(tokens % 1) == ["\\xc3 token p3", "\\xa9 token p0", "2 token p0", "</answer> token p0 control"]
    browser.js("document.querySelector('.tokens').scrollIntoView({block: 'center'})")
    box = browser.js(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('.tokens .token').getBoundingClientRect())"
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    browser.until(
        TIP, ["1", "16", "−0.693", "0.500", "0.000", "1, sampled", "2"]
    )  # after the two ids of its context, 0 and 1
    browser.js("document.querySelector('.tokens .token').focus()")
    browser.press("ArrowRight")
    browser.until(TIP, ["+", "10", "0.000", "1.000", "−0.030", "1, sampled", "3"])
    browser.press("End")
    browser.until(TIP, ["</think>", "281, control", "0.000", "1.000", "+0.600", "1, sampled", "5"])

    click(browser, ".choice button", "engine–learner gap")
    browser.until(tokens % 0, ["1 token p0", "+ token below2", "1 token p0", "</think> token above4 control"])
    assert set(browser.js(tokens % 1)) == {
        f"{text} token unknown{extra}"
        for text, extra in (("\\xc3", ""), ("\\xa9", ""), ("2", ""), ("</answer>", " control"))
    }
    click(browser, ".choice button", "Training sequence of long")
    browser.until(
        tokens % 0,
        [
            "Q token context",
            "  token context",
            "1 token p0",
            "+ token below2",
            "1 token p0",
            "</think> token above4 control",
        ],
    )
    browser.js("document.querySelector('.tokens').children[1].click()")
    browser.until(TIP, ["␣", str(encode_plain(tokenizers[LONG], " ")[0]), "–", "–", "–", "0, read", "1"])
    browser.press("Escape")
    assert browser.js("document.getElementById('token-tip').hidden")
    by_key(browser, "B0")
    browser.until("document.querySelector('.episode').textContent.includes('before the context')", True)
    assert browser.complaints() == []


@pytest.mark.engine
def test_side_by_side_and_the_address(report, browser):
    browser.open(report)
    listed(browser, *ORDER)
    by_key(browser, "A0")
    browser.until(WHERE, ["alpha · training · step 1"])
    titles = browser.js("[...document.querySelectorAll('.relatives dt')].map(e => e.textContent)")
    assert titles == ["alpha · final · pair · miniature:test · sampled", "beta · training", "alpha · training"]
    chips = "[...document.querySelectorAll('.relatives dl > div')].map(e => e.querySelector('dd').textContent)"
    assert browser.js(chips) == ["✓ 4✗ 4", "step 3· 4", "step 1✓ 8✗ 11step 2✗ 9"]
    click(browser, ".chip", "alpha · training · step 1, number 2")
    browser.until(TEXTS, ["1+1", "é2", "7", "needle 3"])
    click(browser, ".chip", "beta")
    browser.until(WHERE, ["alpha · training · step 1", "alpha · training · step 1", "beta · training · step 3"])
    click(browser, ".chip", "alpha · training · step 2")  # a fourth: the oldest gives way
    browser.until(WHERE, ["alpha · training · step 1", "beta · training · step 3", "alpha · training · step 2"])
    click(browser, "#episodes .close", "close beta")
    browser.until(TEXTS, ["1+1", "é2", "long long"])
    click(browser, ".choice button", "Tokens")
    enter(browser, "verdict", "wrong")
    listed(browser, "E1", "A3", "A1")
    browser.until("location.hash.includes('verdict=wrong') && location.hash.includes('view=tokens')", True)
    before = browser.js("document.getElementById('episode-detail').innerHTML")
    browser.reload()
    browser.until("document.getElementById('episode-detail').innerHTML", before)
    listed(browser, "E1", "A3", "A1")
    assert browser.js("document.getElementById('episode-filters').elements.verdict.value") == "wrong"
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    tops = "[...document.querySelectorAll('.episode')].map(e => Math.round(e.getBoundingClientRect().left))"
    browser.until(tops, [18, 18])
    assert browser.js("document.documentElement.scrollWidth") == 390 and browser.complaints() == []


@pytest.mark.engine
def test_hostile_text_is_only_text(report, browser):
    browser("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(report)
    listed(browser, *ORDER)
    by_key(browser, "A2")
    browser.until(TEXTS, [SHOWN_HOSTILE, "a", "b", "c"])
    assert browser.js("document.querySelector('#episode-detail h3').textContent") == SHOWN_HOSTILE
    inert = "document.querySelectorAll('#episodes img, #episode-detail script, #episodes iframe').length"
    assert (
        browser.js(inert) == 0
        and browser.js("getComputedStyle(document.querySelector('.turn .text')).unicodeBidi") == "plaintext"
    )
    assert browser.js("document.documentElement.scrollWidth") == 390
    click(browser, ".choice button", "Tokens")
    browser.until("document.querySelectorAll('.tokens').length", 4)
    assert browser.js("document.querySelector('.tokens').textContent.includes('␀')") and browser.js(inert) == 0
    assert browser.js("document.documentElement.scrollWidth") == 390
    assert browser.js("typeof window.hacked") == "undefined" and browser.complaints() == []


@pytest.mark.engine
def test_thousands_of_episodes_keep_the_document_small(tmp_path, browser):
    for step in range(1, 51):
        write(tmp_path / f"run/episodes/step-{step:06d}.jsonl", [tiny(f"p{i // 4}", step) for i in range(100)])
    page = write_report([tmp_path / "run"])
    browser.open(page.as_uri())
    browser.until("document.querySelectorAll('.episode').length", 1)
    visible = browser.js("document.getElementById('episode-list').clientHeight") / 54
    for place in (0, 2500, 4999):
        browser.js(f"document.getElementById('episode-list').scrollTop = {place} * 54")
        browser.until(
            f"[...document.querySelectorAll('.option')].some(e => e.getAttribute('aria-posinset') == {place + 1})", True
        )
        assert browser.js("document.querySelectorAll('.option').length") <= visible + 10
    assert "so they are shown as ids" in page.read_text()
    click(browser, ".choice button", "Tokens")
    browser.until("document.querySelector('.tokens')?.textContent", "⟨5⟩")
    assert browser.complaints() == []


@pytest.mark.engine
def test_a_browser_that_cannot_unpack_says_so(report, browser):
    browser("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    browser.open(report)
    browser.until(
        "document.getElementById('episode-detail').textContent.startsWith('This browser cannot unpack')", True
    )
    enter(browser, "q", "1+1?")
    listed(browser, *[name for name in ORDER if name != "A2"])
    assert browser.complaints() == []
