"""A real browser for the tests of pages: Debian's Chromium without a window, driven over its debugging pipe."""

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

QUIET = [
    f"--disable-{what}"
    for what in ("gpu", "dev-shm-usage", "quic", "background-networking", "component-update", "sync")
]
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe", *QUIET]
LOUD = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


class Browser:
    """One page. Calling it sends a command of the DevTools protocol: browser("Page.navigate", url=address)."""

    def __init__(self, program: str, profile: Path):
        to_read, self.outbox = os.pipe()
        inbox, to_write = os.pipe()
        redirect = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", redirect, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self.inbox, self.numbers, self.events, self.session = os.fdopen(inbox, "rb"), itertools.count(1), [], {}
        page = next(target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self.session = {
            "sessionId": self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters):
        number = next(self.numbers)
        os.write(
            self.outbox,
            json.dumps({"id": number, "method": method, "params": parameters, **self.session}).encode() + b"\0",
        )
        while (answer := self.receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict:
        message = bytearray()
        while (byte := self.inbox.read(1)) != b"\0":
            assert byte, "the browser is gone"
            message += byte
        return json.loads(message)

    def open(self, address: str) -> None:
        """Go to an address and wait until it is loaded."""
        self._loaded(lambda: self("Page.navigate", url=address))

    def reload(self) -> None:
        self._loaded(lambda: self("Page.reload"))

    def _loaded(self, begin) -> None:
        loads = lambda: sum(event.get("method") == "Page.loadEventFired" for event in self.events)  # noqa: E731
        before = loads()
        begin()
        while loads() == before:
            self.events.append(self.receive())

    def js(self, expression: str):
        """The value of an expression on the page; a promise is awaited."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, wanted, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while (found := self.js(expression)) != wanted:
            assert time.monotonic() < end, (expression, found)
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key such as "ArrowDown", as a person presses it."""
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list:
        """What the pages opened so far wrote to the console, and what they asked for that is no file."""
        asked = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        foreign = [url for url in asked if not url.startswith(("file:", "data:"))]
        return [event for event in self.events if event["method"] in LOUD] + foreign


@pytest.fixture(name="browser")
def started_browser(tmp_path):
    """A browser of this test's own; to be imported by the module that uses it."""
    if not (program := shutil.which("chromium")):
        pytest.skip("no chromium here (apt-get install chromium)")
    started = Browser(program, tmp_path / "profile")
    yield started
    started("Browser.close")
    started.process.wait(20)
    started.inbox.close()
    os.close(started.outbox)
