"""Log-probs of the sampled tokens of packed sequences, without holding all logits at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from longshort.types import Batch

TokenStatistics = tuple[torch.Tensor, torch.Tensor | None]
"""Log-prob and, if requested, entropy of each sampled token of a batch, float32 [N] in row-major order."""
LOGITS_HELD = 2**26
"""Logits computed at once (float32: 256 MiB). A vocabulary of 150,000 is cut into chunks of 447 tokens, which the
backward pass computes again."""


class LanguageModel(Protocol):
    """What log-probs need of a causal language model of transformers."""

    config: Any

    def get_decoder(self) -> Callable[..., Any]: ...

    def get_output_embeddings(self) -> Any: ...


def token_logprobs(model: LanguageModel, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probs of the sampled tokens, with the temperature inside."""
    return token_statistics(model, batch, temperature)[0]


def token_statistics(
    model: LanguageModel, batch: Batch, temperature: float = 1.0, *, with_entropy: bool = False, most_tokens: int = 0
) -> TokenStatistics:
    """Return log-probs and, if requested, the (detached) entropy in nats of the distributions they came from.

    The head is called as often as `most_tokens` sampled tokens need, even if this batch has fewer: with ZeRO-3 each
    call is a collective in which every rank must take part.
    """
    decode = model.get_decoder()
    hidden = decode(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    sampled = batch.mask[:, 1:]  # a sample never begins with a sampled token, so position t-1 lies in the same sample
    hidden, targets = hidden[:, :-1][sampled], batch.input_ids[:, 1:][sampled]
    softcap = model.config.to_dict().get("final_logit_softcapping")
    head = model.get_output_embeddings()

    def head_statistics(hidden: torch.Tensor, targets: torch.Tensor) -> TokenStatistics:
        # Never in bfloat16, even under autocast: logits of that type are 0.125 apart beyond 16.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head(hidden.to(head.weight.dtype)).float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1.0:
            logits = logits / temperature
        entropy = torch.special.entr(logits.detach().softmax(-1)).sum(-1) if with_entropy else None
        return -F.cross_entropy(logits, targets, reduction="none"), entropy

    chunk = max(1, LOGITS_HELD // head.out_features)
    parts = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    parts += [(hidden[:0], targets[:0])] * (math.ceil(most_tokens / chunk) - len(parts))
    if len(parts) == 1:
        return head_statistics(hidden, targets)
    logps, entropies = zip(*(checkpoint(head_statistics, *part, use_reentrant=False) for part in parts), strict=True)
    return torch.cat(logps), torch.cat(entropies) if with_entropy else None
