"""Three ways to show a dialogue (the events of longshort/serving/wire.py) as it goes on: on a terminal, as plain text, its answer alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from longshort import console
from longshort.dialogue.encoding import RETHINK
from longshort.types import LONG, SHORT

STYLES = {LONG: "#5f87d7", SHORT: "#d7875f"}
"""The report's blue and brown, as light as dark and light terminals both can show them."""
INDENT = 7
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
    """Text that cannot steer a terminal: control characters and those that turn the direction of writing are shown as pictures."""
    return text.translate(_HARMLESS)


def plural(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class Said:
    """A turn as far as it is written; `stop` is empty until it has ended."""

    role: str
    text: str = ""
    tokens: int = 0
    stop: str = ""


class Plain:
    """The dialogue as plain text, turn by turn: for pipes and files.

    Whether a turn was the answer is known when the dialogue goes on or ends, so each turn is settled by the event after its last.
    """

    def __init__(self, out: TextIO):
        self._out = out
        self._turn: Said | None = None
        self._tokens: dict[str, int] = {}
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event:
            case {"event": "turn_began", "role": role}:
                self._settled()
                self._turn = Said(role)
                self._written()
            case {"event": "piece", "text": text}:
                self._turn.text += harmless(text)
                self._written()
            case {"event": "turn_ended", "role": role, "tokens": tokens, "stop": stop}:
                self._turn.tokens, self._turn.stop = tokens, stop
                self._tokens[role] = self._tokens.get(role, 0) + tokens
            case {"event": "finished", "stop": stop, "hand_backs": hand_backs}:
                self._settled(answer=stop == "answered")
                if stop != "answered":
                    self._remark(f"no answer: {UNANSWERED.get(stop, stop)}")
                spent = [f"{role} {plural(tokens, 'token')}" for role, tokens in self._tokens.items()]
                self._sum([*spent, plural(hand_backs, "hand-back"), console.duration(time.monotonic() - self._began)])

    def broken(self, reason: str) -> None:
        """The dialogue ends here, whatever was being written."""
        self._settled()
        self._remark(reason)

    def _settled(self, *, answer: bool = False) -> None:
        if self._turn:
            self._ended(self._turn, answer)
        self._turn = None

    def _written(self) -> None:
        """There is more of the turn."""

    def _ended(self, turn: Said, answer: bool) -> None:
        facts = [f"answer by {turn.role}" if answer else turn.role]
        facts += [plural(turn.tokens, "token") if turn.stop else "not finished"]
        facts += [HAND_BACK] if turn.stop == RETHINK else []
        print(f"[{', '.join(facts)}]\n{turn.text.strip()}", file=self._out, flush=True)

    def _remark(self, text: str) -> None:
        print(f"[{text}]", file=self._out, flush=True)

    def _sum(self, facts: list[str]) -> None:
        print(f"[{', '.join(facts)}]", file=self._out, flush=True)


class AnswerOnly(Plain):
    """The text of the answer and nothing else."""

    def _ended(self, turn: Said, answer: bool) -> None:
        if answer:
            print(turn.text.strip(), file=self._out, flush=True)

    def _remark(self, text: str) -> None:
        """What is missing is told by the command's exit status."""

    def _sum(self, facts: list[str]) -> None:
        """Not asked for."""


class Screen(Plain):
    """The dialogue on a terminal, in the roles' colours: a turn grows in place, and its end is always in sight; the answer gets a frame."""

    def __init__(self, terminal: Console):
        super().__init__(terminal.file)
        self._terminal = terminal
        self._live: Live | None = None

    def _written(self) -> None:
        if not self._live:
            self._live = Live(
                get_renderable=self._growing, console=self._terminal, transient=True, refresh_per_second=10
            )
            self._live.start()

    def _growing(self) -> Group:
        """The turn that is being written, or as much of its end as the terminal has lines for."""
        if not self._turn:
            return Group()
        rows, width = max(1, self._terminal.height - 3), max(1, self._terminal.width - INDENT)
        lines = Text(self._turn.text[-rows * width :].strip() + " ▍").wrap(self._terminal, width)
        return _titled(self._turn.role, Text("\n").join(lines[-rows:]))

    def _settled(self, *, answer: bool = False) -> None:
        if self._live:
            self._live.stop()
        self._live = None
        super()._settled(answer=answer)

    def _ended(self, turn: Said, answer: bool) -> None:
        text, tokens = turn.text.strip(), plural(turn.tokens, "token") if turn.stop else "not finished"
        if answer:
            frame = Panel(
                Text(text), title=f"answer · {turn.role} · {tokens}", title_align="left", border_style=STYLES[turn.role]
            )
            self._terminal.print(frame)
            return
        end = Text(tokens, style="dim")
        if turn.stop == RETHINK:
            end = Text.assemble((f"{tokens} · ", "dim"), (HAND_BACK, f"bold {STYLES[turn.role]}"))
        self._terminal.print(_titled(turn.role, Text(text)), Padding(end, (0, 0, 0, INDENT)))

    def _remark(self, text: str) -> None:
        self._terminal.print(Text(text, style="bold"))

    def _sum(self, facts: list[str]) -> None:
        self._terminal.print(Text(" · ".join(facts), style="dim"))


def _titled(role: str, text: Text) -> Group:
    text.stylize(STYLES[role])
    return Group(Text(role, style=f"bold {STYLES[role]}"), Padding(text, (0, 0, 0, INDENT)))
