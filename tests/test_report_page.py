"""The report: what stands on it for folders made by hand, what it says about damage, and a browser that opens it."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from longshort.report.panels import GROUPS, window_of
from longshort.report.report_page import write_report
from longshort.report.run_files import load
from longshort.types import LongShortError
from tests.browser import started_browser  # noqa: F401
from tests.report_runs import (
    demo_results,
    measures,
    pair_of,
    results,
    row,
    write_demo,
    write_lines,
    write_recipe,
    write_results,
)

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> $\\frac{ @0@ \u202e\u2028é"


def learning(folder: Path, accuracies, **more) -> Path:
    """A run of so many steps, with a recipe and metrics only; `more` is in every row."""
    write_recipe(folder)
    write_lines(
        folder / "metrics.jsonl", ({"step": i, "team/accuracy": value} | more for i, value in enumerate(accuracies, 1))
    )
    return folder


def text_of(page: Path) -> str:
    """The page without style, scripts, drawings and markup, with single spaces."""
    text = re.sub(r"<(style|script|svg).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return (
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    )


def test_curves_of_two_runs_tell_their_ends(tmp_path):
    a = learning(
        tmp_path / "a",
        [0.1, 0.2, 0.3125],
        **{"long/entropy": 0.5, "short/entropy": 0.25, "reward/length": -0.5, "reward/mu": 1},
    )
    b = learning(tmp_path / "b", [0.4, 0.5], **{"eval/accuracy": 0.75})
    page = write_report([a, b])
    text, html = text_of(page), page.read_text()
    assert page == a / "report.html" and "Report on 2 runs a b a · 3 steps · " in text and "b · 2 steps" in text
    assert "Accuracy at the last step value a training 0.3125 b training 0.5 b evaluation 0.75" in text
    assert (
        "Entropy, nats per token at step 3 value a long 0.5 a short 0.25" in text
        and "Reward term: length at step 3 value a -0.5" in text
    )
    assert (
        html.count('<svg class="plot"') == 3
        and 'aria-label="Accuracy"' in html
        and "var(--run-1)" in html
        and "Reward term: mu" not in html
    )
    undrawn = re.search(r"Not drawn, as no run has logged it: (.*?)\. ", text).group(1).split("; ")
    assert (
        undrawn[0] == "Tokens per dialogue"
        and "KL to the starting model (loss.beta is 0, so there is no reference model)" in undrawn
    )
    assert len(undrawn) == sum(map(len, GROUPS.values())) - 2


def test_kl_and_a_steep_metric(tmp_path):
    run = write_demo(tmp_path / "r", steps=4, loss={"beta": 0.01})
    write_lines(run / "metrics.jsonl", ({"step": i, "long/kl": 10.0**i, "short/grad_norm": 2.0 * i} for i in range(4)))
    page = write_report([run])
    text = text_of(page)
    assert (
        "KL to the starting model logarithmic at step 3 value long 1,000" in text
        and "Gradient norm at step 3 value short 6" in text
    )
    drawing = re.search(r'<svg[^>]*aria-label="KL.*?</svg>', page.read_text(), flags=re.DOTALL).group()
    assert (
        re.findall(r">([\d,]+)</text>", drawing) == ["0", "1", "2", "3", "1", "10", "100", "1,000"]
        and "loss.beta is 0" not in text
    )


def test_running_mean_is_over_a_twentieth_of_the_longest_run(tmp_path):
    runs = [learning(tmp_path / "a", [0.0] * 57 + [0.25, 0.5, 0.75]), learning(tmp_path / "b", [1.0])]
    assert window_of(load(runs)) == 3
    text = text_of(write_report(runs))
    assert (
        "Lines are means over the last 3 steps" in text
        and "Accuracy at the last step value mean of 3 a 0.75 0.5 b 1 1" in text
    )


def test_settings_that_differ_come_first(tmp_path):
    for name, rate in (("a", 1e-4), ("b", 2e-4)):
        write_recipe(
            tmp_path / name,
            seed=7,
            short={"model": "m/short", "price": 0.25, "learning_rate": rate},
            reward={"length_weight": 0.75},
        )
    text = text_of(write_report([tmp_path / "a", tmp_path / "b"]))
    assert (
        "Settings that differ a b short.learning_rate 0.0001 0.0002 Long model models/long Short model m/short Protocol long_short, 3"
        in text
    )
    assert (
        "Reward 1 · correct + 0.5 · format + 0.75 · length (kimi) Price of a token long 1, short 0.25" in text
        and "Learning rates" not in text
    )
    assert (
        "All settings of b" in text
        and "scale_rewards group" in text
        and "Settings that differ" not in text_of(write_report([tmp_path / "a"]))
    )


def test_tables_tell_the_numbers(tmp_path):
    write_results(tmp_path, "results", demo_results(0.0) | {"faults": ["AIME24 could not be had"]})
    page = write_report([tmp_path])
    text = text_of(page)
    assert "miniature:test, 400 problems, 400 golds parsed, 400 golds verified sampled, 400 problems × 1" in text
    head = "System Accuracy Tokens Characters Cost Messages Hand-back Format Answered Rethinking AES"
    assert (
        f"{head} pair, trained 0.935 ± 0.012 [0.911, 0.959] 40.9 24.2 + 16.7 127 75 + 52 28.4 2.40 0.31 0.42 each 0.98 0.98 · 0.99"
        in text
    )
    assert (
        "0.98 · 0.99 0.97 max turns 0.02 turn length 0.01 0.30 in 22% +1.14 characters +1.20 cost +1.30 pair, after cold start"
        in text
    )
    assert "103.7 321" in text and "−2.10" in text  # a single model has no parts of its tokens
    assert (
        "pair, trained − single long model +0.153 [+0.108, +0.198], p < 0.001 −62.8 [−64.9, −60.6], p < 0.001" in text
    )
    assert (
        "long ↓ &ensp; short → cold_start checkpoint-40 checkpoint-80 cold_start 0.500 0.540 0.580 checkpoint-40 0.670"
        in text
    )
    assert "Checkpoints playing with each other: 9" in text and "eval/results.json: AIME24 could not be had." in text
    html = page.read_text()
    assert (
        re.findall(r"<b>(.*?)</b>", html) == ["0.935 ± 0.012", "0.975 ± 0.012"]
        and '--shade:8%">0.500' in html
        and '--shade:50%">0.920' in html
    )
    assert (
        "On the front, from cheap to accurate: checkpoint-80 with cold_start: 0.840 [" in text
        and "pair, trained: 0.935 [0.911, 0.959] at 28.4." in text
    )


def test_bold_only_where_the_intervals_say_so(tmp_path):
    systems = {"x": pair_of("a", "b", "X"), "y": pair_of("c", "d", "Y")}
    for low, bold in ((0.5, []), (0.61, ["0.650"])):
        rows = [
            row("x", {"accuracy": 0.65, "interval": [low, 0.7], "tokens": 5}),
            row("y", {"accuracy": 0.55, "interval": [0.4, 0.6], "tokens": 9}),
        ]
        write_results(tmp_path, "results", results(rows, systems))
        assert re.findall(r"<b>(.*?)</b>", write_report([tmp_path]).read_text()) == bold


def test_pass_at_k_and_the_mean_over_benchmarks(tmp_path):
    values = measures(0.5, 10, 5) | {"samples": 16, "pass@2": 0.625, "pass@16": 0.875}
    rows = [row("x", values), row("x", {"accuracy": 0.25, "tokens": 100}, benchmark="all")]
    write_results(tmp_path, "results", results(rows, {}))
    text = text_of(write_report([tmp_path]))
    assert text.index("Mean over benchmarks: accuracy over tokens") < text.index("Miniature: accuracy over cost")
    assert "Mean over benchmarks sampled System Accuracy Tokens x 0.250 100.0 Miniature" in text
    assert "400 problems × 16 System Accuracy pass@2 pass@16 Tokens" in text and "0.625 0.875 15.0 10.0 + 5.0" in text


def test_damage_is_told_and_the_rest_shown(tmp_path):
    run = learning(tmp_path / "r", [])
    lines = [
        f'{{"step": {i}, "team/accuracy": 0.{i}, "long/kl": {"NaN" if 2 <= i <= 4 else "-Infinity" if i == 6 else 0.5}}}'
        for i in range(1, 9)
    ]
    twice = '{"step": 3, "team/accuracy": 0.875, "long/kl": 0.25}'
    (run / "metrics.jsonl").write_text(
        "\n".join([*lines[:5], "no JSON", *lines[5:], "[1]", twice, '{"step": 9, "team/acc'])
    )
    write_results(run, "old", {"accuracy": 0.5, "models": {}})
    write_results(run, "odd", results([row("x", {"accuracy": "high"})], {}) | {"systems": {"x": {"models": 3}}})
    write_results(run, "nan", results([row("x", {"accuracy": float("nan")})], {}))
    (run / "eval" / "half.json").write_text('{"systems": {')
    text = text_of(write_report([run]))
    assert "r/metrics.jsonl, lines 6, 10, 12: half-written or damaged; the other lines are shown." in text
    assert "r: long/kl is no finite number at steps 2, 4, 6; left out of its line." in text  # step 3 was written again
    assert "r has no episodes/: trained with an older version, or not trained here." in text
    assert (
        "r/eval/old.json was made by an older version" in text and "r/eval/half.json cannot be read (Expecting" in text
    )
    assert "r/eval/odd.json cannot be read (systems.x.models: Input should be a valid dictionary)" in text
    assert "r/eval/nan.json: x on miniature:test has no finite accuracy; not shown." in text
    assert load([run])[0].curve("team/accuracy") == (
        [1, 2, 3, 4, 5, 6, 7, 8],
        [0.1, 0.2, 0.875, 0.4, 0.5, 0.6, 0.7, 0.8],
    )
    assert load([run])[0].curve("long/kl") == ([1, 3, 5, 7, 8], [0.5, 0.25, 0.5, 0.5, 0.5])


def test_missing_parts_are_told(tmp_path):
    (tmp_path / "r" / "episodes").mkdir(parents=True)
    text = text_of(write_report([tmp_path / "r"]))
    for part in (
        "no recipe.yaml: its settings",
        "no metrics.jsonl: not trained here",
        "no episodes/: trained",
        "no eval/: not evaluated yet",
    ):
        assert f"r has {part}" in text
    assert "No metrics to draw yet." in text and "No evaluation to draw yet" in text
    (tmp_path / "r" / "recipe.yaml").write_text("a: 1\na: 2")
    assert "r/recipe.yaml cannot be read (line 2: the key 'a' stands twice; keep one), so its settings" in text_of(
        write_report([tmp_path / "r"])
    )


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    run = learning(tmp_path / "r", [0.5])
    for folders, message in (
        ([tmp_path / "nowhere"], "nowhere: no such folder"),
        ([run, tmp_path / "empty"], "empty has none of recipe.yaml, metrics.jsonl, episodes, eval"),
        ([run, run], "named 2 times"),
        ([], "at least one"),
    ):
        with pytest.raises(LongShortError, match=message):
            write_report(folders)
    with pytest.raises(LongShortError, match="refresh is 0"):
        write_report([run], refresh=0)
    assert (
        '<noscript><meta http-equiv="refresh" content="30"></noscript>' in write_report([run], refresh=30).read_text()
    )
    other = learning(tmp_path / "b" / "r", [0.5])
    assert [one.name for one in load([run, other])] == [f"{tmp_path.name}/r", "b/r"]


def hostile_run(folder: Path) -> Path:
    run = write_demo(folder / "<img src=x onerror=window.hacked=1> $\\frac{", steps=6, dataset=HOSTILE)
    content = demo_results(0.0)
    content["systems"]["pair"]["title"] = content["benchmarks"]["miniature:test"]["title"] = HOSTILE
    content["cross_play"] = {"long": [HOSTILE], "short": [HOSTILE]}
    write_results(run, "results", content)
    write_lines(run / "metrics.jsonl", [{"step": 1, f"reward/{HOSTILE}": 1.0, "team/accuracy": 0.5, "\ud800": "x"}])
    return run


def test_page_is_one_file_that_asks_for_nothing_and_the_same_again(tmp_path):
    run = hostile_run(tmp_path)
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first and not list(run.glob("*.tmp"))
    page = first.decode()
    assert "window.hacked=1</script>" not in page and "<img" not in page
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\((?!#)""", page)
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 1 and re.findall("'sha256-(.*?)'", page) == hashes
    assert "reload" not in page and 'http-equiv="refresh"' not in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and all(
        f"#{name}" in page for name in ids if name.startswith(("curve", "scatter")) and "-m" in name
    )


