"""An episode as OpenAI's responses and chunks, the thinking apart from the answer; and a dialogue's events as JSON.

In a dialogue of two models every message of the long one, and every message that the short one hands back, is
`reasoning_content`, with a blank line between them. The short model's last message is `content`, whether it closed with
</answer> or was cut off. Only its end tells which of the two a short message is, so a stream sends it when it is
complete. A model alone has nothing but content.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from longshort.dialogue.encoding import RETHINK
from longshort.dialogue.turns import count_hand_backs
from longshort.serving.errors import ApiError
from longshort.serving.requests import StreamOptions
from longshort.team.conversation import Event, Finished, Piece, TurnBegan, TurnEnded
from longshort.types import LONG, ROLES, Episode, Turn

BETWEEN = "\n\n"
DONE = b"data: [DONE]\n\n"
REASONING, CONTENT = "reasoning_content", "content"


def is_thought(turn: Turn, pair: bool) -> bool:
    """Return whether a finished message belongs to the thinking; `pair`: two models speak."""
    return pair and (turn.role == LONG or turn.completion.stop == RETHINK)


def texts(episode: Episode, pair: bool) -> tuple[str, str]:
    """Return (reasoning, content) of a whole episode."""
    thoughts = [turn.completion.text for turn in episode.turns if is_thought(turn, pair)]
    answer = [turn.completion.text for turn in episode.turns if not is_thought(turn, pair)]
    return BETWEEN.join(thoughts), "".join(answer)


class TextStream:
    """Turns one answer's events into (field, text) to send on; joined by field they are `texts` of the episode."""

    def __init__(self, pair: bool):
        self._pair, self._thoughts = pair, 0

    def read(self, event: Event) -> list[tuple[str, str]]:
        match event:
            case Piece(text=text) if not self._pair:
                return [(CONTENT, text)]
            case Piece(role="long", text=text):
                return [(REASONING, text)]
            case TurnBegan(role="long") if self._pair:
                return self._thought("")
            case TurnEnded(turn=turn) if self._pair and turn.role != LONG:
                text = turn.completion.text
                return self._thought(text) if is_thought(turn, True) else [(CONTENT, text)]
        return []

    def _thought(self, text: str) -> list[tuple[str, str]]:
        """Begin a message of the thinking, a blank line after the one before."""
        self._thoughts += 1
        text = BETWEEN + text if self._thoughts > 1 else text
        return [(REASONING, text)] if text else []


def usage(episodes: Sequence[Episode], pair: bool, per_question: int) -> dict[str, Any]:
    """Count the tokens of a request: each question once, as its first speaker reads it, and all that was sampled."""
    turns = [turn for episode in episodes for turn in episode.turns]
    tokens = {role: sum(episode.tokens(role) for episode in episodes) for role in ROLES}
    prompt = sum(len(episode.turns[0].prompt_ids) for episode in episodes[::per_question])
    by_role = {role: {"tokens": tokens[role], "turns": sum(turn.role == role for turn in turns)} for role in ROLES}
    thoughts = sum(len(turn.completion.token_ids) for turn in turns if is_thought(turn, pair))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sum(tokens.values()),
        "total_tokens": prompt + sum(tokens.values()),
        "completion_tokens_details": {"reasoning_tokens": thoughts},
        "longshort": by_role | {"hand_backs": sum(map(count_hand_backs, episodes))},
    }


