"""Where a text states its answer: its last box, or the last boxes if they stand side by side."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)(?:\s+|(?=\d))(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)
_BESIDE = re.compile(
    r"(?:\s|\$|\\[()\[\],;]|\\(?:text|mbox)\{|[{}])*(?:and|or|,|;|&)(?:\s|\$|\\[()\[\],;]|and|or|[{}])*"
)


def boxes(text: str) -> list[tuple[int, int, int, int]]:
    r"""Return (start, content's start, content's end, end) of every outermost or inner box, by where its content ends.

    One pass; `\{` is not a brace. A box that is never closed ends at -1.
    """
    found: list[tuple[int, int, int, int]] = []
    open_at: list[tuple[int, int]] = []  # (start of the box, of its content), (-1, -1) for other braces
    for match in _BOX.finditer(text):
        token = match.group()
        if token == "{":
            open_at.append((-1, -1))
        elif match["bare"]:
            found.append((match.start(), match.start("bare"), match.end(), match.end()))
        elif token.startswith(("\\boxed", "\\fbox")) and token.endswith("{"):
            open_at.append((match.start(), match.end()))
        elif token == "}" and open_at:
            start, content = open_at.pop()
            if start >= 0:
                found.append((start, content, match.start(), match.end()))
    if unclosed := [one for one in open_at if one[0] >= 0]:
        found.append((*unclosed[-1], -1, -1))
    return found


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` or `\fbox{…}`, the inner of two.

    None if there is none, or if the last one is not closed.
    """
    contents = last_boxes(text)
    return contents[-1] if contents else None


def last_boxes(text: str) -> list[str]:
    """Return the contents of the last boxes that stand side by side: the last one, and those joined to it by "and",
    "or" or a comma. Empty if the last box was never closed."""
    found = boxes(text)
    if not found:
        return []
    found.sort(key=lambda box: box[1])
    if found[-1][3] < 0:
        return []
    chosen = [found.pop()]
    while found and found[-1][3] >= 0 and _BESIDE.fullmatch(text, found[-1][3], chosen[0][0]):
        chosen.insert(0, found.pop())
    return [text[start:end] for _, start, end, _ in chosen]
