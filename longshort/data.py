"""Problems from any source, in one shape.

    load_problems("data/math.jsonl")   load_problems("owner/name:main:train")   load_problems("miniature:dev", limit=9)

Known columns, first match wins (`answer` may be a number; all other columns are ignored):

    question    problem | question | prompt (text, or a chat list: its user messages)
    answer      answer (GSM8K: what follows `####`) | reward_model.ground_truth (verl)
                | solution (TRL; its last \\boxed{} if it has one)
    id          id | unique_id | Record ID (GPQA) | a hash of question and answer, the same in every file
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from longshort.grading.boxes import last_boxed
from longshort.types import LongShortError, Problem

MAX_QUESTION = 100_000
"""Characters; a longer "question" is a broken row."""
QUESTION_COLUMNS = ("problem", "question", "prompt")
ID_COLUMNS = ("id", "unique_id", "Record ID")
Rows = Iterator[tuple[str, Mapping[str, Any]]]
RowReader = Callable[[Mapping[str, Any], str], Problem]
WHOLE = re.compile(r"([+-]?\d+)\.0+")
GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


class _BadRow(ValueError):
    """What is wrong with a row, and what to do."""


def normalise(row: Mapping[str, Any], where: str) -> Problem:
    """Turn a row of any known shape into a Problem; the LongShortError for a bad row begins with `where`."""
    try:
        question, answer = _encodable(_question(row)), _encodable(_answer(row))
    except _BadRow as fault:
        raise LongShortError(f"{where}: {fault}") from None
    content = hashlib.blake2b(f"{question}\0{answer}".encode(), digest_size=6).hexdigest()
    return Problem(id=_given_id(row) or content, question=question, answer=answer)


def load_problems(source: str, limit: int | None = None, to_problem: RowReader = normalise) -> list[Problem]:
    """Load the problems of a source; keep the first `limit`.

    A source is a .jsonl, .json or .parquet file; a dataset folder or hub name as `name[:split]` or `name:config:split`
    (the split is `train` by default); or a generator: `miniature:train`, `miniature:dev`, `miniature:test`.

    Every row must give a problem: a bad one raises LongShortError with file, line, what is wrong and what to do.
    `to_problem(row, where)` reads a row: pass your own function if the columns are none of the known ones.
    """
    problems: dict[str, Problem] = {}
    places: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for where, row in islice(read_rows(source, limit), limit):
        problem = to_problem(row, where)
        copies[problem.id] += 1
        if problem.id in problems:
            if _given_id(row):
                first = places[problem.id]
                raise LongShortError(
                    f"{where}: the id {problem.id!r} is already used at {first}; give each problem its own"
                )
            problem = replace(problem, id=f"{problem.id}-{copies[problem.id]}")
        problems[problem.id], places[problem.id] = problem, where
    if not problems:
        raise LongShortError(f"dataset {source!r} holds no problem; check the file, or the split's name")
    return list(problems.values())


def read_rows(source: str, limit: int | None) -> Rows:
    """Yield (place, row) for each row of a source, in order and unchanged."""
    name, colon, argument = source.partition(":")
    if colon and name in GENERATORS:
        return GENERATORS[name](argument, limit)
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if path.is_file() and not reader:
        raise LongShortError(f"dataset {source}: a {path.suffix or 'nameless'} file; known kinds: {', '.join(READERS)}")
    if reader and not path.is_file():
        raise LongShortError(f"dataset {source}: there is no such file, seen from {Path.cwd()}; correct the path")
    return reader(path) if reader else _dataset(source)


def _miniature(split: str, limit: int | None) -> Rows:
    from longshort.miniature.world import make_problems
    from longshort.recipe.miniature import MiniatureConfig

    for problem in make_problems(split, limit or MiniatureConfig().num_train, seed=0):
        yield f"miniature:{split}, {problem.id}", asdict(problem)


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if line := _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, where).strip():
                yield where, _parse(line, where, dict)


def _json(path: Path) -> Rows:
    rows = _parse(_decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path)), str(path), list)
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise LongShortError(f"{where}: expected an object with a question and an answer, got {type(row).__name__}")
        yield where, row


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise LongShortError(f"{path}: not a readable parquet file ({error}); write it again") from error


def _dataset(source: str) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, *parts = source.split(":")
    if len(parts) > 2 or not all([name, *parts]):
        raise LongShortError(f"dataset {source!r} must look like name, name:split or name:config:split")
    config, split = (parts[0] if len(parts) == 2 else None), (parts[-1] if parts else "train")
    try:
        rows = load_dataset(name, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LongShortError(
            f"dataset {source!r} (config {config or 'default'}, split {split!r}) could not be loaded: {cause}; check "
            "the name, download it once if this machine is offline, or give a local .jsonl or .parquet file"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", dict(row)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        raise LongShortError(f"{where}: {fault}; convert the file (iconv -f latin1 -t utf-8)") from error


def _parse(text: str, where: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LongShortError(f"{where}: not valid JSON ({error}); starts with {text[:60]!r}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object with a question and an answer", list: "a list of such objects"}[kind]
        raise LongShortError(f"{where}: expected {expected}, got {type(value).__name__}")
    return value


def _question(row: Mapping[str, Any]) -> str:
    column = next((name for name in QUESTION_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise _BadRow(f"no question; expected a column {', '.join(QUESTION_COLUMNS)}, got {', '.join(row) or 'none'}")
    value = row[column]
    if isinstance(value, list):
        value = "\n\n".join(map(_chat_content, value))
    if not isinstance(value, str):
        raise _BadRow(f"the column {column!r} must hold text, got {type(value).__name__} {value!r}")
    question = value.strip()
    if not question:
        raise _BadRow(f"the question in column {column!r} is empty; fill it in or delete the row")
    if len(question) > MAX_QUESTION:
        raise _BadRow(f"a question of {len(question):,} characters (limit {MAX_QUESTION:,}); shorten or delete it")
    return question


def _chat_content(message: Any) -> str:
    """Return the text of a user message; "" for the system's, which the protocol's own instructions replace."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise _BadRow(f"a chat prompt is a list of {{role, content}} with text content, got {message!r}")
    if message.get("role") == "assistant":
        raise _BadRow("the chat prompt holds an assistant message; a problem is what the user asks, delete the others")
    return message["content"] if message.get("role") == "user" else ""


