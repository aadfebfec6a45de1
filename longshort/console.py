"""What a person sees: plain lines that read well in a terminal and in a log file, and never a silence longer than ten seconds."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from longshort.types import LONG, Episode

SILENCE_S = 8.0
_last_line = time.monotonic()


def say(text: str = "") -> None:
    """Print now, and remember when."""
    global _last_line
    _last_line = time.monotonic()
    print(text, flush=True)


@contextlib.asynccontextmanager
async def heartbeat(status: Callable[[], str]) -> AsyncIterator[None]:
    """While the block runs, print `status()` whenever nothing else has been printed for a while."""
    began = time.monotonic()

    async def beat() -> None:
        while True:
            await asyncio.sleep(1.0)
            if time.monotonic() - _last_line > SILENCE_S:
                say(f"  … {status()} ({duration(time.monotonic() - began)})")

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def duration(seconds: float) -> str:
    """`42s`, `3m05s` or `2h07m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def step_line(index: int, steps: int, metrics: Mapping[str, float], remaining_s: float) -> str:
    """One line per training step."""
    return (
        f"step {index + 1:>{len(str(steps))}}/{steps}  accuracy {metrics['team/accuracy']:.2f}  tokens {metrics['team/tokens']:.1f}  "
        f"cost {metrics['team/cost']:.1f}  reward {metrics['team/reward']:+.2f}  hand-back {metrics['team/hand_back_rate']:.2f}  "
        f"format {metrics['team/format']:.2f}  {metrics['perf/step_s']:.1f}s  eta {duration(remaining_s)}"
    )


def dialogue(episode: Episode, reward: float, correct: bool) -> str:
    """An episode as a person reads it."""
    verdict = "correct" if correct else "wrong"
    lines = [f"  ┌ {episode.problem.question}   (answer {episode.problem.answer})"]
    for turn in episode.turns:
        mark = "long  │ " if turn.role == LONG else "short │ "
        text = " ".join(turn.completion.text.split())
        wrapped = textwrap.wrap(f"{text} ⟨{turn.completion.stop}⟩", width=110, max_lines=4, placeholder=" …")
        lines += [f"  │ {mark if i == 0 else '      │ '}{line}" for i, line in enumerate(wrapped)]
    return "\n".join([*lines, f"  └ {episode.stop}, {verdict}, reward {reward:+.2f}"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small aligned table: first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    draw = lambda row: "  ".join(
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "\n".join([draw(head), "  ".join("─" * width for width in widths), *map(draw, rows)])
