"""What a run prints: plain lines for a terminal and for a log file, and never a silence of more than ten seconds."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from longshort.types import LONG, Episode

SILENCE_S = 8.0
_last_line = time.monotonic()


def say(text: str = "") -> None:
    """Print a line now, and remember when. A run whose terminal or pipe is gone goes on: its files say the same."""
    global _last_line
    _last_line = time.monotonic()
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.asynccontextmanager
async def heartbeat(status: Callable[[], str]) -> AsyncIterator[None]:
    """While the block runs, print `status()` whenever nothing else was printed for SILENCE_S seconds."""
    started = time.monotonic()

    async def beat() -> None:
        while True:
            await asyncio.sleep(1.0)
            if time.monotonic() - _last_line > SILENCE_S:
                say(f"  … {status()} ({duration(time.monotonic() - started)})")

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def duration(seconds: float) -> str:
    """Format seconds as `42s`, `3m05s` or `2h07m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def step_line(index: int, steps: int, metrics: Mapping[str, float], remaining_s: float) -> str:
    """Format one training step as a line."""
    figures = {
        "accuracy": ".2f",
        "tokens": ".1f",
        "cost": ".1f",
        "reward": "+.2f",
        "hand_back_rate": ".2f",
        "format": ".2f",
    }
    shown = "  ".join(
        f"{name.removesuffix('_rate').replace('_', '-')} {metrics[f'team/{name}']:{style}}"
        for name, style in figures.items()
        if f"team/{name}" in metrics  # a reward of one's own need not have the term `correct`
    )
    number = f"{index + 1:>{len(str(steps))}}/{steps}"
    return f"step {number}  {shown}  {metrics['perf/step_s']:.1f}s  eta {duration(remaining_s)}"


def dialogue(episode: Episode, reward: float, correct: bool) -> str:
    """Format an episode as a dialogue, at most four lines per turn."""
    lines = [f"  ┌ {episode.problem.question}   (answer {episode.problem.answer})"]
    for turn in episode.turns:
        mark = "long  │ " if turn.role == LONG else "short │ "
        text = " ".join(turn.completion.text.split())
        wrapped = textwrap.wrap(f"{text} ⟨{turn.completion.stop}⟩", width=110, max_lines=4, placeholder=" …")
        lines += [f"  │ {mark if i == 0 else '      │ '}{line}" for i, line in enumerate(wrapped)]
    return "\n".join([*lines, f"  └ {episode.stop}, {'correct' if correct else 'wrong'}, reward {reward:+.2f}"])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Format a small table: first column aligned left, the others right where they hold numbers."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(head):
        drawn.add_column(name, justify="right" if right and i else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console(file=io.StringIO(), width=1000, markup=False, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
