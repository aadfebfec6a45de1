"""Sampling with plain transformers, behind the same contract as vLLM: for machines without vLLM, and the reference in tests.

Requests are decoded in waves: all that are waiting start together, later ones wait for the next wave. Correct, not fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from longshort.backends.weight_sync import check_weights
from longshort.sections import EngineConfig
from longshort.types import Completion, Sampling

TAIL = 32  # tokens re-read for a stop string at every step; a role tag is far shorter


@dataclass(slots=True, kw_only=True)
class _Running:
    """A request in the current wave."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str = ""
    text: str = ""


class TransformersCore:
    """A steppable engine: `add` requests, `step` runs all waiting ones to their end, `load_weights` between steps."""

    name = "transformers"

    def __init__(self, model: str, config: EngineConfig, seed: int = 0):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = torch.device("cuda" if config.num_gpus and torch.cuda.is_available() else "cpu")
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, config.dtype)).to(self.device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        eos = self._model.generation_config.eos_token_id
        self._eos = {eos} if isinstance(eos, int) else set(eos or ())
        self.context, self.version, self.max_num_seqs = config.max_model_len, 0, config.max_num_seqs
        self._expected = {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}
        self._waiting: list[_Running] = []
        self._running = False
        self.cached_tokens = self.prompt_tokens = self.decoded = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        generator = torch.Generator().manual_seed(sampling.seed)
        self._waiting.append(_Running(request_id=request_id, prompt_ids=tuple(prompt_ids), sampling=sampling, generator=generator))

    def abort(self, request_ids: Sequence[str]) -> None:
        self._waiting = [request for request in self._waiting if request.request_id not in request_ids]

    def step(self) -> list[tuple[str, Completion]]:
        """Decode the waiting requests (at most `max_num_seqs`) together until the last one has finished."""
        wave, self._waiting = self._waiting[: self.max_num_seqs], self._waiting[self.max_num_seqs :]
        self._running = True
        try:
            self._decode_wave(wave)
        finally:
            self._running = False
        return [(row.request_id, self._completion(row)) for row in wave]

    @torch.inference_mode()
    def _decode_wave(self, wave: list[_Running]) -> None:
        self.prompt_tokens += sum(len(row.prompt_ids) for row in wave)
        longest = max(len(row.prompt_ids) for row in wave)
        pad = [longest - len(row.prompt_ids) for row in wave]
        inputs = torch.tensor([[0] * p + list(row.prompt_ids) for p, row in zip(pad, wave, strict=True)], device=self.device)
        mask = torch.tensor([[0] * p + [1] * len(row.prompt_ids) for p, row in zip(pad, wave, strict=True)], device=self.device)
        cache, rows = None, list(wave)
        while rows:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            output = self._model(
                inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            self.decoded += 1
            tokens = [self._sample(row, logits) for row, logits in zip(rows, output.logits[:, -1].float().cpu(), strict=True)]
            alive = [i for i, row in enumerate(rows) if not row.stop]
            if len(alive) < len(rows):
                index = torch.tensor(alive, dtype=torch.long, device=self.device)
                cache.batch_select_indices(index)
                mask, rows, tokens = mask[index], [rows[i] for i in alive], [tokens[i] for i in alive]
            inputs = torch.tensor(tokens, device=self.device).view(-1, 1)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _sample(self, row: _Running, logits: torch.Tensor) -> int:
        logprobs = processed_logprobs(logits, row.sampling)
        if row.sampling.temperature == 0:
            token = int(logprobs.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=row.generator))
        row.ids.append(token)
        row.logprobs.append(float(logprobs[token]))
        self._check_stop(row, token)
        return token

    def _check_stop(self, row: _Running, token: int) -> None:
        sampling = row.sampling
        if token in sampling.stop_token_ids:
            row.stop, row.text = sampling.stop[sampling.stop_token_ids.index(token)], self._decode(row.ids[:-1])
        elif token in self._eos:
            row.stop, row.text = "eos", self._decode(row.ids[:-1])
        elif not sampling.stop_token_ids and any(tag in self._decode(row.ids[-TAIL:]) for tag in sampling.stop):
            text = self._decode(row.ids)
            start, row.stop = min((text.find(tag), tag) for tag in sampling.stop if tag in text)
            row.text = text[:start]
        elif len(row.ids) >= sampling.max_tokens:
            row.stop, row.text = "length", self._decode(row.ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _completion(self, row: _Running) -> Completion:
        return Completion(token_ids=tuple(row.ids), logprobs=tuple(row.logprobs), text=row.text, stop=row.stop, version=self.version)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace the weights in place, after checking that they are complete, of the right shapes and finite."""
        check_weights(weights, self._expected)
        self._model.load_state_dict(weights)
        self.version = version


def processed_logprobs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probs [V] after temperature, top-k and top-p, as vLLM's `processed_logprobs`; greedy sampling leaves the logits as they are."""
    if sampling.temperature:
        logits = logits / sampling.temperature
        if sampling.top_k:
            logits = logits.masked_fill(logits < logits.topk(min(sampling.top_k, len(logits))).values[-1], -torch.inf)
        if sampling.top_p < 1:
            ordered, index = logits.sort(descending=True)
            drop = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= sampling.top_p
            logits = logits.masked_fill(drop.scatter(0, index, drop), -torch.inf)
    return logits.log_softmax(-1)
