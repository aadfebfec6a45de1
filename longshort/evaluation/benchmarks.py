r"""Benchmarks by name: where their problems are, how many there are, and whether their reference answers can be graded.

    load_benchmark("math500", data_dir="data")    load_benchmark("gsm8k", limit=200)    load_benchmark("my.jsonl")

A known name is read from the folder `data_dir` if it holds <name>.jsonl, .json or .parquet (or <name>_test.…), else
from the hub. Any other name is a source as `longshort.data.load_problems` takes it. Add your own by one line in
BENCHMARKS.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longshort.data import GENERATORS, READERS, RowReader, load_problems, normalise
from longshort.dialogue.rollout import stable_seed
from longshort.grading.pool import GradingPool
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.sections import BenchmarkEntry
from longshort.types import LongShortError, Problem

GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
GPQA_LETTERS = "ABCD"
GPQA_INSTRUCTION = r"Answer with the letter of the right option in \boxed{}."
GPQA_CANDIDATES = re.compile(
    r"(.+)Candidate answer:\s*\(1\)\s(.*?)\s*,\s*or\s+\(2\)\s(.*?)\s*,\s*or\s+\(3\)\s(.*?)\s*,\s*or\s+\(4\)\s(.*)",
    re.DOTALL,
)
"""Only the last "Candidate answer" and whole separators count: questions may number things, options may hold commas
and "or"."""


def plain_row(row: Mapping[str, Any], where: str, seed: int) -> Problem:
    """Return the problem of a row in any shape that `longshort.data` knows; nothing in it is random."""
    return normalise(row, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Where a benchmark's problems are, how many are published, and what turns a row into a Problem.

    `normalise(row, where, seed)` raises LongShortError, beginning with `where`, for a row that is no problem.

    Benchmark(title="AIME 2024", hub="HuggingFaceH4/aime_2024:train", rows=30)
    """

    title: str
    hub: str
    rows: int
    normalise: Callable[[Mapping[str, Any], str, int], Problem] = plain_row
    gated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBenchmark:
    """A benchmark's problems and their source. `remark` says if something about them is unusual.

    LoadedBenchmark(name="aime24", title="AIME 2024", source="data/aime24.jsonl", problems=(Problem(…), …),
    num_samples=16)
    """

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    remark: str = ""
    num_samples: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldCheck:
    """How many reference answers the grader can read, and how many it grades as right when given as the answer.

    `faults` has the grader's reason for every problem that fails either check, by id.

    GoldCheck(problems=3, parsed=2, verified=2, faults={"row-9": "unparsable"})
    """

    problems: int
    parsed: int
    verified: int
    faults: dict[str, str]


def load_benchmark(name: str, *, data_dir: str | Path = "", limit: int | None = None, seed: int = 0) -> LoadedBenchmark:
    """Load a benchmark by name, or any source of problems. `limit` keeps the first problems; `seed` shuffles multiple
    choice.

    LongShortError for an unknown name, a source that cannot be read (naming every place tried) and a row that is no
    problem.
    """
    if name not in BENCHMARKS:
        if not (set(name) & set("/:") or Path(name).suffix.lower() in READERS or Path(name).exists()):
            lookup(BENCHMARKS, name, "benchmark")  # raises, with the nearest name
        return LoadedBenchmark(name=name, title=name, source=name, problems=tuple(load_problems(name, limit)))
    benchmark = BENCHMARKS[name]

    def to_problem(row: Mapping[str, Any], where: str) -> Problem:
        return benchmark.normalise(row, where, seed)

    if file := _local_file(name, data_dir):
        problems, source = load_problems(str(file), limit, to_problem), str(file)
    else:
        problems, source = _from_hub(name, data_dir, limit, to_problem), benchmark.hub
    remark = ""
    if limit is None and len(problems) != benchmark.rows:
        remark = f"{source} holds {len(problems):,} problems; {benchmark.title} is published with {benchmark.rows:,}"
    return LoadedBenchmark(name=name, title=benchmark.title, source=source, problems=tuple(problems), remark=remark)


