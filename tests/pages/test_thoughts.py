"""The page about the cold start in a real browser."""

import json
from pathlib import Path

import pytest

from longshort.coldstart.importance import score
from longshort.report.thoughts_page import write_page
from longshort.runs.ledger import Ledger
from tests.support.browser import started_browser  # noqa: F401

HOSTILE = (
    "Wait </script><script>window.hacked=1</script> <img src=x onerror=window.hacked=1> <think> é\u2028ü & \\boxed{2}"
)
TRACES = {
    # id: (thoughts, tokens, right of N = 4 per prefix, mean length per prefix)
    "math-a": (["First.\n\n", "\\boxed{1}"], [10, 30], [1, 2, 4], [40, 20, 2]),
    "math-b": (["One.\n\n", "Two.\n\n", "Three"], [20, 20, 10], [0, 0, 2, 4], [80, 60, 20, 4]),
    "<b>d/&": ([HOSTILE, "Fin"], [5, 5], [0, 2, 2], [30, 10, 9]),
}
SETTINGS = {
    "chunk": {"traces": "data/x.jsonl", "splitter": "rules"},
    "rollouts": {"num_rollouts": 4, "temperature": 0.7, "top_p": 0.95, "max_tokens": 1024, "model": "models/<i>small"},
    "importance": {"confidence": 0.95, "average": "skeleton"},
    "partition": {"rule": "metric", "num_long": None, "max_exchanges": 3},
    "rewrite": {"rewriter": "verbatim"},
    "rows": {},
}
EXTRA = {
    "chunk": {"thoughts_per_trace": {"min": 2, "median": 2, "mean": 2.33, "max": 3}},
    "importance": {"gain_by_kind": {"<u>check": {"n": 2, "mean": -0.125}, "answer": {"n": 5, "mean": 0.25}}},
    "partition": {"long_share_of_tokens": 0.3833},
    "rows": {"long_tokens": 1200, "long_learned_tokens": 300, "short_tokens": 1300, "short_learned_tokens": 400},
}
DROPPED = {
    ("math-c", "chunk"): {
        "outcome": "one_paragraph",
        "detail": "no blank line",
        "problem": {"id": "c", "question": "Q", "answer": "1"},
    },
    ("math-b", "rewrite"): {"outcome": "wrong_answer", "detail": "gold <1>", "tries": 1, "dialogue": []},
    ("math-b", "rows"): {"outcome": "dropped_before"},
}


def row_of(trace: str, step: str) -> dict:
    """What the step writes about a trace: math-c is dropped by chunk, math-b by rewrite, two go all the way."""
    if trace == "math-c" or (trace, step) in DROPPED:
        return {"id": trace} | DROPPED.get((trace, step), {"outcome": "dropped_before"})
    texts, tokens, right, length = TRACES[trace]
    scored = [
        {name: getattr(one, name) for name in one.__slots__} for one in score(tokens, [(count, 4) for count in right])
    ]
    thoughts = [{"text": text, "kind": "<u>check" if text is HOSTILE else "calculation"} for text in texts]
    dialogue = [["long", texts[0].strip(), "</think>"], ["short", f"So {texts[-1]}", "</answer>"]]
    notes = ["role_tags"] if texts[0] is HOSTILE else []
    chunk = {
        "notes": notes,
        "problem": {"id": trace, "question": f"Why {trace}?", "answer": "1"},
        "splitter": "rules",
        "why": "",
        "thoughts": thoughts,
    }
    by_step = {
        "chunk": chunk,
        "rollouts": {"n": 4, "tokens": tokens, "correct": right, "length": length},
        "importance": {"tokens": tokens, "p0": right[0] / 4, "n": [4] * len(right), "scores": scored},
        "partition": {
            "long": [True, False, False][: len(texts)],
            "messages": [["long", [0]], ["short", [1, 2][: len(texts) - 1]]],
        },
        "rewrite": {"outcome": "kept", "tries": 1, "dialogue": dialogue},
        "rows": {role: {"token_ids": [1], "learned": [[0, 1]]} for role in ("long", "short")},
    }
    return {"id": trace, "outcome": "ok"} | by_step[step]


