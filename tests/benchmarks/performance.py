"""The one writer of docs/performance.md.

    python -m tests.benchmarks.performance [--measure] [--only NAME …] [--results FOLDER] [--page docs/performance.md]

Writes the page from the figures that the benchmarks left in FOLDER; with `--measure` it runs them first, each in a
process of its own. A benchmark that fails leaves no figures: it is named on the page and on the way out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.common import RESULTS, ROOT, figure_of, say, spread

BENCHMARKS = (
    "turns",
    "prefix_cache",
    "overhead",
    "scaling",
    "one_step_off",
    "learner_trl",
    "weight_sync",
    "step_breakdown",
    "memory",
    "serving",
)
"""In the order of the page."""

HEAD = """# Performance

Every figure is a ratio to an ideal limit that was measured or computed in the same run, so it describes this program
and not the machine. `make bench` measures all of them and writes this page; each command below measures its own part.
Models are made on the spot, with random weights. Each figure is the median (lowest to highest) over the runs. The load
says how busy the machine was: on a shared one the figures are worse and their spread wide. A missed target stands with
its cause.
"""


def measure(name: str, folder: Path) -> bool:
    """Whether the benchmark came to its end; what it left before is gone."""
    (folder / f"{name}.json").unlink(missing_ok=True)
    say(f"== {name}")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--results", str(folder)], cwd=ROOT, check=False
    )
    say(
        f"== {name}: {time.perf_counter() - began:.0f} s"
        + (f", FAILED with {done.returncode}" if done.returncode else "")
    )
    return done.returncode == 0


def read(folder: Path) -> tuple[list[dict], list[str]]:
    """What the benchmarks left, in the order of the page, and the names of those that left nothing."""
    there = [name for name in BENCHMARKS if (folder / f"{name}.json").is_file()]
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in there], [
        n for n in BENCHMARKS if n not in there
    ]


def page(rows: list[dict], absent: list[str]) -> str:
    """The whole text of docs/performance.md."""
    parts = [HEAD, table(rows)]
    if absent:
        parts.append(f"Not measured: {', '.join(absent)}.\n")
    return "\n".join(parts + [section(row) for row in rows])


def table(rows: list[dict]) -> str:
    lines = ["| what | measured | target | ideal limit in the same runs | command |", "|---|---|---|---|---|"]
    for row in rows:
        for figure in map(figure_of, row["figures"]):
            target = f"{figure.target}: {'met' if figure.met else '**missed**'}" if figure.target else "–"
            ideal = f"{spread(figure.ideal, figure.form)}: {figure.limit}" if figure.ideal else figure.limit or "–"
            lines.append(
                f"| {figure.what} | {figure.measured} | {target} | {ideal} | [{row['name']}](#{row['name']}) |"
            )
    return "\n".join(lines) + "\n"


def section(row: dict) -> str:
    """How one benchmark measures, what it saw, and the causes of its misses."""
    machine = row["machine"]
    figures = [figure_of(figure) for figure in row["figures"]]
    runs = max(len(figure.values) for figure in figures)
    lines = [
        f"## {row['name']}",
        "",
        f"`{row['command']}`, {runs} runs on {machine['date']}: {machine['cpu']}, load {machine['load']}.",
        "",
    ]
    lines += [f"{machine['software']}.", "", row["description"].strip(), ""]
    lines += [f"- {note}" for note in row["notes"]]
    lines += [
        f"- **Missed**: {one.what}, {one.measured}, wanted {one.target}. {one.cause or 'Cause unknown.'}"
        for one in figures
        if not one.met
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the benchmarks first")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="run these, keep the others' figures"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    asked = parser.parse_args()
    failed = [name for name in asked.only if asked.measure and not measure(name, asked.results)]
    rows, absent = read(asked.results)
    asked.page.write_text(page(rows, absent), encoding="utf-8")
    say(f"wrote {asked.page}" + (f" without {', '.join(absent)}" if absent else ""))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
