"""Every row of the published benchmark files loads, and its reference answer is graded right."""

import pytest

from longshort.evaluation.benchmarks import BENCHMARKS, GoldCheck, check_golds, load_benchmark
from longshort.grading.pool import GradingPool


@pytest.mark.parametrize(
    ("name", "file"), [("math500", "math500"), ("amc23", "amc23"), ("aime24", "aime24"), ("gsm8k", "gsm8k_test")]
)
def test_every_row_loads_and_every_gold_parses_and_verifies(shared_data, name, file):
    count = {"math500": 500, "amc23": 40, "aime24": 30, "gsm8k": 1319}[name]
    loaded = load_benchmark(name, data_dir=shared_data)
    assert (loaded.source, len(loaded.problems), loaded.remark) == (str(shared_data / f"{file}.jsonl"), count, "")
    assert BENCHMARKS[name].rows == count
    with GradingPool(timeout_s=30.0) as pool:
        assert check_golds(loaded.problems, pool) == GoldCheck(problems=count, parsed=count, verified=count, faults={})
