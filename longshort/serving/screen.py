"""Two ways to show the events of a dialogue (`event_json` in replies.py): as it is written, or the answer alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from longshort import console
from longshort.dialogue.encoding import RETHINK
from longshort.types import LONG, SHORT

STYLES = {LONG: "#5f87d7", SHORT: "#d7875f"}
"""The report's blue and brown, light enough for dark terminals and dark enough for light ones."""
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
    """Replace control characters and those that reverse the writing direction: a text must not steer a terminal."""
    return text.translate(_HARMLESS)


def plural(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


class Transcript:
    """The dialogue as it is written. A terminal gets the roles' colours, and the answer again in a frame."""

    def __init__(self, out: TextIO, **terminal: Any):
        self._console = Console(file=out, highlight=False, markup=False, emoji=False, **terminal)
        self._role, self._writing = "", False
        self._tokens: dict[str, int] = {}
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event:
            case {"event": "turn_began", "role": role}:
                self._role, self._writing = role, True
                self._line(f"[{role}]", f"bold {STYLES[role]}")
            case {"event": "piece", "text": text}:
                self._console.print(harmless(text), style=STYLES[self._role], end="", soft_wrap=True)
            case {"event": "turn_ended", "tokens": tokens, "stop": stop}:
                self._writing = False
                self._tokens[self._role] = self._tokens.get(self._role, 0) + tokens
                hand_back = ", ↩ hands back: think again" if stop == RETHINK else ""
                self._line(f"\n[{plural(tokens, 'token')}{hand_back}]", "dim")
            case {"event": "finished", "stop": stop, "text": text, "hand_backs": hand_backs}:
                if stop != "answered":
                    self._line(f"[no answer: {UNANSWERED.get(stop, stop)}]", "bold")
                elif self._console.is_terminal:
                    title, colour = f"answer · {self._role}", STYLES[self._role]
                    answer = Text(harmless(text).strip())
                    self._console.print(Panel(answer, title=title, title_align="left", border_style=colour))
                spent = [f"{role} {plural(tokens, 'token')}" for role, tokens in self._tokens.items()]
                seconds = console.duration(time.monotonic() - self._began)
                self._line(f"[{', '.join([*spent, plural(hand_backs, 'hand-back'), seconds])}]", "dim")

    def broken(self, reason: str) -> None:
        """End the dialogue here, with what has been written so far."""
        self._line(f"\n[not finished]\n[{reason}]" if self._writing else f"[{reason}]", "bold")

    def _line(self, text: str, style: str) -> None:
        self._console.print(text, style=style, soft_wrap=True)


class AnswerOnly(Transcript):
    """The text of the answer and nothing else; the exit status says whether there is one."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "finished" and event["stop"] == "answered":
            print(harmless(event["text"]).strip(), file=self._console.file, flush=True)

    def broken(self, reason: str) -> None:
        """Show nothing."""
