"""`longshort chat`: questions to a team on this machine or behind an endpoint, and the dialogue of its two models while it goes on."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from longshort import console
from longshort.serving.api_key import read_key
from longshort.types import LongShortError

HINT = (
    "Each question stands alone: the pair remembers nothing of the one before. Ctrl-C stops an answer, Ctrl-D leaves."
)
PROMPT = "\nquestion> "
SETTINGS = ("mode", "temperature", "max_turns", "max_tokens", "seed")
UNANSWERED, INTERRUPTED = 1, 130
"""Exit status of a single question, where it has no answer and where Ctrl-C stopped it."""


class Source(Protocol):
    """Who answers: a team here (`Here`) or one behind an endpoint (`Endpoint`)."""

    name: str

    def stream(self, question: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]: ...


def chat(options: argparse.Namespace) -> int:
    """The command. One question by `--once` or through a pipe, else question after question until Ctrl-D.

    Whatever is not the dialogue (engines that start) goes to stderr where stdout is no terminal. Returns the exit status.
    """
    settings = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    question = options.once if options.once is not None else None if sys.stdin.isatty() else sys.stdin.read()
    out, at_terminal = sys.stdout, sys.stdout.isatty()
    if question is None and not at_terminal:
        raise LongShortError(
            "a conversation needs a terminal on both sides; ask one question with --once, or through a pipe"
        )
    with contextlib.ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP):  # an ordinary end, in which the engines are closed
            undo.callback(signal.signal, number, signal.signal(number, _leave))
        if not at_terminal:
            undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        source = undo.enter_context(_source(options))
        show = _shown(out, answer_only=options.answer_only)
        if question is not None:
            return _once(source, question, settings, show())
        return _conversation(source, settings, show)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _source(options: argparse.Namespace) -> contextlib.AbstractContextManager[Source]:
    if not options.team.startswith(("http://", "https://")):
        return _here(options)
    if options.overrides:
        raise LongShortError(
            f"{options.overrides[0]} is a setting of engines on this machine; those behind {options.team} have theirs"
        )
    return _endpoint(options.team, read_key(options.api_key_file))


def _shown(out, *, answer_only: bool) -> Callable[[], Any]:
    """Makes what shows one dialogue: Screen on a terminal, Plain or AnswerOnly elsewhere."""
    from rich.console import Console

    from longshort.serving import screen

    if answer_only:
        return lambda: screen.AnswerOnly(out)
    if not out.isatty():
        return lambda: screen.Plain(out)
    terminal = Console(file=out, highlight=False)
    return lambda: screen.Screen(terminal)


def _once(source: Source, question: str, settings: Mapping[str, Any], show) -> int:
    """The exit status is 0 where there is an answer."""
    try:
        end = _ask(source, question, settings, show)
    except KeyboardInterrupt:
        show.broken("stopped")
        return INTERRUPTED
    return 0 if end["stop"] == "answered" else UNANSWERED


def _conversation(source: Source, settings: Mapping[str, Any], show: Callable[[], Any]) -> int:
    import readline  # noqa: F401  (input() then keeps a history and edits lines)

    console.say(f"{source.name}. {HINT}")
    while True:
        try:
            question = input(PROMPT).strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            console.say()
            return 0
        if not question:
            continue
        dialogue = show()
        try:
            _ask(source, question, settings, dialogue)
        except KeyboardInterrupt:
            dialogue.broken("stopped")
        except LongShortError as error:
            dialogue.broken(str(error))


def _ask(source: Source, question: str, settings: Mapping[str, Any], show) -> dict[str, Any]:
    """Show the dialogue; returns its last event. Leaving it, at whatever point, frees the engines."""
    event: dict[str, Any] = {}
    with contextlib.closing(source.stream(question, {"seed": random.getrandbits(31), **settings})) as events:
        for event in events:
            show(event)
    return event


class Here:
    """A team whose engines run on this machine (or its Ray cluster)."""

    def __init__(self, team):
        self._team, self.name = team, team.name

    def stream(self, question: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        from longshort.serving.wire import told

        with contextlib.closing(self._team.stream(question, **settings)) as events:
            for event in events:
                yield told(event)


@contextlib.contextmanager
def _here(options: argparse.Namespace) -> Iterator[Here]:
    from longshort.team.team import Team

    with Team.from_pretrained(options.team, overrides=options.overrides) as team:
        yield Here(team)


class Endpoint:
    """A team behind `longshort serve`."""

    def __init__(self, client, address: str):
        self._client, self._address = client, address
        answer = self._heard(client.get, "/v1/models")
        if answer.status_code != 200:
            raise self._refusal(answer)
        self.name = answer.json()["data"][0]["id"]

    def stream(self, question: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        dialogue = {"stream": True, "stream_options": {"include_dialogue": True}}
        body = {"model": self.name, "messages": [{"role": "user", "content": question}], **dialogue, **settings}
        request = self._client.build_request("POST", "/v1/chat/completions", json=body)
        answer = self._heard(self._client.send, request, stream=True)
        with contextlib.closing(answer):
            if answer.status_code != 200:
                answer.read()
                raise self._refusal(answer)
            lines = answer.iter_lines()
            while (line := self._heard(next, lines, None)) != "data: [DONE]":
                if line is None:
                    raise LongShortError(f"{self._address} broke off before the answer was complete; ask again")
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if "error" in told:
                    raise LongShortError(told["error"]["message"])
                if "longshort" in told:
                    yield told["longshort"]

    def _heard(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        import httpx

        try:
            return call(*arguments, **options)
        except httpx.HTTPError as error:
            raise LongShortError(
                f"{self._address} does not answer ({error}); is `longshort serve` running there?"
            ) from error

    def _refusal(self, answer) -> LongShortError:
        try:
            reason = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = "no endpoint of longshort serve"
        return LongShortError(f"{self._address}: {reason} (status {answer.status_code})")


@contextlib.contextmanager
def _endpoint(address: str, key: str) -> Iterator[Endpoint]:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(10, read=None)  # an answer may wait for its place, and a thought take its time
    with httpx.Client(base_url=address.rstrip("/").removesuffix("/v1"), headers=headers, timeout=timeout) as client:
        yield Endpoint(client, address)
