"""Three ways to show the events of a dialogue (`event_json`): on a terminal, as plain text, the answer alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from longshort import console
from longshort.dialogue.encoding import RETHINK
from longshort.types import LONG, SHORT

STYLES = {LONG: "#5f87d7", SHORT: "#d7875f"}
"""The report's blue and brown, light enough for dark terminals and dark enough for light ones."""
HAND_BACK = "↩ hands back: think again"
UNANSWERED = {
    "max_turns": "the last exchange allowed ended without an answer (--max-turns)",
    "turn_length": "a message reached its limit of tokens",
    "episode_length": "the dialogue reached its limit of tokens (--max-tokens)",
    "context": "the dialogue no longer fits the models' context",
    "malformed": "a message did not end as the protocol asks",
}
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_HARMLESS = _PICTURES | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def harmless(text: str) -> str:
    """Replace control characters and those that reverse the writing direction, so that a text cannot steer a terminal."""
    return text.translate(_HARMLESS)


def plural(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


class Plain:
    """The dialogue as plain text, for pipes and files.

    Whether a turn is the answer shows in the event after its last, so a turn is printed then.
    """

    def __init__(self, out: TextIO):
        self._out = out
        self._role, self._text, self._end = "", "", ""
        self._tokens: dict[str, int] = {}
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event:
            case {"event": "turn_began", "role": role}:
                self._close_turn()
                self._role, self._text, self._end = role, "", "not finished"
                self._begin(role)
            case {"event": "piece", "text": text}:
                self._text += harmless(text)
                self._write(harmless(text))
            case {"event": "turn_ended", "role": role, "tokens": tokens, "stop": stop}:
                self._end = plural(tokens, "token") + (f", {HAND_BACK}" if stop == RETHINK else "")
                self._tokens[role] = self._tokens.get(role, 0) + tokens
            case {"event": "finished", "stop": stop, "hand_backs": hand_backs}:
                self._close_turn(answer=stop == "answered")
                if stop != "answered":
                    self._say(f"no answer: {UNANSWERED.get(stop, stop)}")
                spent = [f"{role} {plural(tokens, 'token')}" for role, tokens in self._tokens.items()]
                seconds = console.duration(time.monotonic() - self._began)
                self._say(", ".join([*spent, plural(hand_backs, "hand-back"), seconds]))

    def broken(self, reason: str) -> None:
        """End the dialogue here, with what has been written so far."""
        self._close_turn()
        self._say(reason)

    def _close_turn(self, *, answer: bool = False) -> None:
        if self._role:
            self._show_end(answer)
        self._role = ""

    def _begin(self, role: str) -> None:
        """Show that a turn begins."""

    def _write(self, text: str) -> None:
        """Show more of the turn."""

    def _show_end(self, answer: bool) -> None:
        self._say(f"{'answer by ' if answer else ''}{self._role}, {self._end}")
        print(self._text.strip(), file=self._out, flush=True)

    def _say(self, text: str) -> None:
        print(f"[{text}]", file=self._out, flush=True)


class AnswerOnly(Plain):
    """The text of the answer and nothing else; the exit status says whether there is one."""

    def _show_end(self, answer: bool) -> None:
        if answer:
            print(self._text.strip(), file=self._out, flush=True)

    def _say(self, text: str) -> None:
        """Show nothing."""


class Screen(Plain):
    """The dialogue on a terminal as it is written, in the roles' colours; the answer is shown again in a frame."""

    def __init__(self, out: TextIO, **terminal: Any):
        from rich.console import Console

        super().__init__(out)
        self._terminal = Console(file=out, highlight=False, markup=False, emoji=False, **terminal)

    def _begin(self, role: str) -> None:
        self._terminal.print(role, style=f"bold {STYLES[role]}")

    def _write(self, text: str) -> None:
        self._terminal.print(text, style=STYLES[self._role], end="", soft_wrap=True)

    def _show_end(self, answer: bool) -> None:
        from rich.panel import Panel
        from rich.text import Text

        self._terminal.print(f"\n{self._end}", style="dim")
        if answer:
            title = f"answer · {self._role} · {self._end}"
            text, colour = Text(self._text.strip()), STYLES[self._role]
            self._terminal.print(Panel(text, title=title, title_align="left", border_style=colour))

    def _say(self, text: str) -> None:
        self._terminal.print(text, style="bold")
