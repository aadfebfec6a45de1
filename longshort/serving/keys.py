"""The keys of OpenAI's and vLLM's requests: which ask for nothing, and why the others are refused.

One rule for every level: a key that is offered is read, a key that asks for nothing is passed over, a key that says
something about the request is passed over too, and any other is refused, with the reason if it is known. `null`,
which means not given, has gone before (`read_request`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from longshort.serving.errors import ApiError

ABOUT_THE_REQUEST = {
    *("user", "metadata", "safety_identifier", "store", "service_tier", "request_id", "session_id", "priority"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls", "max_tool_calls"),
}
"""Keys that say something about the request and ask nothing of the answer."""
WITHOUT_TOOLS = "this server runs no tools, and the pair was trained without tools"
UNSTORED = "nothing is stored here; send the whole conversation"
_REASONS: Mapping[str, str] = {
    WITHOUT_TOOLS: "tools tool_choice functions function_call web_search_options message.tool_calls "
    "message.function_call",
    UNSTORED: "previous_response_id conversation prompt previous_input_messages",
    "log-probs of an answer that two models wrote are not offered": "logprobs top_logprobs prompt_logprobs "
    "logprob_token_ids return_tokens_as_token_ids",
    "sampling is as in training, without penalties": "presence_penalty frequency_penalty repetition_penalty "
    "length_penalty repetition_detection",
    "sampling is as in training: temperature, top_p and top_k": "min_p use_beam_search watermarking",
    "nothing ranks the answers; ask for n and choose": "best_of",
    "this endpoint gives one answer; ask again, or ask /v1/chat/completions": "n",
    "two models have two vocabularies, so a token id means nothing here": "logit_bias allowed_token_ids stop_token_ids "
    "return_token_ids return_token_offsets",
    "answers are free text": "response_format text.format structured_outputs guided_json guided_regex guided_choice "
    "guided_grammar bad_words skip_special_tokens spaces_between_special_tokens",
    "the models read and write text only": "modalities audio message.audio image media_io_kwargs mm_processor_kwargs "
    "prompt_embeds",
    "the pair's protocol writes the prompts": "chat_template chat_template_kwargs documents add_generation_prompt "
    "add_special_tokens continue_final_message return_prompt_text",
    "an answer is returned without its question": "echo",
    "the pair answers questions and fills no gaps": "suffix",
    "a question that does not fit is refused, never cut": "truncation truncate_prompt_tokens truncation_side "
    "context_management",
    "limit the thinking with max_turns or long_token_budget": "reasoning_effort reasoning.effort reasoning.mode "
    "thinking_token_budget",
    "limit the answer with max_tokens": "verbosity text.verbosity",
    "the reasoning is sent as it was written, beside the answer": "include_reasoning reasoning.summary "
    "reasoning.generate_summary reasoning.context",
    "an answer ends by the protocol, at a limit or at a string in stop": "min_tokens ignore_eos "
    "include_stop_str_in_output",
    "the answer holds reasoning, text and usage, and nothing beside": "include moderation routed_experts_prompt_start "
    "enable_response_messages",
    "chunks are sent as they come, unpadded, and the usage once, in the last": "stream_interval "
    "stream_options.include_obfuscation stream_options.continuous_usage_stats",
    "the server answers while the client waits": "background",
    "there is no speculative decoding": "prediction",
    "it belongs to another server": "access_programs cache_salt kv_transfer_params ec_transfer_params vllm_xargs",
}
NOT_OFFERED = {key: why for why, keys in _REASONS.items() for key in keys.split()}
"""Key, behind its level, -> why it is refused if it asks for something."""
_OFF = (False, 0)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),  # of a text completion, 0 asks for the sampled tokens' own
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "best_of": (1,),
    "n": (1,),
    "stream_interval": (1,),
    "thinking_token_budget": (-1,),
    "watermarking": (True, False),
    "response_format": ({"type": "text"},),
    "text.format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),
    "reasoning.effort": ("medium",),
    "reasoning.mode": ("standard",),
    "reasoning.context": ("auto",),
    "verbosity": ("medium",),
    "text.verbosity": ("medium",),
    "truncation": ("disabled",),
    "include_reasoning": (True,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
}
"""What asks for nothing where that is not false or 0: the default of OpenAI or vLLM, or no change to the sampling."""
EMPTY: tuple[Any, ...] = ("", [], {})
SWITCHED_ON_BY_AN_OBJECT = frozenset({"web_search_options"})
"""Keys whose empty object asks for the defaults."""


def asks_for_something(key: str, value: Any) -> bool:
    """Return whether a value of a key that is not offered asks for anything."""
    if value is None or value in EMPTY:
        return value == {} and key in SWITCHED_ON_BY_AN_OBJECT
    neutral = NEUTRAL.get(key, _OFF if key in NOT_OFFERED else ())
    return not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def offered(
    tree: Mapping[str, Any], known: Collection[str], level: str = "", where: str = "", *, lenient: bool = False
) -> dict[str, Any]:
    """Return the known keys of an object; ApiError 400 for one that asks for what is not offered, or is unknown.

    `level` is the kind of object ("stream_options"), `where` its place in the request ("messages.1."). `lenient`:
    unknown keys are passed over.
    """
    prefix = f"{level}." if level else ""
    for key, value in tree.items():
        name, param = f"{prefix}{key}", f"{where}{key}"
        if key in known or name in ABOUT_THE_REQUEST or not asks_for_something(name, value):
            continue
        if name in NOT_OFFERED:
            there = f"; known there: {', '.join(known)}" if level and known else ""
            message = f"{param} is not offered: {NOT_OFFERED[name]}{there}"
            raise ApiError(400, message, param=param, code="unsupported_parameter")
        if not lenient:
            beside = [each.removeprefix(prefix) for each in NOT_OFFERED if level and each.startswith(prefix)]
            message = f"unknown parameter {param!r}; known{' there' if level else ''}: {', '.join([*known, *beside])}"
            raise ApiError(400, message, param=param, code="unknown_parameter")
    return {key: value for key, value in tree.items() if key in known}