def _answer(row: Mapping[str, Any]) -> str:
    value = row.get("answer")
    if value is None and isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    if value is None and isinstance(solution := row.get("solution"), str):
        boxed = last_boxed(solution)
        if boxed is None and "prompt" not in row:
            raise _BadRow("no answer: the row has a solution without \\boxed{}; add an `answer` column")
        value = solution if boxed is None else boxed
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        expected = "a column answer, solution or reward_model.ground_truth"
        raise _BadRow(f"no answer; expected {expected}, got {', '.join(row)}; add it or delete the row")
    return _answer_text(value)


def _answer_text(value: Any) -> str:
    """Return the answer as text: `5.0` -> "5", "… #### 1,080" -> "1080"; refuse what cannot be an answer."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadRow(f"the answer must be text or a number, got {type(value).__name__} {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _BadRow(f"the answer is {value}; correct it or delete the row")
    text = str(value)
    if "####" in text:
        text = text.rpartition("####")[2].strip()
        text = text.replace(",", "") if GROUPED.fullmatch(text) else text
    text = text.strip()
    if not text or text.lower() == "nan":
        raise _BadRow(f"the answer is {'empty' if not text else repr(text)}; fill it in or delete the row")
    return WHOLE.sub(r"\1", text) if WHOLE.fullmatch(text) else text


def _encodable(text: str) -> str:
    """Refuse half a character (from a cut emoji in JSON), which would only fail in a tokenizer."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadRow(
            f"half a character (\\u{ord(text[error.start]):04x}), which is no text; correct the row"
        ) from error
    return text


def _given_id(row: Mapping[str, Any]) -> str:
    return next((str(row[name]).strip() for name in ID_COLUMNS if row.get(name) is not None), "")


READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
"""Kinds of local files, by suffix."""
GENERATORS: dict[str, Callable[[str, int | None], Rows]] = {"miniature": _miniature}
"""Functions of (text after the colon, limit) that make problems: the place to plug in your own source."""
