"""The API key that an endpoint asks for, from where neither a process list nor a shell's history shows it."""

from __future__ import annotations

import os
from pathlib import Path

from longshort.types import LongShortError

VARIABLE = "LONGSHORT_API_KEY"


def read_key(file: str | None) -> str:
    """The key in `file` (`--api-key-file`), else that of LONGSHORT_API_KEY, else "". LongShortError for a file that holds none."""
    if file is None:
        return os.environ.get(VARIABLE, "").strip()
    try:
        key = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LongShortError(
            f"--api-key-file {file} cannot be read as a key: {error}; give a file with one line of ASCII"
        ) from error
    if not key or len(key.split()) != 1:
        raise LongShortError(f"--api-key-file {file} holds {len(key.split())} words; a key is one word without spaces")
    return key
