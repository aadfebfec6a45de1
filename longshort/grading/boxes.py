"""Where a text states its answer: the content of its last box."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` with balanced braces, or None. One pass; `\{` is not a brace."""
    open_at: list[int] = []
    start, end = -1, -1
    for match in _BOX.finditer(text):
        token = match.group()
        if token == "{":
            open_at.append(-1)
        elif token.startswith("\\boxed"):
            open_at.append(match.end())
        elif token == "}" and open_at and (opened := open_at.pop()) > start:
            start, end = opened, match.start()
    return text[start:end] if start >= 0 else None
