"""What travels through the stages of the cold start: a trace, its thoughts, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from longshort.types import Problem

OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One long response to one problem, byte for byte as it was found.

    `outcome` is "ok", or the name of the reason why nothing can be made of it, told in `detail`; `notes` are names of what is unusual
    but harmless ("crlf", "non_ascii", …).

    Trace(id="math-7", problem=Problem(…), response="First …\n\nWait, …", outcome="ok", detail="", notes=("non_ascii",))
    """

    id: str
    problem: Problem
    response: str
    outcome: str = OK
    detail: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A coarse step of a trace: consecutive paragraphs, separators included, so that thoughts joined give back the trace.

    Thought(text="Wait, 7 is odd.\n\n", kind="verification")
    """

    text: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """A trace cut into thoughts. `splitter` is "rules" or "instruct"; `why` says why that one; `tries`, how often the model was asked."""

    thoughts: tuple[Thought, ...]
    splitter: str
    why: str
    tries: int