def check_golds(problems: Sequence[Problem], pool: GradingPool) -> GoldCheck:
    r"""Count the reference answers that can be graded against.

    An answer is `parsed` if the grader understands all of it, and
    `verified` if `\boxed{answer}`, graded like a model's text, is right. The verdicts enter `pool.counts`.
    """
    unparsed = pool.gold_faults(problems)
    verdicts = pool.grade_all((problem.answer, rf"\boxed{{{problem.answer}}}") for problem in problems)
    unverified = {
        problem.id: verdict.reason for problem, verdict in zip(problems, verdicts, strict=True) if not verdict.correct
    }
    faults = unverified | {problem.id: unparsed[problem.answer] for problem in problems if problem.answer in unparsed}
    parsed = sum(problem.answer not in unparsed for problem in problems)
    return GoldCheck(problems=len(problems), parsed=parsed, verified=len(problems) - len(unverified), faults=faults)


def gpqa(row: Mapping[str, Any], where: str, seed: int) -> Problem:
    """Return a row of GPQA (arXiv 2311.12022) as a question with options A to D, whose answer is a letter.

    Both published shapes are read: the official columns, and Long⊗Short's `problem`, which ends in the options. Both
    list the right option first, so the options are shuffled by (seed, problem id): the same on every machine.
    """
    id, stem, right, wrong = (_official if "Correct Answer" in row else _candidates)(row, where)
    if not all(options := [right, *wrong]):
        raise LongShortError(f"{where}: an option is empty, got {options}; fill it in or delete the row")
    rng = random.Random(stable_seed(seed, id))
    shuffled = sorted(options, key=lambda option: rng.random())  # unlike shuffle(), the same in every Python
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(GPQA_LETTERS, shuffled, strict=True))
    answer = GPQA_LETTERS[shuffled.index(right)]
    return normalise({"id": id, "problem": f"{stem}\n\n{listed}\n\n{GPQA_INSTRUCTION}", "answer": answer}, where)


def _official(row: Mapping[str, Any], where: str) -> tuple[str, str, str, list[str]]:
    """Return (id, question, right option, wrong ones) of a row with GPQA's own columns."""
    stem, right, *wrong = (_text(row, column, where) for column in ("Question", "Correct Answer", *GPQA_WRONG))
    return normalise({**row, "problem": stem, "answer": right}, where).id, stem, right, wrong


def _candidates(row: Mapping[str, Any], where: str) -> tuple[str, str, str, list[str]]:
    """Return the same of a row of Long⊗Short's file."""
    problem = normalise(row, where)
    match = GPQA_CANDIDATES.fullmatch(problem.question)
    if not match:
        raise LongShortError(
            f"{where}: no row of GPQA, which has the columns Question, Correct Answer and {', '.join(GPQA_WRONG)}, or "
            "a question that ends in 'Candidate answer: (1) …, or (2) …, or (3) …, or (4) …'; "
            "name a file of another shape by its path"
        )
    stem, *options = (part.strip() for part in match.groups())
    answer = _text(row, "answer", where)
    right = next((option for option in options if option.split() == answer.split()), None)
    if right is None:
        raise LongShortError(f"{where}: the answer {answer!r} is none of the options {options}; correct the row")
    options.remove(right)
    return problem.id, stem, right, options


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise LongShortError(f"{where}: the column {column!r} must hold text, got {value!r}; fill it in or delete the row")


def _local_file(name: str, data_dir: str | Path) -> Path | None:
    """Return the benchmark's file in `data_dir`, or None; `gsm8k.…` comes before `gsm8k_test.…`."""
    if not data_dir:
        return None
    if not Path(data_dir).is_dir():
        raise LongShortError(
            f"benchmark {name!r}: eval.data_dir {str(data_dir)!r} is no folder in {Path.cwd()}; correct the path"
        )
    files = (Path(data_dir) / f"{name}{split}{suffix}" for split in ("", "_test") for suffix in READERS)
    return next((file for file in files if file.is_file()), None)


