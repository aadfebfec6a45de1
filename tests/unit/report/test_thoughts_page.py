"""The page about the cold start: its numbers, what it says about missing files, and a browser that opens it."""

import json
import re
from pathlib import Path

import pytest

from longshort.coldstart.importance import score
from longshort.report.thoughts_figures import by_position, mean_interval, share_interval
from longshort.report.thoughts_page import write_page
from longshort.runs.ledger import Ledger
from longshort.types import LongShortError
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


def embedded(page: str, name: str):
    return json.loads(re.search(f'<script type="application/json" id="{name}">(.*?)</script>', page).group(1))


def plain(page: Path) -> str:
    """The page without markup and with single spaces."""
    text = re.sub(r"<(style|script|svg).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).replace("&#39;", "'")


def test_positions_and_intervals_by_hand():
    accuracy = [[c / 4 for c in right] for _, _, right, _ in TRACES.values()]
    assert by_position(accuracy) == {0.05: [0.25, 0, 0], 0.35: [0], 0.55: [0.5, 0.5], 0.65: [0.5], 0.95: [1, 1, 0.5]}
    assert by_position([[0, 1] * 10]) == {(b + 0.5) / 10: [pytest.approx(0.5)] for b in range(10)}
    assert mean_interval([10, 14]) == pytest.approx((12 - 3.92, 12 + 3.92), abs=0.001)  # standard error 2
    assert mean_interval([7]) == (7, 7)
    assert share_interval([1]) == (pytest.approx(0.2065, abs=1e-4), 1)  # Wilson, 1 of 1: 1 / (1 + 1.96^2)


def test_page_has_the_numbers(folder):
    page = write_page(folder)
    text, html = plain(page), page.read_text()
    assert "<h1>my run</h1>" in html
    assert "models/&lt;i&gt;small" in html
    assert "chunk 4 → 3 one paragraph 1 math-c no blank line" in text
    assert "rewrite 3 → 2 kept 2 wrong answer 1 math-b gold &lt;1&gt;" in text
    assert "thoughts per trace min: 2, median: 2, mean: 2.33, max: 3 role tags 1" in text
    assert "1m15s" in text
    assert "optimizer steps 20 loss, first to last 2.000 → 0.250" in text
    assert "gain in P of &lt;u&gt;check, 2 thoughts -0.125" in text
    assert "long tokens 1,200 long learned tokens 300" in text
    assert "P is averaged over skeletons" in text
    assert "Accuracy Tokens Ten bins" in text
    assert 'class="remarks"' not in html


def test_every_trace_is_embedded_with_its_fate(folder):
    page = write_page(folder).read_text()
    fates = {entry["id"]: (entry["outcome"], entry["thoughts"], entry["share"]) for entry in embedded(page, "index")}
    assert fates == {
        "math-a": ("kept", 2, 25.0),
        "math-b": ("rewrite: wrong_answer", 3, 40.0),
        "math-c": ("chunk: one_paragraph", 0, None),
        "<b>d/&": ("kept", 2, 50.0),
    }
    assert embedded(page, "item-3")["chunk"]["thoughts"][0]["text"] == HOSTILE
    assert embedded(page, "item-0")["rewrite"]["dialogue"][0] == ["long", "First.", "</think>"]


def test_page_is_one_file_and_the_same_again(folder):
    first = write_page(folder).read_bytes()
    assert write_page(folder).read_bytes() == first
    page = first.decode()
    assert not re.search(r"(src|href)=[\"']?(https?:|//)|@import|url\((?!#)", page)
    assert page.count("<script>") == 1
    assert "window.hacked=1</script>" not in page
    assert "\u2028" not in page


def test_missing_steps_and_folders(tmp_path):
    page = plain(write_page(write_folder(tmp_path / "r" / "thoughts", ["chunk", "rollouts"], sft=False)))
    assert "Not run yet: importance, partition, rewrite, rows, sft of the long model, sft of the short model." in page
    assert "skeletons" not in page
    (tmp_path / "empty").mkdir()
    empty = plain(write_page(tmp_path / "empty"))
    assert "Not run yet: chunk, rollouts" in empty
    assert "No traces to show." in empty
    with pytest.raises(LongShortError, match="no such folder"):
        write_page(tmp_path / "nowhere")


def test_damage_is_counted_and_the_rest_shown(folder):
    lines = (folder / "chunk.jsonl").read_bytes().splitlines()
    (folder / "chunk.jsonl").write_bytes(b"\n".join([lines[0], b'{"id": "x', *lines[2:]]) + b"\n")
    rollouts = folder / "rollouts.jsonl"
    rollouts.write_text(rollouts.read_text().replace("[0, 2, 2]", '"many"').replace("[1, 2, 4]", "[1, 2]"))
    (folder / "importance.manifest.json").write_text("{")
    (folder / "sft.short" / "manifest.json").write_text('{"base": "x"}')
    manifest = json.loads((folder / "rewrite.manifest.json").read_text()) | {"complete": False}
    (folder / "rewrite.manifest.json").write_text(json.dumps(manifest))
    text = plain(write_page(folder))
    assert "1 damaged line skipped in chunk.jsonl." in text
    assert "1 damaged line skipped in rollouts.jsonl." in text
    assert "importance.manifest.json cannot be read, so it is left out" in text
    assert "sft.short/manifest.json cannot be read, so it is left out" in text
    assert "Not finished: rewrite (4 traces so far)." in text


def test_limit_keeps_the_first_dropped_of_every_outcome(tmp_path):
    ledger = Ledger(tmp_path, "chunk", {}, {})
    for number in range(40):
        reason = "ok" if number < 30 else "one_paragraph" if number < 38 else "bad_row"
        ledger.append({"id": f"t{number}", "outcome": reason})
    ledger.finish(list(ledger.rows), {})
    page = write_page(tmp_path, limit=10)
    chosen = [entry["id"] for entry in embedded(page.read_text(), "index")]
    assert chosen == ["t0", "t1", "t2", "t3", "t4", "t30", "t31", "t32", "t38", "t39"]
    assert "10 of 40 traces are on this page." in plain(page)
    assert "and 5 more" in plain(page)
    assert "No traces to show." in plain(write_page(tmp_path, limit=0))
