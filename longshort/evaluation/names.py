"""The names that evaluations give in their files, and reports find there again."""

from __future__ import annotations

import re
from pathlib import Path

SAMPLED, GREEDY = "sampled", "greedy"
"""Decodings."""
STAGES, TRAINING = "stages", "training"
"""The evaluations that `longshort run` makes of its stages, and training every `eval_steps`."""
ALL = "all"
"""Stands in place of a benchmark's name in the rows that average over benchmarks."""


def cross_name(long: str, short: str) -> str:
    """The system of a cell of the cross-play matrix; checkpoints are told by their last folder."""
    return f"long@{last_part(long)}+short@{last_part(short)}"


def last_part(reference: str) -> str:
    """`runs/x/checkpoint-40` -> "checkpoint-40", with nothing in it that a file's name must not have."""
    return re.sub(r"[^\w@+.-]+", "-", Path(reference).name)
