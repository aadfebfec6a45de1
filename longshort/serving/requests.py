"""The bodies of /v1/chat/completions and /v1/completions, checked strictly, and the questions in them.

An unknown key is refused, so that a misspelt limit is never silently no limit. A key of OpenAI's that this server does
not offer is accepted if its value asks for nothing, and otherwise refused with the reason. `null` means not given.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longshort.dialogue.rollout import stable_seed
from longshort.serving.errors import ApiError
from longshort.team.conversation import Query

MAX_CHOICES, MAX_STOPS = 64, 16
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "parallel_tool_calls", "store"}
"""Keys that say something about the request and ask nothing of the answer."""
WITHOUT_TOOLS = "the pair was trained without tools"
WITHOUT_LOGPROBS = "log-probs of an answer that two models wrote are not offered"
WITHOUT_PENALTIES = "sampling is as in training, without penalties"
NOT_OFFERED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), WITHOUT_TOOLS),
    "tool_choice": (("none", "auto"), WITHOUT_TOOLS),
    "functions": (([],), WITHOUT_TOOLS),
    "function_call": (("none", "auto"), WITHOUT_TOOLS),
    "logprobs": ((False,), WITHOUT_LOGPROBS),
    "top_logprobs": ((0,), WITHOUT_LOGPROBS),
    "response_format": (({"type": "text"},), "answers are free text"),
    "logit_bias": (({},), "two models have two vocabularies, so a token id means nothing here"),
    "presence_penalty": ((0,), WITHOUT_PENALTIES),
    "frequency_penalty": ((0,), WITHOUT_PENALTIES),
    "reasoning_effort": ((), "limit the thinking with max_turns or long_token_budget"),
    "verbosity": ((), "limit the answer with max_tokens"),
    "modalities": ((["text"],), "the models read and write text only"),
    "audio": ((), "the models read and write text only"),
    "prediction": ((), "there is no speculative decoding"),
    "web_search_options": ((), WITHOUT_TOOLS),
    "echo": ((False,), "an answer is returned without its question"),
    "suffix": (("",), "the pair answers questions and fills no gaps"),
    "best_of": ((1,), "nothing ranks the answers; ask for n and choose"),
}
"""Key -> (values that ask for nothing, why any other value is refused)."""
HISTORY_KEYS = {"name", "refusal", "annotations", "reasoning", "reasoning_content"}
"""Keys of a message that are not part of what was said."""
SETTINGS = ("mode", "max_turns", "max_tokens", "long_token_budget", "temperature", "top_p", "top_k", "stop")
"""Fields that go into a Query unchanged."""


class Body(BaseModel):
    """Base of the request models: unknown keys are refused, and no value is converted from another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False
    """Send the tokens of the whole request in a last chunk."""
    include_dialogue: bool = False
    """Ours: send every event of the dialogue in a chunk of its own (`event_json` in replies.py)."""


class SampledRequest(Body):
    """The keys of both endpoints. None means the team's own setting; `Query` checks the values."""

    model: str = ""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = None
    """For the whole episode: both models, all messages."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = Field((), max_length=MAX_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    mode: str = "pair"
    max_turns: int | None = None
    long_token_budget: int | None = None

    @property
    def questions(self) -> Sequence[str]:
        raise NotImplementedError

    @field_validator("stop", "prompt", mode="before", check_fields=False)
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_stream(self) -> SampledRequest:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.stream_options.include_dialogue and self.answers > 1:
            raise ValueError(f"stream_options.include_dialogue shows one dialogue but {self.answers} are asked for")
        return self

    @property
    def answers(self) -> int:
        """How many answers are asked for."""
        return self.n * len(self.questions)

    def queries(self) -> list[Query]:
        """Return one query per answer: `n` of the first question, then `n` of the next. The first has the seed that was
        sent, the others seeds made from it."""
        seed = random.getrandbits(31) if self.seed is None else self.seed
        seeds = [stable_seed(seed, index) if index else seed for index in range(self.answers)]
        settings = {name: getattr(self, name) for name in SETTINGS}
        return [
            Query(question=self.questions[index // self.n], seed=each, **settings) for index, each in enumerate(seeds)
        ]


class Message(Body):
    """A message of a conversation. Keys that clients send back with a history (HISTORY_KEYS, or null) are ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_history(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None and key not in HISTORY_KEYS}

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        """Return the text; that of all parts if the content is a list, "" if it is null."""
        if not isinstance(content, list):
            return "" if content is None else content
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type", part) if isinstance(part, dict) else part
                raise ValueError(f'the models read text only: send {{"type": "text", "text": "…"}}, not {kind!r}')
        return "".join(part["text"] for part in content)


class ChatRequest(SampledRequest):
    messages: list[Message] = Field(min_length=1)

    @property
    def questions(self) -> Sequence[str]:
        return [question_of(self.messages)]


class TextRequest(SampledRequest):
    prompt: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHOICES)

    @property
    def questions(self) -> Sequence[str]:
        return self.prompt


Request = TypeVar("Request", bound=SampledRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """Return the request in a JSON body; ApiError 400 naming the first field at fault."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(tree, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(tree).__name__}", code="invalid_json")
    tree = {key: value for key, value in tree.items() if value is not None and key not in IGNORED}
    for key in tree.keys() & NOT_OFFERED.keys():
        nothing, why = NOT_OFFERED[key]
        if tree.pop(key) not in nothing:
            raise ApiError(400, f"{key} is not offered: {why}", param=key, code="unsupported_parameter")
    newer = tree.pop("max_completion_tokens", None)  # OpenAI's newer name of max_tokens
    if newer is not None and (older := tree.setdefault("max_tokens", newer)) != newer:
        both = f"max_tokens is {older!r} but max_completion_tokens is {newer!r}; send one of them"
        raise ApiError(400, both, param="max_tokens", code="invalid_value")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refusal(error: ValidationError, kind: type[SampledRequest]) -> ApiError:
    """Return the first mistake of a request body, naming the field."""
    first = error.errors()[0]
    param = ".".join(map(str, first["loc"])) or None
    if first["type"] == "extra_forbidden":
        known = f"unknown parameter {param!r}; known: {', '.join(kind.model_fields)}"
        return ApiError(400, known, param=param, code="unknown_parameter")
    message = f"{param or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return ApiError(400, message, param=param, code="invalid_value")


def question_of(messages: Sequence[Message]) -> str:
    """Return what the pair, which was trained on single questions, reads of a conversation.

    One user message is the question as it stands. A longer conversation is written out as `User: …` and
    `Assistant: …` with blank lines between, and the pair answers its last message, which must be the user's. System
    messages come first, each followed by a blank line.
    """
    talk = [message for message in messages if message.role in ("user", "assistant")]
    if not talk or talk[-1].role != "user":
        message = "the last message must be the user's: it is what the pair answers"
        raise ApiError(400, message, param="messages", code="invalid_value")
    rules = [message.content for message in messages if message not in talk]
    if len(talk) == 1:
        return "\n\n".join([*rules, talk[0].content])
    return "\n\n".join([*rules, *(f"{message.role.capitalize()}: {message.content}" for message in talk)])
