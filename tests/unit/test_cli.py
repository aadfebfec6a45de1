"""The edges of a command: what it is given, and where its output goes."""

import io
import os
import sys
from pathlib import Path

import pytest

from longshort import cli, console, terminal
from longshort.types import LongShortError
from tests.support import ROOT

ODD = os.fsdecode(b"caf\xe9.yaml")


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def test_a_terminal_that_lacks_a_character_shows_another(monkeypatch):
    monkeypatch.setattr("sys.stdout", stream("ascii"))
    terminal.prepare_streams()
    print("stages ── …", flush=True)
    assert sys.stdout.buffer.getvalue() == b"stages ?? ?\n"


def test_a_plan_is_shown_in_ascii(monkeypatch):
    monkeypatch.setattr("sys.stdout", stream("ascii"))
    assert cli.main(["plan", str(ROOT / "recipes" / "quickstart.yaml")]) == 0
    assert b"stages\n  1. base" in sys.stdout.buffer.getvalue()


def test_bytes_on_stdin_that_are_no_text_reach_the_command_which_refuses_them(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="ascii"))
    terminal.prepare_streams()
    assert sys.stdin.read() == "\udcff"


def test_an_argument_that_is_not_utf_8_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", ODD])
    assert capsys.readouterr().err.endswith("longshort: error: b'caf\\xe9.yaml' is not UTF-8\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "$NOT_SET_HERE/x"],
        ["train", "x.yaml", "--resume", "$NOT_SET_HERE/x"],
        ["eval", "x.yaml", "--checkpoint", "$NOT_SET_HERE/x"],
        ["serve", "$NOT_SET_HERE/team"],
        ["chat", "$NOT_SET_HERE/team"],
        ["chat", "team", "--api-key-file", "$NOT_SET_HERE/key"],
    ],
)
def test_a_variable_in_a_path_that_is_not_set_is_refused(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "'$NOT_SET_HERE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "steps", "resume"),
    [
        (["--resume", "max_steps=4"], 4, True),
        (["max_steps=4", "--resume"], 4, True),
        (["max_steps=4", "--resume", "runs/x/checkpoint-2"], 4, Path("runs/x/checkpoint-2")),
        ([], 100, False),
    ],
)
def test_a_setting_after_a_bare_resume_is_a_setting(tmp_path, monkeypatch, arguments, steps, resume):
    (tmp_path / "x.yaml").write_text("dataset: x.jsonl\n")
    started = []

    class Trainer:
        def __init__(self, args):
            self.args = args

        def train(self, resume):
            started.append((self.args.max_steps, resume))

    monkeypatch.setattr("longshort.trainer.LongShortTrainer", Trainer)
    assert cli.main(["train", str(tmp_path / "x.yaml"), *arguments]) == 0
    assert started == [(steps, resume)]


def test_a_home_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = cli._parser().parse_args(["report", "~/runs/x", "--output", "~/page.html"])
    assert [str(run) for run in options.runs] == ["/home/me/runs/x"]
    assert str(options.output) == "/home/me/page.html"


def test_a_reader_that_leaves_ends_the_command_quietly(monkeypatch, capfd):
    def leave(options):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_doctor", leave)
    monkeypatch.setattr(terminal, "reader_left", lambda: 141)
    assert cli.main(["doctor"]) == 141
    assert capfd.readouterr().err == ""


def test_a_run_whose_terminal_is_gone_goes_on(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        console.say("one")
        console.say("two")
        monkeypatch.undo()


def test_an_error_that_no_terminal_can_show_keeps_its_status(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    def fail(options):
        raise LongShortError("stopped")

    monkeypatch.setattr(cli, "_doctor", fail)
    monkeypatch.setattr("sys.stderr", Gone())
    assert cli.main(["doctor"]) == 1
