"""What must hold before and after new weights reach an engine.

Before: every expected tensor is there, has its shape and is finite (engines accept a partial dict, die of a wrong
shape, and give NaN log-probs without an error for NaN weights). After: the learner must give the same log-probs to a
canary, a few tokens that the engine samples; only this shows a stale prefix cache or a forgotten tied head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from longshort.types import LongShortError

Manifest = list[tuple[str, str, tuple[int, ...]]]
"""(name, type, shape) of each tensor of an update, in the order in which they are sent."""
CANARY_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Allowed mean difference in nats between the engine's and the learner's log-probs of the canary's tokens."""


def check_weights(weights: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse missing, unknown, misshapen or non-finite tensors, before an engine is touched."""
    check_manifest([(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in weights.items()], expected)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise LongShortError(f"weight update refused: {name} holds NaN or infinite values")


def check_manifest(manifest: Manifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse missing, unknown or misshapen tensors of an update that is only announced yet."""
    announced = {name for name, _, _ in manifest}
    missing, unknown = sorted(expected.keys() - announced), sorted(announced - expected.keys())
    if missing or unknown:
        raise LongShortError(
            f"weight update refused: missing tensors {missing[:3]} ({len(missing)}), "
            f"unknown tensors {unknown[:3]} ({len(unknown)})"
        )
    for name, _, shape in manifest:
        if shape != expected[name]:
            raise LongShortError(
                f"weight update refused: {name} has shape {shape}, the engine's model has {expected[name]}"
            )


def check_canary(engine: Sequence[float], learner: Sequence[float], dtype: str, role: str, version: int) -> float:
    """Return the mean gap between engine and learner; raise RuntimeError above the dtype's tolerance, and for NaN."""
    gap = fmean(abs(a - b) for a, b in zip(engine, learner, strict=True))
    if not gap <= CANARY_TOLERANCE[dtype]:  # NaN compares false
        raise RuntimeError(
            f"the {role} engine does not hold version {version}: its log-probs differ from the learner's by {gap:.3g} "
            f"nats (allowed {CANARY_TOLERANCE[dtype]})"
        )
    return gap
