"""vLLM as one policy's sampler: token ids in; ids, processed log-probs and the weight version out. The only module that imports vllm.

One engine per process, stepped in that process (no second vLLM process: half the latency on small models). Works on 0.26 to 0.31:
options that only some versions have are probed by feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longshort.backends.weight_sync import check_weights, expected_weights
from longshort.sections import EngineConfig
from longshort.types import Completion, LongShortError, Sampling


def environment(config: EngineConfig, threads: int = 1) -> dict[str, str]:
    """The process environment a vLLM engine needs; it must be set before vllm is imported (measured: docs/operations.md)."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the default binds every engine of the machine to the same core
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


class VllmCore:
    """A steppable engine: `add` requests, `step` until they finish, `load_weights` between any two steps."""

    name = "vllm"

    def __init__(self, model: str, config: EngineConfig, seed: int = 0):
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        known = {field.name for field in dataclasses.fields(EngineArgs)}
        if unknown := set(config.extra) - known:
            raise LongShortError(f"engine.extra: vLLM's EngineArgs has no {', '.join(sorted(unknown))}")
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
            # A seeded request that is prefilled in two parts kills a CPU engine: vLLM rewinds its generator, which torch cannot on a CPU.
            enable_chunked_prefill=bool(config.num_gpus),
            seed=seed,
            generation_config="vllm",  # sampling defaults of the model's folder must not override the recipe's
        )
        self._engine = LLMEngine.from_engine_args(EngineArgs(**options | dict(config.extra)))
        self._tokenizer = self._engine.get_tokenizer()
        self.context, self.version = config.max_model_len, 0
        self._expected = expected_weights(model)
        self._sampling: dict[str, Sampling] = {}
        self._updates: dict[str, list[int]] = {}
        self.cached_tokens = self.prompt_tokens = self.decoded = 0

    @property
    def busy(self) -> bool:
        return self._engine.has_unfinished_requests()

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        strings = list(sampling.stop[len(sampling.stop_token_ids) :])
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
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt_ids)}, params)
        self._sampling[request_id], self._updates[request_id] = sampling, []

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))
        for request_id in request_ids:
            self._sampling.pop(request_id, None)
            self._updates.pop(request_id, None)

    def step(self) -> list[tuple[str, Completion]]:
        """Decode one token for every running request; returns those that finished."""
        finished = [(output.request_id, self._completion(output)) for output in self._engine.step() if output.finished]
        self.decoded += 1
        return finished

    def written(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The running requests, each with its ids so far."""
        for state in self._engine.output_processor.request_states.values():  # vLLM tells of a request only when it is finished
            yield state.external_req_id, state.detokenizer.output_token_ids

    def _completion(self, output) -> Completion:
        sampling, updates, answer = self._sampling.pop(output.request_id), self._updates.pop(output.request_id), output.outputs[0]
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0
        ids = tuple(answer.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True))
        if answer.finish_reason == "stop" and answer.stop_reason in sampling.stop_token_ids:
            stop, text = sampling.stop[sampling.stop_token_ids.index(answer.stop_reason)], self._decode(ids[:-1])
        elif answer.finish_reason == "stop" and answer.stop_reason is not None:
            stop, text = answer.stop_reason, answer.text
        elif answer.finish_reason == "stop":
            stop, text = "eos", self._decode(ids[:-1])
        else:
            stop, text = answer.finish_reason, self._decode(ids)
        began = self.version - len(updates)
        return Completion(token_ids=ids, logprobs=logprobs, text=text, stop=stop, version=began, updates=tuple(updates))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Replace the weights in place and forget every key and value made by the old ones; nothing is touched if they are refused.

        Requests under way keep their tokens and go on: vLLM takes their blocks away and reads their ids again with the new weights.
        """
        check_weights(weights, self._expected)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        # Without `reset_running_requests` a reset is refused while anything runs, and new requests would hit blocks of the old weights.
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM refused to reset its prefix cache after a weight update")
        for request_id, ids in self.written():
            if ids:
                self._updates[request_id] += [len(ids)] * (version - self.version)
        self.version = version
