"""What a learner proves about itself before its first update: it knows how its model makes logits, and packing changes nothing."""

from __future__ import annotations

import torch

from longshort.learning.packing import pack
from longshort.types import LongShortError, Sample

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats between two ways to the same log-prob; an unknown scaling or a neighbour that is seen is far off, arithmetic is far within."""


@torch.no_grad()
def check_head(learner) -> None:
    """`token_logprobs` applies the head itself; refuse a model that does more to its logits than we know of."""
    model = learner.model
    ids = [i % model.config.vocab_size for i in range(1, 9)]
    with learner._arithmetic():
        own = model(torch.tensor([ids], device=learner.device)).logits[0, :-1].float().log_softmax(-1)
    own = own.gather(-1, torch.tensor(ids[1:], device=learner.device)[:, None])[:, 0]
    ours = torch.tensor(learner.score(ids[:1], ids[1:], 1.0), device=learner.device)
    difference = (own - ours).abs().max().item()
    if not difference <= TOLERANCE[learner.config.dtype]:
        raise LongShortError(
            f"{learner.role}: model type {model.config.model_type!r} computes its logits in a way that we do not know "
            f"(log-probs differ by {difference:.3g} nats), or its weights are not finite; use another model or extend learning/step.py"
        )


@torch.no_grad()
def check_packing(learner) -> None:
    """Samples of one row do not see each other: the same log-probs packed, two rows with padding, as each of them alone."""
    model = learner.model
    vocabulary = model.config.vocab_size
    sequences = [
        [(7 * start + step) % vocabulary for step in range(length)]
        for start, length in ((1, 8), (2, 5), (3, 9), (4, 2))
    ]
    samples = [_sampled(learner.role, ids) for ids in sequences]
    (batch,) = pack(samples, [0.0] * len(samples), 14, 28, learner.device)
    with learner._arithmetic():
        together = learner.process.statistics(learner.policy, batch, 1.0)[0]
    alone = {i: learner.score(ids[:1], ids[1:], 1.0) for i, ids in enumerate(sequences)}
    numbers = batch.sequence[batch.mask].tolist()
    expected = torch.tensor([alone[i][numbers[:at].count(i)] for at, i in enumerate(numbers)], device=learner.device)
    difference = (together - expected).abs().max().item()
    if not difference <= TOLERANCE[learner.config.dtype]:
        raise LongShortError(
            f"{learner.role}: samples packed into one row get log-probs that differ by {difference:.3g} nats from their own: attention "
            f"{learner.attention!r} does not keep them apart for model type {model.config.model_type!r}; set learner.attention: sdpa"
        )


def _sampled(role: str, ids: list[int]) -> Sample:
    """All but the first id sampled."""
    zeros = (0.0,) * len(ids)
    return Sample(role=role, token_ids=tuple(ids), mask=(0, *(1,) * (len(ids) - 1)), logprobs=zeros, advantages=zeros)