def _from_hub(name: str, data_dir: str | Path, limit: int | None, to_problem: RowReader) -> list[Problem]:
    """Load the problems by the benchmark's hub name; an error also names the places that hold no file."""
    benchmark = BENCHMARKS[name]
    if limit is None and benchmark.hub.partition(":")[0] in GENERATORS:
        limit = benchmark.rows  # a generator does not end by itself
    try:
        return load_problems(benchmark.hub, limit, to_problem)
    except LongShortError as error:
        kinds = f"{name}.* or {name}_test.* ({', '.join(READERS)})"
        place = f"the folder {data_dir} holds no" if data_dir else "eval.data_dir names no folder with"
        terms = "; it is gated: accept its terms on its hub page and log in with `hf auth login`"
        gate = terms if benchmark.gated else ""
        raise LongShortError(f"benchmark {name!r}: {place} {kinds}, and {error}{gate}") from error


BENCHMARKS: dict[str, Benchmark] = {
    "math500": Benchmark(title="MATH-500", hub="HuggingFaceH4/MATH-500:test", rows=500),
    "aime24": Benchmark(title="AIME 2024", hub="HuggingFaceH4/aime_2024:train", rows=30),
    "aime25": Benchmark(title="AIME 2025", hub="math-ai/aime25:test", rows=30),
    "amc23": Benchmark(title="AMC 2023", hub="math-ai/amc23:test", rows=40),
    "gpqa_diamond": Benchmark(
        title="GPQA Diamond", hub="Idavidrein/gpqa:gpqa_diamond:train", rows=198, normalise=gpqa, gated=True
    ),
    "gsm8k": Benchmark(title="GSM8K", hub="openai/gsm8k:main:test", rows=1319),
    "miniature": Benchmark(title="miniature", hub="miniature:test", rows=400),
}
"""By the name that recipes use."""


def file_part(benchmark: str) -> str:
    """Return a name for files, at most 100 characters long: `miniature:test` -> "miniature-test"."""
    return re.sub(r"[^\w@+-]+", "-", benchmark)[-100:].strip("-")


def load_benchmarks(config: LongShortConfig, faults: list[str] | None = None) -> list[LoadedBenchmark]:
    """Load the recipe's benchmarks. One that cannot be loaded adds a line to `faults`; without `faults`, it raises."""
    settings, benchmarks = config.eval, []
    entries = [BenchmarkEntry(name=each) if isinstance(each, str) else each for each in settings.benchmarks]
    counts = Counter(file_part(entry.name) for entry in entries)
    if twice := [entry.name for entry in entries if counts[file_part(entry.name)] > 1]:
        raise LongShortError(
            f"eval.benchmarks: {' and '.join(twice)} would be kept in the same files ({file_part(twice[0])}); "
            "name each benchmark once, and rename a file that differs from another in punctuation only"
        )
    for entry in entries:
        limit = entry.num_problems or settings.num_problems
        try:
            loaded = load_benchmark(entry.name, data_dir=settings.data_dir, limit=limit, seed=settings.seed)
            benchmarks.append(replace(loaded, num_samples=entry.num_samples or settings.num_samples))
        except LongShortError as error:
            if faults is None:
                raise
            faults.append(str(error))
    return benchmarks


def evaluation_problems(config: LongShortConfig) -> list[Problem]:
    """Return the problems of every benchmark in the recipe; LongShortError if `eval_steps` has no benchmark to use."""
    if config.eval_steps and not config.eval.benchmarks:
        raise LongShortError(
            f"eval_steps is {config.eval_steps} but eval.benchmarks is empty; name at least one, or set eval_steps: 0"
        )
    return [problem for loaded in load_benchmarks(config) for problem in loaded.problems]