@pytest.mark.engine
def test_page_loads_itself_again_and_keeps_its_state(tmp_path, browser):
    page = write_report([learning(tmp_path / "r", [0.5])], refresh=1)
    browser.open(f"{page.as_uri()}#q=sum")
    browser.js("window.first = 1")
    write_report([learning(tmp_path / "r", [0.5, 0.75])])  # which stays, as it is not to be loaded again
    while "2 steps" not in browser.js("document.querySelector('.byline').textContent"):
        browser.events.clear()
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())
    assert browser.js("typeof window.first") == "undefined"
    assert browser.js("location.hash") == "#q=sum" and browser.complaints() == []


@pytest.mark.engine
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path, browser, theme):
    one, other = hostile_run(tmp_path), write_demo(tmp_path / "other", seed=1, steps=6)
    page = write_report([one, other], refresh=600)
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    for width in (390, 1280):
        browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        browser.open(page.as_uri())
        assert browser.js("document.documentElement.scrollWidth") <= width
        shown = "getComputedStyle(document.querySelector('.scatter .{}')).display"
        assert [browser.js(shown.format(kind)) for kind in ("wide", "narrow")] == (
            ["none", "block"] if width < 500 else ["block", "none"]
        )
    assert (
        browser.js("typeof window.hacked") == "undefined"
        and browser.js("document.querySelectorAll('#results img, h1 img').length") == 0
    )
    assert HOSTILE in browser.js("document.querySelector('.scatter figcaption').textContent")
    assert browser.js("document.querySelector('.measures tbody th').firstElementChild.nextSibling.data") == HOSTILE
    line = "[...document.querySelectorAll('.curves svg path')].map(path => getComputedStyle(path).stroke)"
    colours = {"light": "rgb(181, 101, 29)", "dark": "rgb(229, 168, 120)"}
    assert colours[theme] in browser.js(line) and browser.complaints() == []
    assert (
        json.loads(browser.js("JSON.stringify([...document.querySelectorAll('svg [id]')].map(e => e.id))")).count(
            "point-0"
        )
        == 0
    )
