"""What callers may ask: the bodies of /v1/chat/completions and /v1/completions, checked strictly, and the question they come to.

Unknown keys are refused, so that a misspelt limit is never silently no limit. Keys of OpenAI's that this server cannot serve are accepted
where their value asks for nothing, and refused with the reason where it asks for something. `null` means the key was left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longshort.dialogue.rollout import stable_seed
from longshort.serving.http_errors import ApiError, impossible, refused
from longshort.team.conversation import Ask, ImpossibleAsk

MAX_CHOICES, MAX_STOPS = 64, 16
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "parallel_tool_calls", "store"}
"""Said about a request, not asked of the answer."""
WITHOUT_TOOLS = "the pair was trained without tools"
NOT_OFFERED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), WITHOUT_TOOLS),
    "tool_choice": (("none", "auto"), WITHOUT_TOOLS),
    "functions": (([],), WITHOUT_TOOLS),
    "function_call": (("none", "auto"), WITHOUT_TOOLS),
    "logprobs": ((False,), "log-probs of an answer that two models wrote are not offered"),
    "top_logprobs": ((0,), "log-probs of an answer that two models wrote are not offered"),
    "response_format": (({"type": "text"},), "answers are free text"),
    "logit_bias": (({},), "two models have two vocabularies, so a token id means nothing here"),
    "presence_penalty": ((0,), "sampling is as in training, without penalties"),
    "frequency_penalty": ((0,), "sampling is as in training, without penalties"),
    "reasoning_effort": ((), "bound the thinking with max_turns or long_token_budget"),
    "verbosity": ((), "bound the answer with max_tokens"),
    "modalities": ((["text"],), "only text is read and written"),
    "audio": ((), "only text is read and written"),
    "prediction": ((), "there is no speculative decoding"),
    "web_search_options": ((), WITHOUT_TOOLS),
    "echo": ((False,), "an answer is returned without its question"),
    "suffix": (("",), "the pair answers questions, it fills no gaps"),
    "best_of": ((1,), "nothing ranks the answers; ask for n and choose"),
}
"""Key -> (values that ask for nothing, why it is refused otherwise)."""
OURS = ("mode", "max_turns", "long_token_budget", "temperature", "top_p", "top_k", "stop")
"""Settings that an ask takes as they are."""
UNSAID = {"name", "refusal", "annotations", "reasoning", "reasoning_content"}
"""Keys of a message that clients send back with a history, and that are not part of what was said."""


class Body(BaseModel):
    """Unknown keys are refused, and no value is taken for another type's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False
    """A last chunk with the tokens of the whole request."""
    include_dialogue: bool = False
    """Ours: every event of the dialogue as a chunk of its own (longshort/serving/wire.py); with n = 1 only."""


class Sampled(Body):
    """What both endpoints share. None means the team's own setting; which values are possible is for `Ask` to say."""

    model: str = ""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = None
    """Of the whole episode: both models, all messages."""
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

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop

    @model_validator(mode="after")
    def _streamed(self) -> Sampled:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options is for stream: true")
        if self.stream_options.include_dialogue and self.n > 1:
            raise ValueError(f"stream_options.include_dialogue tells one dialogue but n is {self.n}")
        return self

    def asks(self) -> list[Ask]:
        """One per answer: `n` of the first question, `n` of the next. The first has the seed sent, the others seeds made from it."""
        seed = random.getrandbits(31) if self.seed is None else self.seed
        settings = {name: getattr(self, name) for name in OURS} | {"max_tokens": self.limit}
        questions = [question for question in self.questions for _ in range(self.n)]
        try:
            return [
                Ask(question=question, seed=stable_seed(seed, index) if index else seed, **settings)
                for index, question in enumerate(questions)
            ]
        except ImpossibleAsk as error:
            raise impossible(error) from None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Any = ""

    @field_validator("content")
    @classmethod
    def _text(cls, content: Any) -> str:
        """The text, or that of all text parts."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise ValueError(f"a string or a list of text parts, not {type(content).__name__}")
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type", part) if isinstance(part, dict) else part
                raise ValueError(
                    f'parts must be {{"type": "text", "text": "…"}}, got {kind!r}; the models read text only'
                )
        return "".join(part["text"] for part in content)


class ChatRequest(Sampled):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    """OpenAI's newer name of `max_tokens`."""

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens} but max_completion_tokens is {self.max_completion_tokens}; send one of them"
            )
        return self

    @property
    def questions(self) -> list[str]:
        return [question_of(self.messages)]

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class TextRequest(Sampled):
    prompt: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHOICES)

    @field_validator("prompt", mode="before")
    @classmethod
    def _text(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(not isinstance(one, str) for one in prompt):
            raise ValueError("token ids are not taken, since the two models may have two vocabularies; send text")
        return (prompt,) if isinstance(prompt, str) else tuple(prompt) if isinstance(prompt, list) else prompt

    @model_validator(mode="after")
    def _one_dialogue(self) -> TextRequest:
        if self.stream_options.include_dialogue and len(self.prompt) > 1:
            raise ValueError(
                f"stream_options.include_dialogue tells one dialogue but there are {len(self.prompt)} prompts"
            )
        return self

    @property
    def questions(self) -> list[str]:
        return list(self.prompt)

    @property
    def limit(self) -> int | None:
        return self.max_tokens


Request = TypeVar("Request", ChatRequest, TextRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """The request in a JSON body; ApiError 400 naming the first field at fault."""
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
    if isinstance(tree.get("messages"), list):
        tree["messages"] = [_said(message) for message in tree["messages"]]
    try:
        asked = kind.model_validate(tree)
    except ValidationError as error:
        raise refused(error, kind.model_fields) from None
    for question in asked.questions:
        _check_text(question)
    return asked


def _said(message: Any) -> Any:
    """A message without what is null and what is not part of what was said."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if key not in UNSAID and value not in (None, [])}


def _check_text(question: str) -> None:
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ApiError(
            400, "the question holds half a surrogate pair, which is no text", code="invalid_value"
        ) from None


def question_of(messages: Sequence[Message]) -> str:
    """What the pair, which was trained on single questions, reads for a conversation.

    One user message is the question as it stands. System messages stand before it, a blank line between. A longer conversation is written
    out, `User: …` and `Assistant: …`, a blank line between, and the pair answers the last message, which must be the user's.
    """
    talk = [message for message in messages if message.role in ("user", "assistant")]
    if not talk or talk[-1].role != "user":
        raise ApiError(
            400,
            "the last message must be the user's: it is what the pair answers",
            param="messages",
            code="invalid_value",
        )
    rules = [message.content for message in messages if message.role not in ("user", "assistant")]
    said = (
        [talk[0].content] if len(talk) == 1 else [f"{message.role.capitalize()}: {message.content}" for message in talk]
    )
    return "\n\n".join([*rules, *said])
