"""vLLM as one policy's sampler: token ids in; ids, processed log-probs and the weight version out.

Only this module and the two halves of vLLM's weight transfer (vllm_inbox.py, weight_outbox.py) import vllm. One engine
per process, stepped in that process: a second vLLM process would double the latency of small models. Works with vLLM
0.26 to 0.31.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from longshort.backends.engines.ending import ending, strings_of
from longshort.backends.weights.adapters import Adapter, check_adapter, write
from longshort.backends.weights.vllm_inbox import Inbox
from longshort.backends.weights.weight_sync import Manifest, check_weights
from longshort.recipe.roles import LoraSection
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import expected_weights, find_folder
from longshort.types import Completion, LongShortError, Sampling

SHARED_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where an adapter is written for vLLM, which reads folders only; removed at once."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default binds every engine of the machine to the same core
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""The environment of an engine's process; it must be set before vllm is imported (measured: docs/operations.md)."""


class VllmCore:
    """A steppable engine: `add` requests, `step` until they finish, `load_weights` between any two steps."""

    def __init__(self, model: str, config: EngineConfig, seed: int = 0, **changes: Any):
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        known = {field.name for field in dataclasses.fields(EngineArgs)}
        if unknown := set(config.extra) - known:
            raise LongShortError(f"engine.extra: vLLM's EngineArgs has no {', '.join(sorted(unknown))}")
        folder = str(find_folder(model, "model"))
        self._engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(folder, config, seed, **changes)))
        self._tokenizer = self._engine.get_tokenizer()
        self.version = 0
        self._expected = expected_weights(folder)
        self._sampling: dict[str, Sampling] = {}
        self._updates: dict[str, list[int]] = {}
        self._asleep: set[str] = set()
        route = config.extra.get("weight_transfer_config", {}).get("backend", "")
        self._inbox = Inbox(self._engine, route, self._expected)
        self.cached_tokens = self.prompt_tokens = self.decoded = 0

    @property
    def busy(self) -> bool:
        """Whether there is something to decode, and weights and a cache to decode it with."""
        return not self._asleep and not self._inbox.open and self._engine.has_unfinished_requests()

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        strings = list(strings_of(sampling))
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=strings or None,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            logprobs=0,
            detokenize=bool(strings),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        lora = self._adapter_of(sampling)
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt_ids)}, params, lora_request=lora)
        self._sampling[request_id], self._updates[request_id] = sampling, []

    def _adapter_of(self, sampling: Sampling) -> Any:
        """Return vLLM's LoRARequest of the adapter that writes the turn; None: the model itself does."""
        return None

    def _version_of(self, sampling: Sampling) -> int:
        return self.version

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))
        for request_id in request_ids:
            self._sampling.pop(request_id, None)
            self._updates.pop(request_id, None)

    def step(self) -> list[tuple[str, Completion]]:
        """Decode one token for every running request; return those that finished."""
        finished = [(output.request_id, self._completion(output)) for output in self._engine.step() if output.finished]
        self.decoded += 1
        return finished

    def written(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield the running requests, each with its ids so far.

        Reads vLLM's private record. Its public outputs show unfinished turns only if every step builds one per turn.
        """
        for state in self._engine.output_processor.request_states.values():
            if state.detokenizer is not None:
                yield state.external_req_id, state.detokenizer.output_token_ids

    def _completion(self, output) -> Completion:
        sampling, updates = self._sampling.pop(output.request_id), self._updates.pop(output.request_id)
        answer = output.outputs[0]
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0
        ids = tuple(answer.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True))
        reason = answer.finish_reason
        if reason == "stop":  # its reason is a string, or the id of a further end token of generation_config.json
            reason = answer.stop_reason if isinstance(answer.stop_reason, str) else "eos"
        stop, text = ending(self._tokenizer, ids, sampling, reason)  # not vLLM's text: another decoder made that
        began = self._version_of(sampling) - len(updates)
        return Completion(token_ids=ids, logprobs=logprobs, text=text, stop=stop, version=began, updates=tuple(updates))

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace the weights in place and drop all keys and values of the old ones; a refusal touches nothing.

        Running requests keep their tokens: vLLM takes their blocks away and reads their ids again with the new weights.
        """
        check_weights(weights, self._expected)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self._adopt(version)

    def connect(self, wire: Mapping[str, Any]) -> None:
        """Prepare to receive weights from GPU to GPU; weight_transfer.py has the order of the calls."""
        self._inbox.connect(wire)

    def start_update(self, manifest: Manifest) -> None:
        """Agree to the weights that will come, or refuse them; nothing is decoded until `finish_update`."""
        self._inbox.start(manifest)

    def update(self, parcel: Mapping[str, Any]) -> None:
        self._inbox.update(parcel)

    def finish_update(self, version: int) -> None:
        """Use the weights that have come; running requests continue as after `load_weights`."""
        self._inbox.finish()
        self._adopt(version)

    def _adopt(self, version: int) -> None:
        self._drop_keys_and_values()
        self._count_updates(self._sampling, version - self.version)
        self.version = version

    def _drop_keys_and_values(self) -> None:
        # Without `reset_running_requests` vLLM refuses while anything runs, and new requests would hit old blocks.
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM refused to reset its prefix cache after a weight update")

    def _count_updates(self, request_ids: Collection[str], updates: int) -> None:
        """Note for these requests how many tokens they had when their weights were updated."""
        for request_id, ids in self.written():
            if ids and request_id in request_ids:
                self._updates[request_id] += [len(ids)] * updates

    def sleep(self, level: int) -> None:
        """Free the GPU's memory: the KV cache, and the weights, which level 1 keeps on the host and level 2 drops."""
        if self._engine.has_unfinished_requests():
            raise LongShortError(
                "an engine cannot sleep while turns are being written; wait for them (time_share needs staleness 0)"
            )
        if not self._asleep:
            self._engine.sleep(level)
            self._asleep = {"weights", "kv_cache"}

    def wake(self, tags: Sequence[str]) -> None:
        """Take back the memory of `weights` or `kv_cache`; after level 2 the weights are undefined until an update."""
        if asleep := [tag for tag in tags if tag in self._asleep]:
            self._engine.wake_up(asleep)
            self._asleep.difference_update(asleep)


def engine_arguments(model: str, config: EngineConfig, seed: int, **changes: Any) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs: ours, then `changes`, then the recipe's `engine.extra`."""
    options: dict[str, Any] = dict(
        model=model,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30),
        enable_prefix_caching=True,
        enforce_eager=not config.num_gpus,  # CUDA graphs pay on a GPU; compilation on a CPU costs minutes
        logprobs_mode="processed_logprobs",  # the default is raw: the sampling temperature would be missing
        disable_log_stats=True,
        max_num_batched_tokens=max(config.max_model_len, 8192),
        # A seeded request that is prefilled in two parts kills a CPU engine: torch cannot rewind a generator there.
        enable_chunked_prefill=bool(config.num_gpus),
        seed=seed,
        load_format="safetensors",  # "auto" would read a Mistral repository's second set of weights, and the tokenizer
        config_format="hf",  # and configuration beside it: not what the learner reads
        tokenizer_mode="hf",
        generation_config="vllm",  # sampling defaults of the model's folder must not override the recipe's
    )
    if 0 < config.num_gpus < 1:  # vLLM refuses to start unless this share of the GPU is free; its default is 0.9
        options["gpu_memory_utilization"] = config.num_gpus
    if config.num_gpus and config.dtype != "float32":  # logits as exact as the learner's (learning/logprobs.py)
        options["hf_overrides"] = {"head_dtype": "float32"}
    return options | changes | dict(config.extra)


