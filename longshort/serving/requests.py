"""The bodies of /v1/chat/completions and /v1/completions, checked strictly, and the questions in them.

An unknown key is refused, so that a misspelt limit is never silently no limit; what asks for nothing is accepted
(keys.py). Unknown keys of a message are passed over, as OpenAI's server does: they belong to the client's history, and
no part of them reaches a prompt. `null` means not given, at every level.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from longshort.dialogue.rollout import stable_seed
from longshort.serving.errors import ApiError
from longshort.serving.keys import NOT_OFFERED, WITHOUT_TOOLS, asks_for_something, offered
from longshort.team.conversation import ImpossibleQuery, Query, QuestionTooLong

MAX_CHOICES, MAX_STOPS = 64, 16
TALKERS = ("system", "developer", "user", "assistant")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and the key that holds it."""
LEVELS = ("stream_options", "text", "reasoning")
"""Keys that hold an object with keys of its own."""
SETTINGS = ("mode", "max_turns", "long_token_budget", "temperature", "top_p", "top_k", "stop")
"""Fields that go into a Query unchanged."""


def _whole(value: Any) -> Any:
    """Return 100 for 100.0: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
TopK = Annotated[int, BeforeValidator(lambda value: 0 if value == -1 else _whole(value))]
"""vLLM's -1 switches it off, as 0 does."""


class Body(BaseModel):
    """Base of the request models: unknown keys are refused, and no value is converted from another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False
    """Send the tokens of the whole request in a last chunk."""
    include_dialogue: bool = False
    """Ours: send every event of the dialogue in a chunk of its own (`event_json` in replies.py)."""


class SampledRequest(Body):
    """The keys of every endpoint. None means the team's own setting; `Query` checks the values."""

    asked: ClassVar[str]
    """The key that holds what is asked."""
    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: TopK | None = None
    seed: Whole | None = None
    stop: tuple[str, ...] = Field((), max_length=MAX_STOPS)
    stream: bool = False
    mode: str = "pair"
    max_turns: Whole | None = None
    long_token_budget: Whole | None = None

    @property
    def questions(self) -> Sequence[str]:
        raise NotImplementedError

    @property
    def per_question(self) -> int:
        """How many answers each question gets."""
        return 1

    @property
    def limit(self) -> tuple[str, int | None]:
        """The most tokens of the whole episode (both models, all messages), after the name by which it was sent."""
        raise NotImplementedError

    @field_validator("stop", "prompt", mode="before", check_fields=False)
    @classmethod
    def _one_or_several(cls, value: Any, info: ValidationInfo) -> Any:
        if value == "" and info.field_name == "stop":
            return ()
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def queries(self) -> list[Query]:
        """Return one query per answer: those to the first question, then to the next. The first has the seed that was
        sent, the others seeds made from it."""
        seed = random.getrandbits(31) if self.seed is None else self.seed
        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS} | {"max_tokens": self.limit[1]}
        asked = [question for question in self.questions for _ in range(self.per_question)]
        return [
            Query(question=question, seed=stable_seed(seed, index) if index else seed, **settings)
            for index, question in enumerate(asked)
        ]

    def refusal(self, error: ImpossibleQuery) -> ApiError:
        """Return what is wrong with a query under the names that this request has for it."""
        if isinstance(error, QuestionTooLong):
            return ApiError(400, str(error), param=self.asked, code="context_length_exceeded")
        name = {"max_tokens": self.limit[0], "question": self.asked}.get(error.field, error.field)
        return ApiError(400, str(error).replace(error.field, name, 1), param=name, code="invalid_value")


