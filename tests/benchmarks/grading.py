r"""How fast are answers graded, and what do poison answers mixed in at 1 % cost?

    python tests/benchmarks/grading.py [--runs 9] [--workers 1]

Two loads, each timed clean and poisoned in turn, on warm processes and with the cache of verdicts off: `responses`:
the 500 recorded MATH500 responses (in the folder that LONGSHORT_TEST_DATA names);
`algebra`: terms with a letter and a root, which take algebra.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESPONSES = Path(os.environ.get("LONGSHORT_TEST_DATA", ".")) / "graded_responses_math500.jsonl"

POISON = {
    "power tower": "9^{9^{9^9}}",
    "bare tower": "2^2^2^2^2^2^2",
    "huge factorial": "10000000!",
    "nested factorial": "((100!)!)!",
    "nested braces": "{" * 3000 + "1" + "}" * 3000,
    "nested parentheses": "(" * 60 + "1" + ")" * 60,
    "huge exponent": "2^{1000000000}",
    "huge modular power": r"7^{1000000000} \mod 13",
    "symbolic expansion": "(x+y+z+1)^{500}",
    "complex power": "(1+i)^{9999}",
    "giant matrix": r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 60)] * 60) + r"\end{pmatrix}",
    "root tower": r"\sqrt{2+" * 40 + "1" + "}" * 40,
    "continued fraction": r"\frac{1}{1+" * 20 + "1" + "}" * 20,
    "long sum": r"\sum_{k=1}^{10^{9}} \frac{1}{k^2+1}",
    "hard integral": r"\int_0^1 e^{\sin x^3} \frac{\log x}{1+x^7} dx",
    "huge binomial": r"\binom{1000000000}{500000000}",
}


def mixed(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """`pairs` with one poison answer after every 99."""
    poison = list(POISON.values())
    result = []
    for i, pair in enumerate(pairs):
        result.append(pair)
        if i % 99 == 98:
            result.append((pair[0], rf"\boxed{{{poison[i // 99 % len(poison)]}}}"))
    return result


def loads() -> dict[str, list[tuple[str, str]]]:
    """Pairs of gold and text by the name of the load, 16 x 99 in each, so that every poison comes up once."""
    size = 99 * len(POISON)
    found = {
        "algebra": [
            (rf"\frac{{{i}\sqrt{{2}}x}}{{7}}", rf"So it is \boxed{{\frac{{{2 * i + i % 2}x}}{{7\sqrt{{2}}}}}}.")
            for i in range(size)
        ]
    }
    if RESPONSES.exists():
        rows = [json.loads(line) for line in RESPONSES.read_text(encoding="utf-8").splitlines()]
        found["responses"] = [(rows[i % len(rows)]["answer"], rows[i % len(rows)]["response"]) for i in range(size)]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Processor time so far of this process and of `pids`: unlike the clock it does not see what else the machine
    does.
    """
    fields = [Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def median_ratio(times: dict[str, list[float]]) -> float:
    """Of neighbouring runs."""
    return statistics.median(slow / fast for fast, slow in zip(times["clean"], times["poisoned"], strict=True))


def main() -> None:
    from longshort.grading.pool import GradingPool
    from longshort.grading.reading import read

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with GradingPool(workers=options.workers, cache_size=0) as pool:
        for name, clean in loads().items():
            poisoned = mixed(clean)
            pool.grade_all(clean)
            times: dict[str, list[float]] = {"clean": [], "poisoned": []}
            work: dict[str, list[float]] = {"clean": [], "poisoned": []}
            order = [("clean", clean), ("poisoned", poisoned)]
            for _ in range(options.runs):
                order.reverse()  # neither is always the first
                for kind, pairs in order:
                    read.cache_clear()
                    start, used = time.perf_counter(), cpu_seconds(pool.pids())
                    pool.grade_all(pairs)
                    times[kind].append(time.perf_counter() - start)
                    work[kind].append(cpu_seconds(pool.pids()) - used)
            ranges = ", ".join(f"{kind} {min(values):.3f}-{max(values):.3f} s" for kind, values in times.items())
            rate = len(clean) / statistics.median(times["clean"])
            print(
                f"{name}: {len(clean)} answers, {rate:.0f}/s (best {len(clean) / min(times['clean']):.0f}/s); with "
                f"{len(poisoned) - len(clean)} poison answers x {median_ratio(times):.3f} of the time, x "
                f"{median_ratio(work):.3f} of "
                f"the processor time (median of {options.runs} neighbouring pairs; {ranges})"
            )
        start = time.perf_counter()
        pool.grade_all([("7", rf"\boxed{{{answer}}}") for answer in POISON.values()])
        print(f"the {len(POISON)} poison answers alone: {(time.perf_counter() - start) * 1e3:.2f} ms")
        print("verdicts:", pool.counts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
