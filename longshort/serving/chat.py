"""`longshort chat`: ask a team on this machine or behind an endpoint, and watch the dialogue of its two models."""

from __future__ import annotations

import contextlib
import json
import random
import re
import reprlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longshort import console
from longshort.serving.command import is_loopback, read_key
from longshort.serving.screen import AnswerOnly, Transcript
from longshort.types import LongShortError

if TYPE_CHECKING:
    import httpx

HINT = "Questions are independent: the pair remembers nothing of the one before. Ctrl-C stops an answer, Ctrl-D leaves."
PROMPT = "\nquestion> "
STRANGER = "this is not an endpoint of longshort serve"
UNANSWERED, INTERRUPTED = 1, 130
"""Exit status of a single question without an answer, and of one that Ctrl-C stopped."""
EventStream = Generator[Mapping[str, Any], None, None]
"""The events of a dialogue (`event_json` in replies.py)."""
Ask = Callable[[str, Mapping[str, Any]], EventStream]
"""Plays the dialogue on a question with these settings. Closing the iterator frees the engines."""


def chat(
    team: str,
    *,
    overrides: Sequence[str] = (),
    once: str | None = None,
    answer_only: bool = False,
    key_file: str | None = None,
    **settings: str | int | float | None,
) -> int:
    """Answer the question in `once` or from a pipe, or question after question until Ctrl-D; return the exit status.

    `settings` are those of a `Query`; None leaves one to the team. What is not the dialogue, such as the messages
    of engines that start, goes to stderr unless stdout is a terminal.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    question = _piped() if once is None and not sys.stdin.isatty() else once
    if question is not None:
        _check_text(question)
    out = sys.stdout
    if question is None and not out.isatty():
        raise LongShortError("a conversation needs a terminal; ask one question with --once, or through a pipe")
    kind = AnswerOnly if answer_only else Transcript
    with contextlib.ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP):  # leave in order, so that the engines are closed
            undo.callback(signal.signal, number, signal.signal(number, lambda number, _: sys.exit(128 + number)))
        if not out.isatty():
            undo.enter_context(contextlib.redirect_stdout(sys.stderr))
        if team.startswith(("http://", "https://")):
            if overrides:
                raise LongShortError(f"{overrides[0]} is a setting of local engines; those of {team} have their own")
            name, ask = undo.enter_context(_remote(team, read_key(key_file)))
        else:
            name, ask = undo.enter_context(_local(team, overrides))
        if question is not None:
            return _once(ask, question, settings, kind(out))
        console.say(f"{name}. {HINT}")
        return _conversation(ask, settings, lambda: kind(out))


def _piped() -> str:
    """Return the question that comes through a pipe."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise LongShortError(f"the question is not text ({error}); send it in {error.encoding}") from error


def _check_text(question: str) -> None:
    """Refuse bytes that are no character, which Python reads as halves of one."""
    if odd := re.search("[\ud800-\udfff]", question):
        raise LongShortError(f"the question is not text: character {odd.start() + 1} is not UTF-8; send UTF-8")


def _once(ask: Ask, question: str, settings: Mapping[str, Any], show: Transcript) -> int:
    try:
        return 0 if _play(ask, question, settings, show) == "answered" else UNANSWERED
    except KeyboardInterrupt:
        show.broken("stopped")
        return INTERRUPTED
    except LongShortError:
        show.broken("no answer")
        raise


def _conversation(ask: Ask, settings: Mapping[str, Any], new_show: Callable[[], Transcript]) -> int:
    import readline  # noqa: F401 (gives input() a history and line editing)

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
        show = new_show()
        try:
            _check_text(question)
            _play(ask, question, settings, show)
        except KeyboardInterrupt:
            show.broken("stopped")
        except LongShortError as error:
            show.broken(str(error))


def _play(ask: Ask, question: str, settings: Mapping[str, Any], show: Transcript) -> str:
    """Show the dialogue; return its reason to stop. Leaving at any point frees the engines."""
    event: Mapping[str, Any] = {}
    with contextlib.ExitStack() as undo:
        events = ask(question, {"seed": random.getrandbits(31), **settings})
        undo.callback(events.close)
        for event in events:
            show(event)
    return event["stop"]


@contextlib.contextmanager
def _local(source: str, overrides: Sequence[str]) -> Iterator[tuple[str, Ask]]:
    """Yield the name of a team whose engines run here (or in this machine's Ray cluster), and how to ask it."""
    from longshort.serving.replies import event_json
    from longshort.team.team import Team

    with Team.from_pretrained(source, overrides=overrides) as team:

        def ask(question: str, settings: Mapping[str, Any]) -> EventStream:
            with contextlib.closing(team.stream(question, **settings)) as events:
                yield from map(event_json, events)

        yield team.name, ask


@contextlib.contextmanager
def _remote(address: str, key: str) -> Iterator[tuple[str, Ask]]:
    """Yield the name of the team behind `longshort serve`, and how to ask it."""
    with _client(address, key) as client:
        with _explained(address):
            listed = _checked(address, client.get("/v1/models"))
        try:
            name = listed.json()["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise LongShortError(f"{address} lists no model: {STRANGER}") from error

        def ask(question: str, settings: Mapping[str, Any]) -> EventStream:
            body = {"model": name, "messages": [{"role": "user", "content": question}], **settings}
            body |= {"stream": True, "stream_options": {"include_dialogue": True}}
            with _explained(address), client.stream("POST", "/v1/chat/completions", json=body) as answer:
                yield from _events(_checked(address, answer).iter_lines())

        yield name, ask


def _client(address: str, key: str) -> httpx.Client:
    """Return a client of the endpoint. A proxy that the environment names is not asked for this machine itself."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(10, read=None)  # an answer may wait for its place, and a thought may take long
    try:
        url = httpx.URL(address.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise LongShortError(f"{address} is no URL ({error}); give http://HOST:PORT") from error
    try:
        direct = httpx.HTTPTransport() if is_loopback(url.host) else None
        return httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=direct)
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        what = "a proxy or certificate that the environment names cannot be used"
        raise LongShortError(f"{address} cannot be asked: {what} ({error})") from error


def _events(lines: Iterator[str]) -> EventStream:
    """Yield the dialogue's events from the lines of an endpoint's stream."""
    event: Mapping[str, Any] = {}
    for line in lines:
        if line == "data: [DONE]":
            break
        try:
            chunk = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            error, event = chunk.get("error"), dict(chunk.get("longshort", event))
            message = error and error["message"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise LongShortError(f"{reprlib.repr(line)} is no event of a dialogue: {STRANGER}") from error
        if message:
            raise LongShortError(message)
        if "longshort" in chunk:
            yield event
    if event.get("event") == "finished":
        return
    raise LongShortError("the endpoint broke off before the answer was complete; ask again")


def _checked(address: str, answer: httpx.Response) -> httpx.Response:
    """Return a response with status 200; LongShortError with the endpoint's reason for any other."""
    if answer.status_code == 200:
        return answer
    answer.read()
    try:
        reason = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = STRANGER
    raise LongShortError(f"{address}: {reason} (status {answer.status_code})")


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn errors of the connection into a LongShortError."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        message = f"{address} does not answer ({error}); is `longshort serve` running there?"
        raise LongShortError(message) from error