class VllmLoraCore(VllmCore):
    """One model for several roles: their adapters write the turns (`Sampling.adapter`), an update replaces one adapter.

    A role gets its adapter before its first turn: vLLM's CPU kernels (0.31) apply the last adapter to requests without.
    """

    def __init__(self, model: str, config: EngineConfig, seed: int, adapters: Mapping[str, LoraSection]):
        rank = _max_rank(adapters)
        options: dict[str, Any] = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
        if not config.num_gpus:
            # The CPU kernels copy a layer's adapter once per token of a step: keep the steps that read prompts small.
            options["max_num_batched_tokens"] = max(config.max_model_len, config.max_num_seqs)
        super().__init__(model, config, seed, **options)
        self._ids = {role: number for number, role in enumerate(adapters, 1)}
        self._requests: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._tensor_names: dict[str, frozenset[str]] = {}

    def _adapter_of(self, sampling: Sampling) -> Any:
        if sampling.adapter not in self._requests:
            holds = sorted(self._requests)
            raise RuntimeError(f"a turn for the adapter {sampling.adapter!r}, but the engine holds {holds}")
        return self._requests[sampling.adapter]

    def _version_of(self, sampling: Sampling) -> int:
        return self._versions[sampling.adapter]

    def load_weights(self, adapter: Adapter, version: int) -> None:
        """Replace one role's adapter; a refusal touches nothing. The other role's turns continue with theirs.

        Running turns of this role keep their tokens and are read again with the new adapter. vLLM stores keys and
        values by the adapter's name (0.31: and path), so a new name per version separates new turns from old values;
        only running turns need a reset.
        """
        from vllm.lora.request import LoRARequest

        role = adapter.role
        check_adapter(adapter, self._expected, self._tensor_names.get(role, ()))
        with tempfile.TemporaryDirectory(prefix=f"longshort-{role}-{version}-", dir=SHARED_MEMORY) as folder:
            write(adapter, Path(folder))
            self._engine.add_lora(LoRARequest(folder, self._ids[role], folder, load_inplace=True))
        running = {request_id for request_id, sampling in self._sampling.items() if sampling.adapter == role}
        if running:
            self._drop_keys_and_values()
            self._count_updates(running, version - self._versions[role])
        self._requests[role], self._versions[role] = LoRARequest(folder, self._ids[role], folder), version
        self._tensor_names[role] = frozenset(adapter.tensors)


def _max_rank(adapters: Mapping[str, LoraSection]) -> int:
    """Return the smallest rank that vLLM has kernels for and that fits every adapter."""
    from vllm.config.lora import MaxLoRARanks

    largest, known = max(lora.r for lora in adapters.values()), sorted(get_args(MaxLoRARanks))
    if largest > known[-1]:
        raise LongShortError(f"lora.r is {largest}, vLLM's largest is {known[-1]}; lower it, or remove share_engine")
    return next(rank for rank in known if rank >= largest)
