"""The report in a real browser: it reloads itself, keeps its state, and shows no error."""

from pathlib import Path

import pytest

from longshort.report.report_page import write_report
from tests.support.browser import started_browser  # noqa: F401
from tests.support.report_runs import (
    SHOWN_HOSTILE,
    hostile_run,
    write_demo,
    write_lines,
    write_recipe,
)


def learning(folder: Path, accuracies, **more) -> Path:
    """A run with a recipe and one step per accuracy; `more` is in every row."""
    write_recipe(folder)
    rows = [{"step": i, "team/accuracy": value} | more for i, value in enumerate(accuracies, 1)]
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def test_page_reloads_itself_and_keeps_its_state(tmp_path, browser):
    page = write_report([learning(tmp_path / "r", [0.5])], refresh=1)
    assert '<noscript><meta http-equiv="refresh" content="1"></noscript>' in page.read_text()
    browser.open(f"{page.as_uri()}#q=sum")
    browser.js("window.first = 1")
    write_report([learning(tmp_path / "r", [0.5, 0.75])])  # this one stays, as it has no refresh
    while "2 steps" not in browser.js("document.querySelector('.byline').textContent"):
        browser.events.clear()
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())
    assert browser.js("typeof window.first") == "undefined"
    assert browser.js("location.hash") == "#q=sum"
    assert browser.complaints() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path, browser, theme):
    page = write_report([hostile_run(tmp_path), write_demo(tmp_path / "other", seed=1, steps=6)], refresh=600)
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    for width in (390, 1280):
        browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        browser.open(page.as_uri())
        assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("typeof window.hacked") == "undefined"
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert SHOWN_HOSTILE.split("\0")[0] in browser.js("document.querySelector('.pareto figcaption').textContent")
    colours = {"light": "rgb(181, 101, 29)", "dark": "rgb(229, 168, 120)"}
    line = "[...document.querySelectorAll('.curves svg path')].map(path => getComputedStyle(path).stroke)"
    assert colours[theme] in browser.js(line)
    assert browser.complaints() == []