class ChoicesRequest(SampledRequest):
    """The keys of both older endpoints, which give `n` answers to a question."""

    n: Whole = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    """OpenAI's newer name of max_tokens."""
    stream_options: StreamOptions = StreamOptions()

    @property
    def per_question(self) -> int:
        return self.n

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @model_validator(mode="after")
    def _check(self) -> ChoicesRequest:
        older, newer = self.max_tokens, self.max_completion_tokens
        if older is not None and newer is not None and older != newer:
            both = f"max_tokens is {older!r} but max_completion_tokens is {newer!r}; send one of them"
            raise ApiError(400, both, param="max_tokens", code="invalid_value")
        if self.stream_options != StreamOptions() and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.stream_options.include_dialogue and (answers := self.n * len(self.questions)) > 1:
            raise ValueError(f"stream_options.include_dialogue shows one dialogue but {answers} are asked for")
        return self


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation, and who said it."""

    role: str
    text: str


def read_message(item: Any, where: str) -> Message:
    """Return the message at a place of a request; ApiError 400 naming that place."""
    if not isinstance(item, dict):
        message = f'{where}: send {{"role": "user", "content": "…"}}, not {repr(item)}'
        raise ApiError(400, message, param=where, code="invalid_value")
    said = offered(item, ("role", "content", "refusal"), "message", f"{where}.", lenient=True)
    role = said.get("role")
    if role in ("tool", "function"):
        message = f"{where}.role is {role!r}: {WITHOUT_TOOLS}; known there: {', '.join(TALKERS)}"
        raise ApiError(400, message, param=f"{where}.role", code="unsupported_parameter")
    if role not in TALKERS:
        message = f"{where}.role is {repr(role)}; known: {', '.join(TALKERS)}"
        raise ApiError(400, message, param=f"{where}.role", code="invalid_value")
    if "content" not in said and role != "assistant":  # whose answer may be a refusal, or null
        message = f"{where}.content is missing; the message has {', '.join(item)}"
        raise ApiError(400, message, param=f"{where}.content", code="invalid_value")
    text = _text(said.get("content", ""), f"{where}.content") + _text(said.get("refusal", ""), f"{where}.refusal")
    return Message(role, text)


def _text(content: Any, where: str) -> str:
    """Return the text of a message's content: a string, or parts."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else part
        text = part.get(TEXT_PARTS.get(str(kind))) if isinstance(part, dict) else None
        if not isinstance(text, str):
            message = f'{where}: the models read text only: send {{"type": "text", "text": "…"}}, not {repr(kind)}'
            raise ApiError(400, message, param=where, code="invalid_value")
        texts.append(text)
    return "".join(texts)


class ChatRequest(ChoicesRequest):
    asked: ClassVar[str] = "messages"
    messages: list[Message]

    @field_validator("messages", mode="plain")
    @classmethod
    def _read(cls, value: Any) -> list[Message]:
        if not isinstance(value, list):
            raise ValueError("Input should be a list of messages")
        return [read_message(item, f"messages.{index}") for index, item in enumerate(value)]

    @property
    def questions(self) -> Sequence[str]:
        return [question_of(self.messages, self.asked)]


class TextRequest(ChoicesRequest):
    asked: ClassVar[str] = "prompt"
    prompt: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHOICES)

    @field_validator("prompt", mode="before")
    @classmethod
    def _no_token_ids(cls, value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(part, int | list) for part in value):
            message = f"prompt is a list of token ids: {NOT_OFFERED['stop_token_ids']}; send text"
            raise ApiError(400, message, param="prompt", code="unsupported_parameter")
        return value

    @property
    def questions(self) -> Sequence[str]:
        return self.prompt


Request = TypeVar("Request", bound=SampledRequest)


def read_request(kind: type[Request], body: bytes) -> Request:
    """Return the request in a JSON body; ApiError 400 naming the first field at fault."""
    try:
        tree = json.loads(body, object_pairs_hook=_given)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(tree, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(tree).__name__}", code="invalid_json")
    for level in LEVELS:
        if asks_for_something(level, value := tree.get(level)) and not isinstance(value, dict):
            raise ApiError(400, f"{level} must be an object, not {repr(value)}", param=level, code="invalid_value")
        if isinstance(tree.get(level), dict):
            known = StreamOptions.model_fields if level in kind.model_fields else ()
            tree[level] = offered(tree[level], known, level, f"{level}.")
    try:
        return kind.model_validate(offered(tree, kind.model_fields))
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        message = f"{param or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
        raise ApiError(400, message, param=param, code="invalid_value") from None


def _given(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """Return a JSON object without its nulls."""
    return {key: value for key, value in pairs if value is not None}


def question_of(messages: Sequence[Message], where: str) -> str:
    """Return what the pair, which was trained on single questions, reads of a conversation.

    One user message is the question as it stands. A longer conversation is written out as `User: …` and
    `Assistant: …` with blank lines between, and the pair answers its last message, which must be the user's. System
    messages come first, each followed by a blank line.
    """
    talk = [message for message in messages if message.role in ("user", "assistant")]
    if not talk or talk[-1].role != "user":
        message = "the last message must be the user's: it is what the pair answers"
        raise ApiError(400, message, param=where, code="invalid_value")
    rules = [message.text for message in messages if message.role in ("system", "developer")]
    if len(talk) == 1:
        return "\n\n".join([*rules, talk[0].text])
    return "\n\n".join([*rules, *(f"{message.role.capitalize()}: {message.text}" for message in talk)])
