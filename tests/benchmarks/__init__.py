"""Ratios to ideal limits: `make bench` runs them all and writes docs/performance.md (see common.py)."""

import os

# As the tests have it; set before a benchmark imports a library that reads it.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "TQDM_DISABLE": "1"}
