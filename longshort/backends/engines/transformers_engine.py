"""Sampling with plain transformers: for machines without vLLM, and the reference in tests.

Requests are decoded in waves: all that wait start together, later ones wait for the next wave. Correct, not fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from longshort.backends.engines.ending import ending, strings_of
from longshort.backends.weights.adapters import Adapter, check_adapter, merged
from longshort.backends.weights.weight_sync import check_weights
from longshort.dialogue.plain_text import decode_plain
from longshort.recipe.sections import EngineConfig
from longshort.types import Completion, LongShortError, Sampling


@dataclass(slots=True, kw_only=True)
class _Row:
    """A request, waiting or in the current wave."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    stop: str = ""
    text: str = ""


class TransformersCore:
    """A steppable engine: `add` requests, `step` until they finish, `load_weights` between any two steps."""

    def __init__(self, model: str, config: EngineConfig, seed: int = 0):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = torch.device("cuda" if config.num_gpus and torch.cuda.is_available() else "cpu")
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, config.dtype))
        self._model = loaded.to(self.device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        eos = self._model.generation_config.eos_token_id
        self._eos = {self._tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or ())}
        self.version, self.max_num_seqs = 0, config.max_num_seqs
        self._expected = {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}
        self._buffers: dict[str, torch.Tensor] = {}
        self._waiting: list[_Row] = []
        self._wave: list[_Row] = []
        self._input: tuple[torch.Tensor, torch.Tensor, Any] | None = None
        """The next step's ids [B, T], their mask, and the cache before them; None: read the whole sequences again."""
        self._asleep: set[str] = set()
        self.cached_tokens = self.prompt_tokens = self.decoded = 0

    @property
    def busy(self) -> bool:
        return not self._asleep and bool(self._waiting or self._wave)

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        generator = torch.Generator().manual_seed(sampling.seed)
        row = _Row(request_id=request_id, prompt_ids=tuple(prompt_ids), sampling=sampling, generator=generator)
        self._waiting.append(row)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._waiting = [row for row in self._waiting if row.request_id not in request_ids]
        self._wave = [row for row in self._wave if row.request_id not in request_ids]
        self._input = None

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Completion]]:
        """Decode one token for every row of the wave; return those that finished. An empty wave starts the next one."""
        if not self._wave:
            self._begin_wave()
            self.prompt_tokens += sum(len(row.prompt_ids) for row in self._wave)
            self._input = None
        ids, mask, cache = self._input or self._whole_sequences()
        output = self._model(
            ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.decoded += 1
        rows = zip(self._wave, output.logits[:, -1].float().cpu(), strict=True)
        tokens = [self._sample(row, logits) for row, logits in rows]
        finished = [(row.request_id, self._completion(row)) for row in self._wave if row.stop]
        self._input = self._next_input(tokens, mask, output.past_key_values)
        self._wave = [row for row in self._wave if not row.stop]
        return finished

    def _begin_wave(self) -> None:
        self._wave, self._waiting = self._waiting[: self.max_num_seqs], self._waiting[self.max_num_seqs :]

    def _version_of(self, row: _Row) -> int:
        return self.version

    def written(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield the requests of the wave, each with its ids so far."""
        for row in self._wave:
            yield row.request_id, row.ids

    def _whole_sequences(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the wave's ids so far, padded on the left, and their mask, int64 [B, T]; without a cache."""
        sequences = [[*row.prompt_ids, *row.ids] for row in self._wave]
        pad = [max(map(len, sequences)) - len(ids) for ids in sequences]
        inputs = [[0] * p + ids for p, ids in zip(pad, sequences, strict=True)]
        mask = [[0] * p + [1] * len(ids) for p, ids in zip(pad, sequences, strict=True)]
        return torch.tensor(inputs, device=self.device), torch.tensor(mask, device=self.device), None

    def _next_input(self, tokens: list[int], mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the next step's input: each unfinished row's new token, with the mask and cache of these rows."""
        going_on = [i for i, row in enumerate(self._wave) if not row.stop]
        if len(going_on) < len(tokens):
            index = torch.tensor(going_on, dtype=torch.long, device=self.device)
            cache.batch_select_indices(index)
            mask, tokens = mask[index], [tokens[i] for i in going_on]
        ids = torch.tensor(tokens, device=self.device).view(-1, 1)
        return ids, torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1), cache

    def _sample(self, row: _Row, logits: torch.Tensor) -> int:
        logprobs = processed_logprobs(logits, row.sampling)
        if row.sampling.temperature == 0:
            token = int(logprobs.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=row.generator))
        row.ids.append(token)
        row.logprobs.append(float(logprobs[token]))
        self._check_stop(row, token)
        return token

    def _check_stop(self, row: _Row, token: int) -> None:
        sampling, strings = row.sampling, strings_of(row.sampling)
        by_token = token in self._eos or token in sampling.stop_token_ids
        # A token holds at least one byte, so a stop string that is complete now began in this window.
        window = row.ids[-max((len(string.encode()) + 1 for string in strings), default=1) :]
        newest = decode_plain(self._tokenizer, window) if strings and not by_token else ""
        if by_token or len(row.ids) >= sampling.max_tokens or any(string in newest for string in strings):
            reason = "eos" if token in self._eos else "length"
            row.stop, row.text = ending(self._tokenizer, row.ids, sampling, reason)

    def _completion(self, row: _Row) -> Completion:
        return Completion(
            token_ids=tuple(row.ids),
            logprobs=tuple(row.logprobs),
            text=row.text,
            stop=row.stop,
            version=self._version_of(row) - len(row.updates),
            updates=tuple(row.updates),
        )

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace the weights in place, after checking that they are complete, of the right shapes and finite.

        Running requests keep their tokens; the new weights read them again, since the old keys and values are dropped.
        """
        check_weights(weights, self._expected)
        self._model.load_state_dict(weights)
        self._continue_with_new_weights(version - self.version)
        self.version = version

    def _continue_with_new_weights(self, updates: int) -> None:
        self._input = None
        for row in self._wave:
            row.updates += [len(row.ids)] * updates

    def sleep(self, level: int) -> None:
        """Free the device's memory: the cache, and the weights, which level 1 keeps on the host and level 2 drops."""
        if self._waiting or self._wave:
            raise LongShortError(
                "an engine cannot sleep while turns are being written; wait for them (time_share needs staleness 0)"
            )
        self._input = None
        self._buffers = {name: buffer.cpu().clone() for name, buffer in self._model.named_buffers()}
        self._model.to("cpu" if level == 1 else "meta")
        self._asleep = {"weights", "kv_cache"}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def wake(self, tags: Sequence[str]) -> None:
        """Take back the memory of `weights` or `kv_cache`; dropped weights are NaN, so that using them shows, until new
        ones come. Buffers are restored: no update brings them.
        """
        if "weights" in tags and "weights" in self._asleep:
            if next(self._model.parameters()).is_meta:
                self._model.to_empty(device=self.device).tie_weights()
                for parameter in self._model.parameters():
                    parameter.fill_(torch.nan)
                for name, buffer in self._model.named_buffers():
                    buffer.copy_(self._buffers[name])
            self._model.to(self.device)
        self._asleep -= set(tags)


class TransformersLoraCore(TransformersCore):
    """One model for several roles: a wave holds turns of one role, and the model has that role's adapter merged.

    The other role's turns wait for the next wave: correct, not fast.
    """

    def __init__(self, model: str, config: EngineConfig, seed: int = 0):
        super().__init__(model, config, seed)
        self._base = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._adapters: dict[str, Adapter] = {}
        self._versions: dict[str, int] = {}

    def _begin_wave(self) -> None:
        role = self._waiting[0].sampling.adapter
        if role not in self._adapters:
            raise RuntimeError(f"a turn for the adapter {role!r}, but the engine holds {sorted(self._adapters)}")
        self._wave = [row for row in self._waiting if row.sampling.adapter == role][: self.max_num_seqs]
        begun = {row.request_id for row in self._wave}
        self._waiting = [row for row in self._waiting if row.request_id not in begun]
        self._model.load_state_dict(merged(self._base, self._adapters[role]))

    def _version_of(self, row: _Row) -> int:
        return self._versions[row.sampling.adapter]

    def load_weights(self, adapter: Adapter, version: int) -> None:
        """Replace one role's adapter after checking it; running turns of that role continue with the new one."""
        role = adapter.role
        check_adapter(adapter, self._expected, self._adapters[role].tensors if role in self._adapters else ())
        before = self._versions.get(role, version)
        self._adapters[role], self._versions[role] = adapter, version
        if self._wave and self._wave[0].sampling.adapter == role:
            self._model.load_state_dict(merged(self._base, adapter))
            self._continue_with_new_weights(version - before)


def processed_logprobs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return log-probs [V] after temperature, top-k and top-p, as vLLM's `processed_logprobs`; greedy ignores them."""
    if sampling.temperature:
        logits = logits / sampling.temperature
        if sampling.top_k:
            logits = logits.masked_fill(logits < logits.topk(min(sampling.top_k, len(logits))).values[-1], -torch.inf)
        if sampling.top_p < 1:
            ordered, index = logits.sort(descending=True)
            drop = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= sampling.top_p
            logits = logits.masked_fill(drop.scatter(0, index, drop), -torch.inf)
    return logits.log_softmax(-1)
