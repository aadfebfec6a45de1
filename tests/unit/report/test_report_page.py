"""The report: what it shows of folders made by hand, what it says about damage, and a browser that opens it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from longshort.report.page import embed, readable
from longshort.report.panels import window_of
from longshort.report.report_page import write_report
from longshort.report.run_files import load
from longshort.types import LongShortError
from tests.support.browser import started_browser  # noqa: F401
from tests.support.report_runs import (
    demo_results,
    hostile_run,
    measures,
    results,
    row,
    write_lines,
    write_recipe,
    write_results,
)


def learning(folder: Path, accuracies, **more) -> Path:
    """A run with a recipe and one step per accuracy; `more` is in every row."""
    write_recipe(folder)
    rows = [{"step": i, "team/accuracy": value} | more for i, value in enumerate(accuracies, 1)]
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def text_of(page: Path) -> str:
    """The page without style, scripts, drawings and markup, with single spaces."""
    text = re.sub(r"<(style|script|svg).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    return text.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")


def test_curves_of_two_runs(tmp_path):
    values = {"long/entropy": 0.5, "short/entropy": 0.25, "reward/length": -0.5, "reward/mu": 1, "team/reward": 9}
    a = learning(tmp_path / "a", [0.1, 0.2, 0.3125], **values, **{"team/reward/long": 1.0})
    b = learning(tmp_path / "b", [0.4, 0.5], **{"eval/accuracy": 0.75})
    page = write_report([a, b])
    text, html = text_of(page), page.read_text()
    assert page == a / "report.html"
    assert "Report on 2 runs a b a · 3 steps b · 2 steps" in text
    ends = "a training 0.3125 at step 3 b training 0.5 at step 2 b evaluation 0.75 at step 2"
    assert f"Accuracy {ends}" in text
    assert "Entropy, nats per token a long 0.5 at step 3 a short 0.25 at step 3" in text
    assert "Reward a long 1 at step 3 Reward term: length a training -0.5 at step 3" in text
    assert html.count('<svg class="plot"') == 4
    assert '<g class="run-1">' in html
    assert "Reward term: mu" not in html


def test_a_steep_metric_gets_a_logarithmic_axis(tmp_path):
    run = tmp_path / "r"
    write_lines(run / "metrics.jsonl", ({"step": i, "long/kl": 10.0**i, "short/grad_norm": 2.0 * i} for i in range(4)))
    page = write_report([run])
    assert "KL to the starting model logarithmic long 1,000 at step 3" in text_of(page)
    assert "Gradient norm short 6 at step 3" in text_of(page)
    drawing = re.search(r'<svg[^>]*aria-label="KL.*?</svg>', page.read_text(), flags=re.DOTALL).group()
    assert re.findall(r">([\d,]+)</text>", drawing)[:4] == ["1", "10", "100", "1,000"]


def test_running_mean_is_over_a_twentieth_of_the_longest_run(tmp_path):
    runs = [learning(tmp_path / "a", [0.5] * 60), learning(tmp_path / "b", [1.0])]
    assert window_of(load(runs)) == 3
    assert "Lines are means over the last 3 steps" in text_of(write_report(runs))


def test_settings_that_differ_come_first(tmp_path):
    for name, rate in (("a", 1e-4), ("b", 2e-4)):
        write_recipe(tmp_path / name, seed=7, short={"model": "m/short", "price": 0.25, "learning_rate": rate})
    text = text_of(write_report([tmp_path / "a", tmp_path / "b"]))
    assert "Settings that differ a b short.learning_rate 0.0001 0.0002 long.model models/long" in text
    assert "All settings of b" in text
    assert "scale_rewards group" in text
    assert "Settings that differ" not in text_of(write_report([tmp_path / "a"]))


def test_tables_have_the_numbers(tmp_path):
    write_results(tmp_path, "results", demo_results(0.0) | {"faults": ["AIME24 could not be had"]})
    page = write_report([tmp_path])
    text = text_of(page)
    assert "sampled, 400 problems × 1 System Accuracy Tokens Characters Cost Messages Hand-back" in text
    assert (
        "pair, trained results 0.935 [0.911, 0.959] 40.9 24.2 + 16.7 127 75 + 52 28.4 2.40 0.31 0.98 0.98 + 0.99 0.97"
        in text
    )
    assert "max turns 0.02 turn length 0.01 0.30 1.14" in text
    assert "−2.10" in text
    differences = "+0.153 [+0.108, +0.198], p < 0.001 −62.8 [−64.9, −60.6], p < 0.001"
    assert f"pair, trained − single long model {differences}" in text
    assert "Checkpoints playing with each other, sampled: 9" in text
    assert "eval/results.json: AIME24 could not be had." in text
    assert "On the front, from cheap to accurate: checkpoint-80 with cold_start (results): 0.840 [" in text
    assert "pair, trained (results): 0.935 [0.911, 0.959] at 28.4." in text


def test_pass_at_k_and_the_mean_over_benchmarks(tmp_path):
    values = measures(0.5, 10, 5) | {"samples": 16, "pass@2": 0.625, "pass@16": 0.875}
    rows = [row("x", values), row("x", {"accuracy": 0.25, "tokens": 100}, benchmark="all")]
    write_results(tmp_path, "results", results(rows, {}))
    text = text_of(write_report([tmp_path]))
    assert text.index("Mean over benchmarks: accuracy over tokens") < text.index("Miniature: accuracy over cost")
    assert "Mean over benchmarks sampled System Accuracy Tokens x results 0.250 100.0 Miniature" in text
    assert "400 problems × 16 System Accuracy pass@2 pass@16 Tokens" in text
    assert "0.625 0.875 15.0 10.0 + 5.0" in text


def test_damage_is_counted_and_the_rest_shown(tmp_path):
    run = learning(tmp_path / "r", [])
    rows = [f'{{"step": {i}, "team/accuracy": 0.{i}, "long/kl": {"NaN" if i == 2 else 0.5}}}' for i in range(1, 5)]
    twice = '{"step": 3, "team/accuracy": 0.875, "long/kl": 1e999}'
    damaged = ["no JSON", "[1]", '{"step": true}', '{"step": 9, "team/acc']
    (run / "metrics.jsonl").write_text("\n".join([*rows, *damaged[:3], twice, damaged[3]]))
    write_results(run, "odd", results([row("x", {"accuracy": "high"})], {}) | {"systems": {"x": {"models": 3}}})
    write_results(run, "nan", results([row("x", {"accuracy": float("nan")})], {}))
    text = text_of(write_report([run]))
    assert "4 damaged lines skipped in r/metrics.jsonl." in text
    assert "r/eval/odd.json cannot be read, so it is left out: " in text
    assert "r/eval/nan.json: 1 rows without a finite accuracy are left out." in text
    loaded = load([run])[0]
    assert loaded.curve("team/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.875), (4, 0.4)]  # a later line replaces a step
    assert loaded.curve("long/kl") == [(1, 0.5), (4, 0.5)]


def test_missing_parts_are_said(tmp_path):
    (tmp_path / "r" / "episodes").mkdir(parents=True)
    text = text_of(write_report([tmp_path / "r"]))
    for part in ("r/recipe.yaml cannot be read", "r has no metrics.jsonl", "r has no evaluation yet"):
        assert part in text
    for part in ("No metrics to draw yet.", "No evaluation to draw yet", "No episodes here"):
        assert part in text
    (tmp_path / "r" / "recipe.yaml").write_text("a: 1\na: 2")
    assert "r/recipe.yaml cannot be read (line 2: the key 'a' appears twice" in text_of(write_report([tmp_path / "r"]))


def test_what_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    run = learning(tmp_path / "r", [0.5])
    for folders, message in (
        ([tmp_path / "nowhere"], "nowhere: no such folder"),
        ([run, tmp_path / "empty"], "empty has no recipe.yaml, metrics.jsonl, episodes or eval"),
        ([run, run], "named 2 times"),
        ([], "at least one"),
    ):
        with pytest.raises(LongShortError, match=message):
            write_report(folders)
    with pytest.raises(LongShortError, match="refresh is 0"):
        write_report([run], refresh=0)
    other = learning(tmp_path / "b" / "r", [0.5])
    assert [one.name for one in load([run, other])] == [f"{tmp_path.name}/r", "b/r"]


def test_page_is_one_file_that_needs_no_network_and_is_the_same_again(tmp_path):
    run = hostile_run(tmp_path)
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first
    assert not list(run.glob(".*.tmp"))
    page = first.decode()
    assert "window.hacked=1</script>" not in page
    assert "<img" not in page
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\((?!#)""", page)
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall("'sha256-(.*?)'", page) == hashes
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|reload", scripts[0])


def test_json_in_a_script_is_inert():
    assert embed({"a": "</script>&\u2028"}) == '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'


def test_values_are_readable():
    assert [readable(value) for value in (0.38, {"a": 4}, True, None, 23764, 12345.6)] == [
        *("0.38", "a: 4", "yes", "–", "23,764", "12,346")
    ]
