"""Settings of every test: no hub, no telemetry, one thread; and the folder of benchmark files, where one is named."""

import os
from pathlib import Path

import pytest

# Set before a test module imports a library that reads it.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark files, graded responses and traces that LONGSHORT_TEST_DATA names; skips without it."""
    folder = os.environ.get("LONGSHORT_TEST_DATA")
    if not folder:
        pytest.skip("LONGSHORT_TEST_DATA names no folder of benchmark files")
    if not Path(folder).is_dir():
        pytest.fail(f"LONGSHORT_TEST_DATA is {folder!r}, which is not a folder")
    return Path(folder)
