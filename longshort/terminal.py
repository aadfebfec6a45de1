"""The edges of a command: bytes that are no text, characters that a terminal lacks, paths, a reader that leaves."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


def prepare_streams() -> None:
    """Let output show `?` for what its encoding lacks; let odd bytes of input pass, for the command to refuse."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def checked(arguments: Sequence[str] | None, error: Callable[[str], NoReturn]) -> list[str]:
    """Return the arguments (default: those of the command line); call `error` for one that is not UTF-8."""
    texts = sys.argv[1:] if arguments is None else list(arguments)
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of another encoding come in so
            error(f"{os.fsencode(text)!r} is not UTF-8")
    return texts


def path(text: str) -> Path:
    """Return a path of the command line, with `~` and variables replaced."""
    return Path(expanded_text(text))


def expanded_text(text: str) -> str:
    """Return what may be a path of the command line, with `~` and variables replaced."""
    from longshort.recipe.paths import expanded

    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def reader_left() -> int:
    """Return the exit status for output that nobody reads any more; what is left of it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
