"""Long reasoning traces from wherever they are kept: what `coldstart.traces` names."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from longshort.coldstart.records import OK, Trace
from longshort.data import normalise, read_rows
from longshort.dialogue.encoding import END_THINK, ROLE_TAGS, THINK
from longshort.dialogue.grading import GradingPool
from longshort.types import LongShortError, Problem

RESPONSE_COLUMNS = ("response", "trace", "reasoning", "generation", "completion", "output")
CLOSED = re.compile(rf"{END_THINK}\s*(\n|$)")
NOBODY = Problem(id="", question="", answer="")


def load_traces(source: str, limit: int | None, pool: GradingPool, seed: int) -> list[Trace]:
    """Every row of the source as a Trace, in order; a row that nothing can be made of says why in its `outcome`.

    Outcomes: `ok`, `bad_row` (no question or no answer), `empty_response`, `gold_unparseable`, `duplicate` (problem and response both
    seen before). Notes: `crlf`, `non_ascii`, `think_wrapper`, `role_tags`, `repeated_problem`. The first row decides which column holds the
    responses. Raises LongShortError for a file that cannot be read, and for a source without any row or such a column.
    """
    name, _, kind = source.partition(":")
    if name == "miniature":
        return _miniature(kind, limit, seed)
    traces: list[Trace] = []
    responses: set[tuple[str, str, str]] = set()
    problems: set[tuple[str, str]] = set()
    column = ""
    for where, row in islice(read_rows(source, limit), limit):
        column = column or _response_column(where, row)
        trace = _trace(where, row, column, len(traces))
        problem = (trace.problem.question, trace.problem.answer)
        if trace.outcome == OK and (*problem, trace.response) in responses:
            trace = _refused(trace, "duplicate", f"{where}: the same problem and response stand further up")
        elif trace.outcome == OK and problem in problems:
            trace = _noted(trace, "repeated_problem")
        responses.add((*problem, trace.response))
        problems.add(problem)
        traces.append(trace)
    if not traces:
        raise LongShortError(f"coldstart.traces: {source!r} holds no row; check the file, or the split's name")
    reasons = pool.gold_faults([trace.problem for trace in traces if trace.outcome == OK])
    return [
        _refused(
            trace, "gold_unparseable", f"the answer {trace.problem.answer[:80]!r}: {reasons[trace.problem.answer]}"
        )
        if trace.outcome == OK and trace.problem.answer in reasons
        else trace
        for trace in traces
    ]


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
        return Trace(id=digest, problem=NOBODY, response=repr(response), outcome="bad_row", detail=str(error))
    trace = Trace(id=f"{problem.id}-{digest}", problem=problem, response=response, notes=tuple(_notes(response)))
    if not response.strip():
        return _refused(trace, "empty_response", f"{where}: no text in the column {column!r}")
    return trace


def _notes(response: str) -> Iterator[str]:
    if "\r" in response:
        yield "crlf"
    if not response.isascii():
        yield "non_ascii"
    if unwrapped([response])[0] != response:
        yield "think_wrapper"
    if any(tag in unwrapped([response])[0] for tag in ROLE_TAGS):
        yield "role_tags"


def unwrapped(thoughts: Sequence[str]) -> list[str]:
    """The thoughts of a trace without the `<think> … </think>` that some models put around their reasoning; the protocol sets its own.

    Only that: an opening tag at the very start, and the one closing tag of the trace where it ends a paragraph. Any other tag stays.
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


def _refused(trace: Trace, outcome: str, detail: str) -> Trace:
    return Trace(
        id=trace.id, problem=trace.problem, response=trace.response, outcome=outcome, detail=detail, notes=trace.notes
    )


def _noted(trace: Trace, note: str) -> Trace:
    return Trace(id=trace.id, problem=trace.problem, response=trace.response, notes=(*trace.notes, note))


def _miniature(kind: str, limit: int | None, seed: int) -> list[Trace]:
    from longshort.miniature.world import compressed_trace, hard_parts, make_problems, teacher_trace

    makers: dict[str, tuple[tuple[int, ...], Callable[[Problem, random.Random], str]]] = {
        "train": ((1, 2, 3), teacher_trace),
        "easy": ((1,), compressed_trace),
        "hard": ((2, 3), teacher_trace),
    }
    if kind not in makers:
        raise LongShortError(f"traces 'miniature:{kind}': {kind!r} is not known; known: {', '.join(makers)}")
    products, write = makers[kind]
    rng, count = random.Random(f"traces {kind} {seed}"), limit or 2000
    made = make_problems("train", count if kind == "train" else 8 * count, seed + 1)
    problems = [problem for problem in made if hard_parts(problem) in products]
    return [Trace(id=problem.id, problem=problem, response=write(problem, rng)) for problem in problems[:count]]
