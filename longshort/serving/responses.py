"""POST /v1/responses, for clients that no longer speak chat completions: text in, reasoning and text out.

Nothing is stored, so a client sends the whole conversation as `input`. The reasoning (replies.py) is one item of the
output, the answer the next. A stream has OpenAI's events:

    response.created, response.in_progress
    response.output_item.added, response.content_part.added                                  for each of the two items,
    response.reasoning_text.delta … or response.output_text.delta …, and the same with done  one after the other
    response.content_part.done, response.output_item.done
    response.completed; response.incomplete after a limit; response.failed after an error
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from reprlib import repr
from typing import Any, ClassVar

from pydantic import field_validator

from longshort.serving.errors import ApiError
from longshort.serving.keys import UNSTORED, WITHOUT_TOOLS
from longshort.serving.replies import CONTENT, REASONING, TextStream, sse, stop_json, texts, usage
from longshort.serving.requests import Message, SampledRequest, Whole, question_of, read_message
from longshort.team.conversation import Event, Finished

ECHO = ("instructions", "max_output_tokens", "temperature", "top_p")
"""Keys of the request that the response repeats."""
REFUSED = dict.fromkeys(("_reference", "compaction"), UNSTORED) | dict.fromkeys(
    ("_call", "_output", "_request", "_response", "_tools"), WITHOUT_TOOLS
)
"""How the types of items end that are refused, and why."""
FIXED = {
    "object": "response",
    "background": False,
    "error": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
}
"""What is the same in every response; clients read these keys without asking whether they are there."""


class ResponseRequest(SampledRequest):
    asked: ClassVar[str] = "input"
    input: list[Message]
    instructions: str = ""
    """Put before the conversation, as a system message is."""
    max_output_tokens: Whole | None = None

    @field_validator("input", mode="plain")
    @classmethod
    def _read(cls, value: Any) -> list[Message]:
        if isinstance(value, str):
            return [Message("user", value)]
        if not isinstance(value, list):
            raise ValueError("Input should be a string or a list of messages")
        return list(_messages(value))

    @property
    def questions(self) -> Sequence[str]:
        rules = [Message("system", self.instructions)] if self.instructions else []
        return [question_of([*rules, *self.input], self.asked)]

    @property
    def limit(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens


def _messages(items: Sequence[Any]) -> Iterator[Message]:
    """Yield the messages of an input. Reasoning, which clients send back with a history, was not said."""
    for index, item in enumerate(items):
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind == "message":
            yield read_message(item, f"input.{index}")
        elif kind != "reasoning":
            why = next((f": {why}" for ending, why in REFUSED.items() if str(kind).endswith(ending)), "")
            message = f"input.{index} is a {repr(kind)}{why}; known: message, reasoning"
            raise ApiError(400, message, param=f"input.{index}.type", code="unsupported_parameter")


class ResponseReply:
    """The response to one request, whole or as a stream of events; see `Reply` in replies.py."""

    def __init__(self, model: str, request: ResponseRequest, *, pair: bool):
        echo = {key: getattr(request, key) for key in ECHO}
        self._head = {"id": _name("resp"), "created_at": int(time.time()), "model": model, **FIXED, **echo}
        self._pair, self._texts = pair, TextStream(pair)
        self._items: list[_Item] = []
        self._events = 0
        self.complete = False

    def whole(self, answers: Sequence[Finished]) -> dict[str, Any]:
        (end,) = answers
        for field, text in zip((REASONING, CONTENT), texts(end.episode, self._pair), strict=True):
            self._write(field, text)
        self._close(end)
        return self._response(end)

    def opening(self) -> bytes:
        """Return the events before any of the dialogue."""
        response = self._head | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        return b"".join(self._event(f"response.{name}", response=response) for name in ("created", "in_progress"))

    def chunks(self, index: int, event: Event) -> bytes:
        """Return the events of the stream that an event of the dialogue makes; none for many."""
        parts = [self._write(field, text) for field, text in self._texts.read(event)]
        if isinstance(event, Finished):
            parts.append(self._close(event))
            response = self._response(event)
            parts.append(self._event(f"response.{response['status']}", response=response))
            self.complete = True
        return b"".join(parts)

    def ending(self) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which an error broke off."""
        reason = {"code": "server_error", "message": str(error)}
        output = [item.json for item in self._items]
        response = self._head | {"status": "failed", "error": reason, "output": output, "usage": None}
        return self._event("response.failed", response=response)

    def _write(self, field: str, text: str) -> bytes:
        """Add to the item of a field, which begins with its first text and ends the one before."""
        if not text:
            return b""
        begun = b""
        if not self._items or self._items[-1].field != field:
            begun = self._end_item("completed") + self._begin(field)
        item = self._items[-1]
        item.text += text
        return begun + self._event(f"{item.kind}.delta", **item.place, delta=text, **item.no_logprobs)

    def _close(self, end: Finished) -> bytes:
        """End the last item. An answer that is empty has an item too."""
        empty = end.finish_reason == "stop" and not any(item.field == CONTENT for item in self._items)
        begun = self._end_item("completed") + self._begin(CONTENT) if empty else b""
        return begun + self._end_item("completed" if end.finish_reason == "stop" else "incomplete")

    def _begin(self, field: str) -> bytes:
        item = _Item(field, len(self._items))
        self._items.append(item)
        added = self._event("response.output_item.added", output_index=item.index, item=item.json | {"content": []})
        return added + self._event("response.content_part.added", **item.place, part=item.part)

    def _end_item(self, status: str) -> bytes:
        if not self._items:
            return b""
        item = self._items[-1]
        item.status = status
        done = self._event(f"{item.kind}.done", **item.place, text=item.text, **item.no_logprobs)
        done += self._event("response.content_part.done", **item.place, part=item.part)
        return done + self._event("response.output_item.done", output_index=item.index, item=item.json)

    def _response(self, end: Finished) -> dict[str, Any]:
        counted, complete = usage([end.episode], self._pair, 1), end.finish_reason == "stop"
        return self._head | {
            "status": "completed" if complete else "incomplete",
            "completed_at": int(time.time()) if complete else None,
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": [item.json for item in self._items],
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},  # required, and not counted here
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": counted["completion_tokens_details"],
                "total_tokens": counted["total_tokens"],
                "longshort": counted["longshort"],
            },
            "longshort": stop_json(end.episode),
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._events += 1
        return f"event: {kind}\n".encode() + sse({"type": kind, "sequence_number": self._events - 1, **fields})


class _Item:
    """An item of the output while it is written: the reasoning, or the message with the answer."""

    def __init__(self, field: str, index: int):
        self.field, self.index, self.text, self.status = field, index, "", "in_progress"
        self._thought = field == REASONING
        self.kind = "response.reasoning_text" if self._thought else "response.output_text"
        self.name = _name("rs" if self._thought else "msg")
        self.place = {"item_id": self.name, "output_index": index, "content_index": 0}
        self.no_logprobs = {} if self._thought else {"logprobs": []}

    @property
    def part(self) -> dict[str, Any]:
        if self._thought:
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    @property
    def json(self) -> dict[str, Any]:
        own = {"type": "reasoning", "summary": []} if self._thought else {"type": "message", "role": "assistant"}
        return {"id": self.name, **own, "status": self.status, "content": [self.part]}


def _name(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
