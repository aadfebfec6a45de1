"""Reading a run's files for a page: what is damaged is skipped, counted and said in one sentence, never an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Parsed = TypeVar("Parsed")
Shape = TypeVar("Shape", bound=BaseModel)


def read_lines(
    path: Path, parse: Callable[[bytes], Parsed], where: str, remarks: list[str], most: int | None = None
) -> list[tuple[int, Parsed]]:
    """Return the readable lines of a file with their numbers from 1, the first `most` of them."""
    lines: list[tuple[int, Parsed]] = []
    damaged = 0
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if len(lines) == most:
                break
            try:
                if raw.strip():
                    lines.append((number, parse(raw)))
            except (ValueError, RecursionError):
                damaged += 1
    if damaged:
        remarks.append(f"{damaged:,} damaged {'line' if damaged == 1 else 'lines'} skipped in {where}.")
    return lines


def read_json(path: Path, shape: type[Shape], where: str, remarks: list[str]) -> Shape | None:
    """Return a JSON file as a record, or None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return parse_record(shape, path.read_bytes())
    except (ValueError, RecursionError) as error:
        remarks.append(f"{where} cannot be read, so it is left out: {' '.join(str(error).split())[:160]}")
        return None


def parse_record(shape: type[Shape], raw: bytes) -> Shape:
    """Parse JSON as a record. A lone surrogate, which UTF-8 cannot encode, becomes �."""
    try:
        return shape.model_validate_json(raw)
    except ValidationError:
        text = json.dumps(json.loads(raw), ensure_ascii=False)
        return shape.model_validate_json(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
