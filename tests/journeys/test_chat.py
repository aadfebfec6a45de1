"""`longshort chat` on a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.support.chat_server import Scripted, finished, serving, turn

DIALOGUE = [
    *turn("long", "</think>", "7^6: 9 3 ", "1 7 9", tokens=9),
    *turn("short", "</rethink>", "9+", "4", tokens=3),
    *turn("long", "</think>", "13", tokens=1),
    *turn("short", "</answer>", "\\boxed", "{3}", tokens=5),
    finished("\\boxed{3}", hand_backs=1),
]


@pytest.fixture
def endpoint():
    return Scripted()


@pytest.fixture
def address(endpoint):
    with serving(endpoint.app) as found:
        yield found


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str):
        self.screen, inner = pty.openpty()
        command = [sys.executable, "-m", "longshort.cli", "chat", *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - it is ignored where the tests run in the background
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, start_new_session=True, env=environment, preexec_fn=hears
        )
        os.close(inner)
        self.seen = ""

    def until(self, text: str, seconds: float = 60) -> None:
        """Read on until the text has come, colours and cursor movements aside."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.screen], [], [], max(0, end - time.monotonic()))[0], self.seen
            self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self.screen, 4096).decode("utf-8", "ignore"))
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


def test_a_conversation_on_a_terminal(endpoint, address):
    terminal = Terminal(address)
    terminal.until("Ctrl-D leaves.")
    terminal.until("question>")
    endpoint.script = DIALOGUE
    terminal.type("first?\n")
    terminal.until("hands back: think again")
    terminal.until("answer · short")
    terminal.until("question>")
    endpoint.script = [*turn("long", "</think>", "never done", tokens=1)[:2], "pause"]
    terminal.type("second?\n")
    terminal.until("never done")
    os.kill(terminal.process.pid, signal.SIGINT)  # what Ctrl-C does
    terminal.until("stopped")
    assert endpoint.left.wait(20)
    terminal.until("question>")
    endpoint.script = {"message": "the queue is full"}
    terminal.type("third?\n")
    terminal.until("the queue is full (status 429)")
    terminal.until("question>")
    os.kill(terminal.process.pid, signal.SIGINT)  # at the prompt: another prompt
    terminal.until("question>")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0
    assert [request["messages"][0]["content"] for request in endpoint.requests] == ["first?", "second?", "third?"]
