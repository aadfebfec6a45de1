"""The page about the thought pipeline: its numbers, what it says about missing files, and a browser that opens it."""

import json
import re
from pathlib import Path

import pytest

from longshort.coldstart.importance import score
from longshort.report.curves import Point, by_position, by_thoughts_kept, draw, means, shares
from longshort.report.page import embed, told
from longshort.report.thoughts_page import write_page
from longshort.runs.ledger import Ledger
from longshort.types import LongShortError
from tests.browser import started_browser  # noqa: F401

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
        "problem": {"question": "Q", "answer": "1"},
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
        "problem": {"question": f"Why {trace}?", "answer": "1"},
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
        "rows": {"long": {"token_ids": [1]}, "short": {"token_ids": [2]}},
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


def embedded(page: str, name: str):
    return json.loads(re.search(f'<script type="application/json" id="{name}">(.*?)</script>', page).group(1))


def plain(page: str) -> str:
    """The page without markup and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_groups_and_points_by_hand():
    accuracy = [[c / 4 for c in right] for _, _, right, _ in TRACES.values()]
    by_k = by_thoughts_kept(accuracy)
    assert by_k == {0: [0.25, 0, 0], 1: [0.5, 0, 0.5], 2: [1, 0.5, 0.5], 3: [1]}
    points = shares(by_k)
    assert [(p.x, round(p.y, 4), p.n) for p in points] == [(0, 0.0833, 3), (1, 0.3333, 3), (2, 0.6667, 3), (3, 1, 1)]
    assert (round(points[3].low, 4), points[3].high) == (0.2065, 1)  # Wilson, 1 of 1: 1 / (1 + 1.96^2)
    assert by_position(accuracy) == {0.05: [0.25, 0, 0], 0.35: [0], 0.55: [0.5, 0.5], 0.65: [0.5], 0.95: [1, 1, 0.5]}
    assert by_position([[0, 1] * 10]) == {(b + 0.5) / 10: [pytest.approx(value)] for b, value in enumerate([0.5] * 10)}
    pair, alone = means({0: [10, 14], 1: [7]})
    assert (pair.y, round(pair.high - 12, 3), pair.n) == (12, 3.92, 2)  # standard error 2
    assert alone == Point(1, 7, 7, 7, 1)


def test_drawing():
    points = [Point(0, 0.5, 0.25, 0.75, 8), Point(2, 1, 1, 1, 2)]
    drawing = draw("one", {"plain": points}, title="T <t>", x_label="<k>", y_label="P", x_top=2, y_top=1)
    assert (
        "<title>T &lt;t&gt;</title>" in drawing and "&lt;k&gt;" in drawing and ">8</text>" in drawing
    )  # the highest count of traces
    assert drawing.count("var(--plain)") >= 2 and "#a1b2" not in drawing
    alone = draw("two", {"long": [Point(1, 0.5, 0.5, 0.5, 0)]}, title="T", x_label="k", y_label="P", x_top=2)
    assert "var(--long)" in alone and "var(--plain)" not in alone and 'id="one-' not in alone


def test_page_tells_the_numbers(folder):
    page = write_page(folder).read_text(encoding="utf-8")
    text = plain(page)
    assert (
        "<h1>my run</h1>" in page and "models/&lt;i&gt;small" in page and "N = 4 per prefix, up to 1,024 tokens" in page
    )
    assert (
        "temperature 0.7, top-p 0.95" in text
        and "metric, 3 exchanges at most" in text
        and "Base model, short models/short" in text
    )
    assert (
        "4 → 3 one paragraph 1 math-c no blank line" in text
        and "3 → 2 kept 2 wrong answer 1 math-b gold &lt;1&gt;" in text
    )
    assert (
        "thoughts per trace 2 to 3, median 2, mean 2.33" in text
        and "role tags in the text 1" in text
        and "1m15s" in text
    )
    assert "long share of tokens 0.3833" in text and "loss, first to last 2.000 → 0.250" in text
    assert "answer 5 +0.250" in text and "&lt;u&gt;check 2 −0.125" in text and "long 300 1,200 short 400 1,300" in text
    numbers = (
        "0 0.08333 0.004836 to 0.6297 3 1 0.3333 0.06149 to 0.7923 3 2 0.6667 0.2077 to 0.9385 3 3 1 0.2065 to 1 1"
    )
    assert f"thoughts kept, k mean interval traces {numbers}" in text
    assert (
        "P is averaged over skeletons" in text
        and "went on 4 times" in text
        and "up to ±0.98 at 95 % confidence" in text
    )
    assert "remarks" not in page.split("</style>")[1]
    fates = {
        entry["id"]: (entry["step"], entry["outcome"], entry["thoughts"], entry["share"])
        for entry in embedded(page, "index")
    }
    assert fates["math-a"] == ("", "kept", 2, 0.25) and fates["math-b"] == ("rewrite", "wrong_answer", 3, 0.4)
    assert fates["math-c"] == ("chunk", "one_paragraph", 0, None) and fates["<b>d/&"] == ("", "kept", 2, 0.5)
    assert embedded(page, "trace-3")["chunk"]["thoughts"][0]["text"] == HOSTILE
    assert embedded(page, "trace-0")["rewrite"]["dialogue"][0] == ["long", "First.", "</think>"]


def test_page_is_one_file_and_the_same_again(folder):
    first = write_page(folder).read_bytes()
    assert write_page(folder).read_bytes() == first and not list(folder.glob("*.tmp"))
    page = first.decode()
    assert not re.search(r"(src|href)=[\"']?(https?:|//)|@import|url\((?!#)", page)
    assert (
        page.count("<script>") == 1
        and "window.hacked=1</script>" not in page
        and "\u2028" not in page
        and "innerHTML" not in page
    )
    assert embed({"a": "</script>&\u2028"}) == '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'
    assert [told(value) for value in (0.38, {"a": 4}, True, 23764, 12345.6)] == [
        "0.38",
        "a: 4",
        "yes",
        "23,764",
        "12,346",
    ]


def test_missing_steps_and_folders(tmp_path):
    page = plain(write_page(write_folder(tmp_path / "r" / "thoughts", ["chunk", "rollouts"], sft=False)).read_text())
    assert "Not run yet: importance, partition, rewrite, rows, sft of the long model, sft of the short model." in page
    assert (
        "partition long or short not run yet" in page
        and "0 0.08333 0.004836 to 0.6297 3" in page
        and "skeletons" not in page
    )
    assert "Not run yet: chunk, rollouts" in write_page(tmp_path).read_text()
    with pytest.raises(LongShortError, match="no such folder"):
        write_page(tmp_path / "nowhere")


def test_damage_is_told_and_the_rest_shown(folder):
    chunk, rollouts, rewrite = (folder / f"{name}.jsonl" for name in ("chunk", "rollouts", "rewrite"))
    lines = chunk.read_bytes().splitlines()
    chunk.write_bytes(b"\n".join([lines[0], b'{"id": "x', *lines[2:]]) + b"\n")
    rollouts.write_text(rollouts.read_text().replace("[0, 2, 2]", '"many"').replace("[1, 2, 4]", "[1, 2]"))
    (folder / "importance.manifest.json").write_text("{")
    (folder / "sft.short" / "manifest.json").write_text('{"base": "x"}')
    manifest = json.loads((folder / "rewrite.manifest.json").read_text()) | {"complete": False}
    (folder / "rewrite.manifest.json").write_text(json.dumps(manifest))
    rewrite.write_bytes(rewrite.read_bytes()[:-9])
    text = plain(write_page(folder).read_text()).replace("&#39;", "'")
    assert "chunk.jsonl, line 2: damaged (" in text and "with --redo. Shown is what can be read: 3 lines of 4." in text
    assert (
        "1 of 4 lines of rollouts.jsonl are left out, as the step does not write such (correct: Input should be a valid list)."
        in text
    )
    assert (
        "importance.manifest.json cannot be read" in text
        and "sft.short/manifest.json cannot be read (complete: Field required)" in text
    )
    assert "The step rewrite is not finished: 3 traces so far." in text and "rewrite.jsonl, line" not in text
    assert "traces 0 0 0 to 0.7935 1" in text and text.count("Numbers") == 4  # math-b alone is whole


def test_limit_keeps_the_first_dropped_of_every_outcome(tmp_path):
    ledger = Ledger(tmp_path, "chunk", {}, {})
    for number in range(40):
        reason = "ok" if number < 30 else "one_paragraph" if number < 38 else "bad_row"
        ledger.append({"id": f"t{number}", "outcome": reason, "problem": {"question": "Q", "answer": "1"}})
    ledger.finish(list(ledger.rows), {})
    page = write_page(tmp_path, limit=10).read_text()
    assert [entry["id"] for entry in embedded(page, "index")] == [
        "t0",
        "t1",
        "t2",
        "t3",
        "t4",
        "t30",
        "t31",
        "t32",
        "t38",
        "t39",
    ]
    assert "10 of 10 traces on this page; the run has 40" in plain(page) and "and 5 more" in page
    assert "none of 40 is embedded" in write_page(tmp_path, limit=0).read_text()


SHOWN = "[...document.querySelectorAll('#list li:not([hidden]) button')].map(button => button.title).join()"


@pytest.mark.engine
def test_in_a_browser(folder, browser):
    browser.open(write_page(folder).as_uri())
    assert browser.js(SHOWN) == "math-a,math-b,math-c,<b>d/&" and browser.js("document.title") == "my run – thoughts"
    assert browser.js("document.querySelectorAll('#detail .thought.long, #detail .thought.short').length") == 2

    def enter(field: str, value: str) -> None:
        browser.js(f"document.getElementById('{field}').value = {json.dumps(value)}")
        browser.js(f"document.getElementById('{field}').dispatchEvent(new Event('input', {{bubbles: true}}))")

    found = {"three": "math-b", "so \\boxed": "math-a", "onerror": "<b>d/&"}
    limits = (
        ("outcome", "chunk: one paragraph", "math-c"),
        ("thoughts-from", "3", "math-b"),
        ("share-to", "39", "math-a"),
    )
    for field, value, left in (*(("query", text, trace) for text, trace in found.items()), *limits):
        enter(field, value)
        browser.until(SHOWN, left)
        assert browser.js("document.getElementById('matching').textContent") == "1"
        enter(field, "")
        browser.until(SHOWN, "math-a,math-b,math-c,<b>d/&")

    browser.js("document.querySelector('#list button[title=\"math-b\"]').click()")
    assert (
        browser.js("[...document.querySelectorAll('.thought .text')].map(e => e.textContent).join()")
        == "One.,Two.,Three"
    )
    assert (
        browser.js("[...document.querySelectorAll('.thought .role')].map(e => e.textContent).join()")
        == "long,short,short"
    )
    cells = browser.js("[...document.querySelectorAll('#thought-1 .cell')].map(e => e.textContent).join('|')")
    assert cells == "tokens20|M0.084|δ0|P in 0.15–0.850.50|bounds±0.12, ±0.98"  # M = log2(1 + 10/50 * 30/50 * 2/4)
    assert browser.js("document.querySelector('.dropped').textContent") == "Dropped at rewrite: wrong answer. gold <1>"
    assert browser.js("location.hash") == "#math-b" and browser.js("document.querySelectorAll('.message').length") == 0

    browser.js("document.querySelector('#list li:last-child button').click()")
    assert browser.js("document.querySelector('.thought .text').textContent") == HOSTILE
    messages = browser.js(
        "[...document.querySelectorAll('.message')].map(e => e.className + ':' + e.querySelector('.text').textContent)"
    )
    assert messages == [f"message long:{HOSTILE} </think>", "message short:So Fin </answer>"]
    assert browser.js("document.querySelectorAll('#detail img, #detail script, #detail b, #detail u').length") == 0
    assert browser.js("typeof window.hacked == 'undefined' && document.documentElement.scrollWidth <= innerWidth")

    for address, shown in (("#math-c", "Q"), ("#%3Cb%3Ed/%26", "Why <b>d/&?")):
        browser.js(f"location.hash = '{address}'")
        browser.until("document.querySelector('#detail h3').textContent", shown)
    assert browser.complaints() == []
