"""What a learner proves before its first update: it knows how its model makes logits, and packing changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from longshort.learning.logprobs import token_logprobs
from longshort.learning.packing import pack
from longshort.recipe.schema import LongShortConfig
from longshort.types import Batch, LongShortError, Sample

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Allowed difference in nats between two computations of a log-prob; a fault is far above it, rounding far below."""


@torch.no_grad()
def check_head(model, role: str, dtype: str) -> None:
    """Refuse a model that does more to its logits than learning/logprobs.py knows, which applies the head itself."""
    ids = [i % model.config.vocab_size for i in range(1, 9)]
    (batch,) = pack([all_sampled(role, ids)], [0.0], 0, len(ids), model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        theirs = model(torch.tensor([ids], device=model.device)).logits[0, :-1].float().log_softmax(-1)
        ours = token_logprobs(model, batch)
    theirs = theirs.gather(-1, torch.tensor(ids[1:], device=model.device)[:, None])[:, 0]
    difference = (theirs - ours).abs().max().item()
    if not difference <= TOLERANCE[dtype]:
        raise LongShortError(
            f"{role}: model type {model.config.model_type!r} computes its logits in an unknown way (log-probs differ "
            f"by {difference:.3g} nats), or its weights are not finite; use another model or extend logprobs.py"
        )


class ScoringLearner(Protocol):
    """What a check needs of a learner: log-probs of a packed batch, and of one sequence alone."""

    role: str
    attention: str
    device: torch.device
    model: Any
    config: LongShortConfig

    def logprobs(self, batch: Batch, temperature: float) -> torch.Tensor: ...

    def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float) -> list[float]: ...


def check_packing(learner: ScoringLearner) -> None:
    """Refuse attention that lets the samples of a row see each other: log-probs must be the same packed and alone."""
    vocabulary = learner.model.config.vocab_size
    sequences = [
        [(7 * start + step) % vocabulary for step in range(length)]
        for start, length in ((1, 8), (2, 5), (3, 9), (4, 2))
    ]
    (batch,) = pack([all_sampled(learner.role, ids) for ids in sequences], [0.0] * 4, 14, 28, learner.device)
    packed = learner.logprobs(batch, 1.0)
    alone = [learner.score(ids[:1], ids[1:], 1.0) for ids in sequences]
    numbers = batch.sequence[batch.mask].tolist()
    expected = torch.tensor([alone[i][numbers[:at].count(i)] for at, i in enumerate(numbers)], device=learner.device)
    difference = (packed - expected).abs().max().item()
    if not difference <= TOLERANCE[learner.config.dtype]:
        raise LongShortError(
            f"{learner.role}: samples packed into one row get log-probs that differ by {difference:.3g} nats from "
            f"their own: attention {learner.attention!r} does not keep them apart for model type "
            f"{learner.model.config.model_type!r}; set learner.attention: sdpa"
        )


def all_sampled(role: str, ids: list[int]) -> Sample:
    """Make a sample of which all but the first id was sampled."""
    zeros = (0.0,) * len(ids)
    return Sample(role=role, token_ids=tuple(ids), mask=(0, *(1,) * (len(ids) - 1)), logprobs=zeros, advantages=zeros)
