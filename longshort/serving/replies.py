"""What callers get: an episode as OpenAI's responses and chunks, the thinking apart from the answer.

In a dialogue of two the long model's messages and every message that the short one hands back are `reasoning_content`, joined by blank
lines; what the short model wrote last, whether it closed with </answer> or was cut off, is `content`. How a short message ends is known
only when it has ended, so a stream holds it back until then. A model alone has nothing but content.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from longshort.dialogue.encoding import RETHINK
from longshort.team.conversation import Finished, Piece, TurnEnded
from longshort.types import LONG, ROLES, Episode, Turn

BETWEEN = "\n\n"
DONE = b"data: [DONE]\n\n"
REASONING, CONTENT = "reasoning_content", "content"


def is_thought(turn: Turn, together: bool) -> bool:
    """Whether a finished message belongs to the thinking; `together`: two models speak."""
    return together and (turn.role == LONG or turn.completion.stop == RETHINK)


def texts(episode: Episode, together: bool) -> tuple[str, str]:
    """(reasoning, content) of a whole episode."""
    thoughts = [turn.completion.text for turn in episode.turns if is_thought(turn, together)]
    answer = [turn.completion.text for turn in episode.turns if not is_thought(turn, together)]
    return BETWEEN.join(thoughts), "".join(answer)


class Telling:
    """One answer's events as (field, text) to send on; joined by field they are `texts` of the episode."""

    def __init__(self, together: bool):
        self._together, self._thoughts, self._begun = together, 0, False

    def told(self, event: Any) -> Iterator[tuple[str, str]]:
        if isinstance(event, Piece) and not (self._together and event.role != LONG):
            yield self._thinking(event.text) if self._together else (CONTENT, event.text)
        if isinstance(event, TurnEnded):
            if self._together and event.turn.role != LONG:
                text = event.turn.completion.text
                yield self._thinking(text) if is_thought(event.turn, True) else (CONTENT, text)
            elif self._together and not self._begun:  # a message without a single piece still counts as one
                yield self._thinking("")
            self._begun = False

    def _thinking(self, text: str) -> tuple[str, str]:
        if not self._begun:
            self._begun, self._thoughts = True, self._thoughts + 1
            text = (BETWEEN if self._thoughts > 1 else "") + text
        return REASONING, text


def usage(episodes: Sequence[Episode], together: bool, per_question: int) -> dict[str, Any]:
    """Tokens of a request: of each question as its first speaker reads it (once, however many answers), and all that was sampled."""
    questions = [episode.turns[0].prompt_ids for episode in episodes[::per_question]]
    thoughts = sum(
        len(turn.completion.token_ids) for one in episodes for turn in one.turns if is_thought(turn, together)
    )
    sampled = {role: sum(episode.tokens(role) for episode in episodes) for role in ROLES}
    prompt, completion = sum(map(len, questions)), sum(sampled.values())
    turns = {role: sum(turn.role == role for episode in episodes for turn in episode.turns) for role in ROLES}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": thoughts},
        "longshort": {role: {"tokens": sampled[role], "turns": turns[role]} for role in ROLES}
        | {"hand_backs": hand_backs(episodes)},
    }


def hand_backs(episodes: Sequence[Episode]) -> int:
    return sum(turn.completion.stop == RETHINK for episode in episodes for turn in episode.turns)


def details(finished: Finished) -> dict[str, Any]:
    """Ours, beside `finish_reason`: the protocol's own reason to stop."""
    return {"stop": finished.episode.stop, "hand_backs": hand_backs([finished.episode])}


class Chat:
    """The shapes of /v1/chat/completions."""

    prefix, whole, piece = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    @staticmethod
    def choice(reasoning: str, content: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": content, REASONING: reasoning or None}}

    @staticmethod
    def opening() -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    @staticmethod
    def delta(field: str, text: str) -> dict[str, Any]:
        return {"delta": {field: text}}

    @staticmethod
    def closing() -> dict[str, Any]:
        return {"delta": {}}


class Text:
    """The shapes of /v1/completions: `text` is the answer, and the thinking stands beside it."""

    prefix, whole, piece = "cmpl-", "text_completion", "text_completion"

    @staticmethod
    def choice(reasoning: str, content: str) -> dict[str, Any]:
        return {"text": content, REASONING: reasoning or None}

    @staticmethod
    def opening() -> dict[str, Any]:
        return {"text": ""}

    @staticmethod
    def delta(field: str, text: str) -> dict[str, Any]:
        return {"text": text} if field == CONTENT else {"text": "", REASONING: text}

    @staticmethod
    def closing() -> dict[str, Any]:
        return {"text": ""}


class Reply:
    """The response to one request, whole or in chunks; all of them carry the same id, time and model."""

    def __init__(
        self, shape: type[Chat] | type[Text], model: str, *, together: bool, per_question: int, include_usage: bool
    ):
        self._shape, self._together, self._per_question, self._include_usage = (
            shape,
            together,
            per_question,
            include_usage,
        )
        self._head = {"id": f"{shape.prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def complete(self, finished: Sequence[Finished]) -> dict[str, Any]:
        choices = [
            self._choice(index, self._shape.choice(*texts(one.episode, self._together)), one.finish_reason)
            | {"longshort": details(one)}
            for index, one in enumerate(finished)
        ]
        return self._head | {"object": self._shape.whole, "choices": choices, "usage": self._usage(finished)}

    def opening(self, index: int) -> bytes:
        return self._chunk([self._choice(index, self._shape.opening())])

    def delta(self, index: int, field: str, text: str) -> bytes:
        return self._chunk([self._choice(index, self._shape.delta(field, text))])

    def closing(self, index: int, finished: Finished) -> bytes:
        return self._chunk(
            [self._choice(index, self._shape.closing(), finished.finish_reason) | {"longshort": details(finished)}]
        )

    def dialogue(self, event: dict[str, Any]) -> bytes:
        """An event of the dialogue for callers that asked for it; others never see this chunk."""
        return self._chunk([], longshort=event)

    def ending(self, finished: Sequence[Finished]) -> bytes:
        """The usage, if it was asked for, and the mark that ends every stream."""
        return (self._chunk([], usage=self._usage(finished)) if self._include_usage else b"") + DONE

    def _usage(self, finished: Sequence[Finished]) -> dict[str, Any]:
        return usage([one.episode for one in finished], self._together, self._per_question)

    @staticmethod
    def _choice(index: int, content: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        unasked = {"usage": None} if self._include_usage else {}
        return sse(self._head | {"object": self._shape.piece, "choices": choices} | unasked | more)


def sse(tree: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