def write_folder(folder: Path, steps=tuple(SETTINGS), sft=True) -> Path:
    for step in steps:
        ledger = Ledger(folder, step, SETTINGS[step], {})
        for trace in ("math-a", "math-b", "math-c", "<b>d/&"):
            ledger.append(row_of(trace, step))
        ledger.pause(75)
        ledger.finish(list(ledger.rows), EXTRA.get(step, {}))
    for role in ("long", "short") if sft else ():
        (folder / f"sft.{role}").mkdir()
        made = {
            "base": f"models/{role}",
            "complete": True,
            "steps": 20,
            "seconds": 5.0,
            "losses": [2.0, 1.0, 0.5, 0.25],
        }
        (folder / f"sft.{role}" / "manifest.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "my run" / "thoughts")


SHOWN = "[...document.querySelectorAll('#list .question')].map(e => e.textContent).join()"
ALL = "Why math-a?,Why math-b?,Q,Why <b>d/&?"


def test_in_a_browser(folder, browser):
    browser.open(write_page(folder).as_uri())
    assert browser.js(SHOWN) == ALL
    assert browser.js("document.title") == "my run – thoughts"

    def enter(field: str, value: str) -> None:
        browser.js(f"document.querySelector('[name={field}]').value = {json.dumps(value)}")
        browser.js(f"document.querySelector('[name={field}]').dispatchEvent(new Event('input', {{bubbles: true}}))")

    filters = (
        ("q", "three", "Why math-b?"),
        ("q", "so \\boxed", "Why math-a?"),
        ("outcome", "chunk: one_paragraph", "Q"),
        ("thoughts-from", "3", "Why math-b?"),
        ("share-to", "39", "Why math-a?"),
    )
    for field, value, left in filters:
        enter(field, value)
        browser.until(SHOWN, left)
        enter(field, "")
        browser.until(SHOWN, ALL)

    browser.js("document.querySelector('[data-at=\"1\"]').click()")
    texts = "[...document.querySelectorAll('.thought .text')].map(e => e.textContent).join()"
    assert browser.js(texts) == "One.,Two.,Three"
    roles = "[...document.querySelectorAll('.thought .role')].map(e => e.textContent).join()"
    assert browser.js(roles) == "long,short,short"
    facts = "[...document.querySelectorAll('.thought')[1].querySelectorAll('.facts div')].map(e => e.textContent)"
    # M = log2(1 + 10/50 * 30/50 * 2/4)
    assert browser.js(facts) == ["tokens20", "M0.084", "δ0", "P0.50 in 0.15–0.85", "bound±0.12", "rollouts4"]
    assert browser.js("document.querySelector('.dropped').textContent") == "Dropped at rewrite: wrong answer. gold <1>"

    browser.js("document.querySelector('[data-at=\"3\"]').click()")
    assert browser.js("document.querySelector('.thought .text').textContent") == HOSTILE
    messages = (
        "[...document.querySelectorAll('.turn')].map(e => e.className + ':' + e.querySelector('.text').textContent)"
    )
    assert browser.js(messages) == [f"turn long:{HOSTILE} </think>", "turn short:So Fin </answer>"]
    assert browser.js("document.querySelectorAll('#detail img, #detail script, #detail u').length") == 0
    assert browser.js("typeof window.hacked == 'undefined' && document.documentElement.scrollWidth <= innerWidth")

    for address, shown in (("#item=math-c", "Q"), ("#item=%3Cb%3Ed/%26", "Why <b>d/&?")):
        browser.js(f"location.hash = '{address}'")
        browser.until("document.querySelector('#detail h3').textContent", shown)
    assert browser.complaints() == []
