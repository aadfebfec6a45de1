"""Problems from any source, in one shape.

    load_problems("data/math.jsonl")   load_problems("owner/name:main:train")   load_problems("miniature:dev", limit=9)

longshort/problem_rows.py lists the columns that a row may have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from longshort.problem_rows import TOO_LONG, given_id
from longshort.problem_rows import normalise as normalise
from longshort.types import LongShortError, Problem

Rows = Iterator[tuple[str, Mapping[str, Any]]]
RowReader = Callable[[Mapping[str, Any], str], Problem]


def load_problems(source: str, limit: int | None = None, to_problem: RowReader = normalise) -> list[Problem]:
    """Load the problems of a source; keep the first `limit`.

    A source is a .jsonl, .json or .parquet file; a dataset folder or hub name as `name[:split]` or `name:config:split`
    (the split is `train` by default); or a generator: `miniature:train`, `miniature:dev`, `miniature:test`.

    Every row must give a problem: a bad one raises LongShortError with file, line, what is wrong and what to do.
    `to_problem(row, where)` reads a row: pass your own function if the columns are none of the known ones.
    """
    problems = _distinct(islice(read_rows(source, limit), limit), to_problem)
    if not problems:
        raise LongShortError(f"dataset {source!r} holds no problem; check the file, or the split's name")
    return problems


def problems_of(rows: Iterable[Problem | Mapping[str, Any]], name: str) -> list[Problem]:
    """Return the problems of rows in memory, such as a list or a datasets.Dataset; `name` stands for them in errors."""
    if isinstance(rows, Mapping) and not all(hasattr(split, "features") for split in rows.values()):
        raise LongShortError(
            f"{name} is a {type(rows).__name__} of {', '.join(map(str, rows))}; pass the rows: of splits one alone, of "
            "columns datasets.Dataset.from_dict(…)"
        )
    if isinstance(rows, Mapping):
        raise LongShortError(
            f"{name} is a {type(rows).__name__} of the splits {', '.join(map(str, rows))}; which one? Pass it alone, "
            f"e.g. {name}=data[{next(iter(rows), 'train')!r}]"
        )
    if isinstance(rows, str) or not isinstance(rows, Iterable) or hasattr(rows, "iloc"):
        raise LongShortError(
            f"{name} is a {type(rows).__name__}; pass the rows, such as a list of mappings (of a pandas table: "
            'table.to_dict("records")), or name a file or a hub dataset as `dataset` in the recipe'
        )
    plain = (asdict(row) if isinstance(row, Problem) else row for row in rows)
    problems = _distinct(((f"{name}[{index}]", row) for index, row in enumerate(plain)), normalise)
    if not problems:
        raise LongShortError(f"{name} is empty; pass at least one problem")
    return problems


def _distinct(rows: Iterable[tuple[str, Any]], to_problem: RowReader) -> list[Problem]:
    """Return the problems of (place, row) pairs. A copy without an id gets one; an id used twice is refused."""
    problems: dict[str, Problem] = {}
    places: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for where, row in rows:
        problem = to_problem(row, where)
        copies[problem.id] += 1
        if problem.id in problems:
            if given_id(row):
                first = places[problem.id]
                raise LongShortError(
                    f"{where}: the id {problem.id!r} is already used at {first}; give each problem its own"
                )
            problem = replace(problem, id=f"{problem.id}-{copies[problem.id]}")
        problems[problem.id], places[problem.id] = problem, where
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
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if line := _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, where).strip():
                yield where, _parse(line, where, dict)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise LongShortError(
            f"{path} cannot be read ({error.strerror}); correct its rights, or give another"
        ) from error


def _json(path: Path) -> Rows:
    with _open(path) as file:
        rows = _parse(_decode(file.read().removeprefix(b"\xef\xbb\xbf"), str(path)), str(path), list)
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
            short = (pyarrow.float16(), pyarrow.float32())  # Python's floats would show 0.1 as 0.10000000149011612
            narrow = {each.name: each.type.to_pandas_dtype() for each in file.schema_arrow if each.type in short}
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                exact = {name: kind(row[name]) for name, kind in narrow.items() if row[name] is not None}
                yield f"{path}, row {number}", row | exact
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
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a dataset that is a script
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LongShortError(
            f"dataset {source!r} (config {config or 'default'}, split {split!r}) could not be loaded: {cause}; check "
            f"the name (of a generator: {', '.join(GENERATORS)}), download it once if this machine is offline, or give "
            "a local .jsonl or .parquet file"
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
    except ValueError as error:
        raise LongShortError(f"{where}: {TOO_LONG}; starts with {text[:60]!r}") from error
    if not isinstance(value, kind):
        expected = {dict: "an object with a question and an answer", list: "a list of such objects"}[kind]
        raise LongShortError(f"{where}: expected {expected}, got {type(value).__name__}")
    return value


READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
"""Kinds of local files, by suffix."""
GENERATORS: dict[str, Callable[[str, int | None], Rows]] = {"miniature": _miniature}
"""Functions of (text after the colon, limit) that make problems: the place to plug in your own source."""
