"""What every test stands on: no hub, no telemetry, one thread, and the data folder where there is one."""

import os
from pathlib import Path

import pytest

# Set before a test module imports a library that reads it.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark files beside the repository; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no benchmark files at {SHARED_DATA}")
    return SHARED_DATA
