"""Reads long reasoning traces from a file, the hub or the miniature: what `coldstart.traces` names."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from longshort.coldstart.records import OK, Trace
from longshort.data import normalise, read_rows
from longshort.dialogue.encoding import END_THINK, ROLE_TAGS, THINK
from longshort.grading.pool import GradingPool
from longshort.types import LongShortError, Problem

RESPONSE_COLUMNS = ("response", "trace", "reasoning", "generation", "completion", "output")
CLOSED = re.compile(rf"{END_THINK}\s*(\n|$)")


def load_traces(source: str, limit: int | None, pool: GradingPool, seed: int) -> list[Trace]:
    """Return every row of the source as a Trace, in order; the `outcome` of a row that cannot be used says why.

    Outcomes: `ok`, `bad_row` (no question or no answer), `empty_response`, `gold_unparseable`, `duplicate` (problem and
    response both seen before). Notes: `crlf`, `non_ascii`, `think_wrapper`, `role_tags`, `repeated_problem`. The first
    row decides which column holds the responses. Raises LongShortError for a file that cannot be read, and for a source
    without any row or such a column.
    """
    name, _, kind = source.partition(":")
    if name == "miniature":
        return _miniature(kind, limit, seed)
    traces: list[Trace] = []
    seen: set[tuple[str, ...]] = set()
    column = ""
    for where, row in islice(read_rows(source, limit), limit):
        column = column or _response_column(where, row)
        trace = _trace(where, row, column, len(traces))
        problem = (trace.problem.question, trace.problem.answer)
        if trace.outcome == OK and (*problem, trace.response) in seen:
            detail = f"{where}: the same problem and response stand further up"
            trace = replace(trace, outcome="duplicate", detail=detail)
        elif trace.outcome == OK and problem in seen:
            trace = replace(trace, notes=(*trace.notes, "repeated_problem"))
        seen |= {problem, (*problem, trace.response)}
        traces.append(trace)
    if not traces:
        raise LongShortError(f"coldstart.traces: {source!r} holds no row; check the file, or the split's name")
    reasons = pool.gold_faults([trace.problem for trace in traces if trace.outcome == OK])
    for index, trace in enumerate(traces):
        if trace.outcome == OK and (answer := trace.problem.answer) in reasons:
            detail = f"the answer {answer[:80]!r}: {reasons[answer]}"
            traces[index] = replace(trace, outcome="gold_unparseable", detail=detail)
    return traces


def check_source(source: str, key: str) -> None:
    """Refuse, before anything starts, a source that cannot be read, has no row or no responses; `key` names it."""
    name, _, kind = source.partition(":")
    if name == "miniature":
        _maker(kind)
        return
    first = next(iter(read_rows(source, 1)), None)
    if not first:
        raise LongShortError(f"{key}: {source!r} holds no row; check the file, or the split's name")
    _response_column(*first)


def _response_column(where: str, row: Mapping[str, Any]) -> str:
    column = next((name for name in RESPONSE_COLUMNS if name in row), "")
    if not column:
        raise LongShortError(
            f"{where}: no response; expected a column {', '.join(RESPONSE_COLUMNS)}, got {', '.join(row) or 'none'}"
        )
    return column


def _trace(where: str, row: Mapping[str, Any], column: str, number: int) -> Trace:
    response = row[column] if isinstance(row.get(column), str) else ""
    digest = hashlib.blake2b(f"{number}\0{response}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    try:
        response.encode("utf-8")
        problem = normalise(row, where)
        problem.id.encode("utf-8")
    except (LongShortError, UnicodeEncodeError) as error:
        return Trace(
            id=digest,
            problem=Problem(id="", question="", answer=""),
            response=repr(response),
            outcome="bad_row",
            detail=str(error),
        )
    trace = Trace(id=f"{problem.id}-{digest}", problem=problem, response=response, notes=tuple(_notes(response)))
    if response.strip():
        return trace
    return replace(trace, outcome="empty_response", detail=f"{where}: no text in the column {column!r}")


def _notes(response: str) -> Iterator[str]:
    bare = unwrapped([response])[0]
    notes = {
        "crlf": "\r" in response,
        "non_ascii": not response.isascii(),
        "think_wrapper": bare != response,
        "role_tags": any(tag in bare for tag in ROLE_TAGS),
    }
    return (name for name, holds in notes.items() if holds)


def unwrapped(thoughts: Sequence[str]) -> list[str]:
    """Return a trace's thoughts without the `<think> … </think>` around the whole that some models write; the protocol
    sets its own.

    Removes an opening tag at the very start, and the only closing tag where it ends a paragraph. Any other tag stays.
    """
    text, parts = "".join(thoughts), list(thoughts)
    opened = text.lstrip().startswith(THINK)
    if text.count(THINK) > opened or text.count(END_THINK) > 1:
        return parts
    if opened:
        first = next(index for index, part in enumerate(parts) if part.strip())
        parts[first] = parts[first].replace(THINK, "", 1)
    if CLOSED.search(text):
        parts = [part.replace(END_THINK, "") for part in parts]
    return parts


def _miniature(kind: str, limit: int | None, seed: int) -> list[Trace]:
    from longshort.miniature.world import make_problems, products

    allowed, write = _maker(kind)
    rng, count = random.Random(f"traces {kind} {seed}"), limit or 2000
    made = make_problems("train", count if kind == "train" else 8 * count, seed + 1)
    problems = [problem for problem in made if products(problem) in allowed]
    return [Trace(id=problem.id, problem=problem, response=write(problem, rng)) for problem in problems[:count]]


def _maker(kind: str) -> tuple[tuple[int, ...], Callable[[Problem, random.Random], str]]:
    """Return the numbers of products that a kind of miniature traces has, and what writes one."""
    from longshort.miniature.world import compressed_trace, teacher_trace

    makers: dict[str, tuple[tuple[int, ...], Callable[[Problem, random.Random], str]]] = {
        "train": ((1, 2, 3), teacher_trace),
        "easy": ((1,), compressed_trace),
        "hard": ((2, 3), teacher_trace),
    }
    if kind not in makers:
        raise LongShortError(f"traces 'miniature:{kind}': {kind!r} is not known; known: {', '.join(makers)}")
    return makers[kind]
