"""`longshort report` as a user runs it: once, in vain, and while a run goes on."""

import json
import subprocess
import sys

import pytest

from longshort.report.command import report, state
from longshort.types import LongShortError

COMMAND = [sys.executable, "-m", "longshort.cli", "report"]


def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "team/accuracy": 0.25}) + "\n")
    return folder


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    done = subprocess.run([*COMMAND, str(tmp_path / "none")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("longshort: ") and str(tmp_path / "none") in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("wrong", [{"episodes": -1}, {"size_mb": 0.0}, {"watch": 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, wrong):
    options = {"output": None, "episodes": 10, "size_mb": 1.0, "watch": None} | wrong
    with pytest.raises(LongShortError, match="give at least 0, more than 0, and at least 1"):
        report([run_folder(tmp_path)], **options)


def test_the_state_of_a_run_changes_with_what_the_page_is_made_from(tmp_path):
    folder = run_folder(tmp_path)
    before = state([folder])
    (folder / "report.html").write_text("the page itself does not count")
    assert state([folder]) == before
    (folder / "eval" / "results").mkdir(parents=True)
    (folder / "eval" / "results" / "pair.x.greedy.jsonl").write_text("{}\n")
    assert state([folder]) != before


def test_a_watched_run_gets_a_new_page_when_it_goes_on(tmp_path):
    folder = run_folder(tmp_path)
    command = [*COMMAND, str(folder), "--watch", "1", "--output", str(tmp_path / "page.html")]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        first, second = watching.stdout.readline(), watching.stdout.readline()
        assert first.startswith(str(tmp_path / "page.html"))
        assert "Ctrl-C ends this" in second
        assert "0.7125" not in (tmp_path / "page.html").read_text()
        with (folder / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"step": 2, "team/accuracy": 0.7125}) + "\n")
        assert str(tmp_path / "page.html") in watching.stdout.readline()
        assert "0.7125" in (tmp_path / "page.html").read_text() and not (folder / "report.html").exists()
    finally:
        watching.kill()
        watching.communicate()