class Reply:
    """The response to one request, whole or in chunks; all of them carry the same id, time and model.

    It holds `per_question` answers to each of its questions, `count` in all. `chat` chooses the shapes of
    /v1/chat/completions; those of /v1/completions have the thinking beside the `text`.
    """

    def __init__(self, model: str, *, chat: bool, pair: bool, count: int, per_question: int, options: StreamOptions):
        self._chat, self._pair, self._count, self._per_question = chat, pair, count, per_question
        self._options = options
        self._texts = [TextStream(pair) for _ in range(count)]
        self._ends: dict[int, Finished] = {}
        prefix = "chatcmpl-" if chat else "cmpl-"
        self._head = {"id": f"{prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answers: Sequence[Finished]) -> dict[str, Any]:
        choices = []
        for index, end in enumerate(answers):
            reasoning, content = texts(end.episode, self._pair)
            fields = {"role": "assistant", CONTENT: content, REASONING: reasoning or None}
            choices.append(self._choice(index, "message", fields, end))
        kind = "chat.completion" if self._chat else "text_completion"
        return self._head | {"object": kind, "choices": choices, "usage": self._usage(answers)}

    @property
    def complete(self) -> bool:
        """Whether the chunks of every answer's last event have been made."""
        return len(self._ends) == self._count

    def opening(self) -> bytes:
        """Return the chunks before any event."""
        return b"".join(self._delta(index, {"role": "assistant", CONTENT: ""}) for index in range(self._count))

    def chunks(self, index: int, event: Event) -> bytes:
        """Return the chunks that an event of answer `index` makes; none for many."""
        parts = [self._chunk([], longshort=event_json(event))] if self._options.include_dialogue else []
        parts += [self._delta(index, {field: text}) for field, text in self._texts[index].read(event)]
        if isinstance(event, Finished):
            self._ends[index] = event
            parts.append(self._delta(index, {}, event))
        return b"".join(parts)

    def ending(self) -> bytes:
        """Return the usage, if it was asked for, and the mark that ends every stream."""
        answers = [self._ends[index] for index in range(self._count)]
        return (self._chunk([], usage=self._usage(answers)) if self._options.include_usage else b"") + DONE

    def failed(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which an error broke off."""
        return sse(error.body) + DONE

    def _usage(self, answers: Sequence[Finished]) -> dict[str, Any]:
        return usage([end.episode for end in answers], self._pair, self._per_question)

    def _delta(self, index: int, fields: dict[str, Any], end: Finished | None = None) -> bytes:
        return self._chunk([self._choice(index, "delta", fields, end)])

    def _choice(self, index: int, key: str, fields: dict[str, Any], end: Finished | None) -> dict[str, Any]:
        content = {key: fields} if self._chat else {"text": fields.get(CONTENT, "")}
        if REASONING in fields and not self._chat:
            content[REASONING] = fields[REASONING]
        choice = {"index": index, **content, "logprobs": None, "finish_reason": end.finish_reason if end else None}
        return choice | {"longshort": stop_json(end.episode)} if end else choice

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        no_usage = {"usage": None} if self._options.include_usage else {}
        return sse(self._head | {"object": kind, "choices": choices} | no_usage | more)


def stop_json(episode: Episode) -> dict[str, Any]:
    return {"stop": episode.stop, "hand_backs": count_hand_backs(episode)}


def event_json(event: Event) -> dict[str, Any]:
    """Return an event as the terminal, the web page and the endpoint's stream read it.

        {"event": "turn_began", "role": "long", "turn": 0}
        {"event": "piece", "role": "long", "text": "3*4"}
        {"event": "turn_ended", "role": "long", "tokens": 12, "stop": "</think>"}
        {"event": "finished", "stop": "answered", "hand_backs": 0, "text": "12", "finish_reason": "stop"}

    The pieces of a turn concatenate to its text. A turn whose stop is `</rethink>` hands back. If the stop of
    `finished` is `answered`, the last turn is the answer and `text` is its text.
    """
    match event:
        case TurnBegan(role=role, number=number):
            return {"event": "turn_began", "role": role, "turn": number}
        case Piece(role=role, text=text):
            return {"event": "piece", "role": role, "text": text}
        case TurnEnded(turn=Turn(role=role, completion=completion)):
            return {"event": "turn_ended", "role": role, "tokens": len(completion.token_ids), "stop": completion.stop}
        case Finished(episode=episode, text=text, finish_reason=reason):
            return {"event": "finished", **stop_json(episode), "text": text, "finish_reason": reason}


def sse(tree: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
