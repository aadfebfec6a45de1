"""What a dialogue's events look like to who shows them: plain JSON, the same for the terminal, the web page and the endpoint's stream.

    {"event": "turn_began", "role": "long", "turn": 0}
    {"event": "piece", "role": "long", "text": "3*4"}
    {"event": "turn_ended", "role": "long", "tokens": 12, "stop": "</think>"}
    {"event": "finished", "stop": "answered", "text": "12", "finish_reason": "stop", "hand_backs": 0}

The pieces of a turn concatenate to its text. A turn whose stop is `</rethink>` hands back. Where the stop of `finished` is `answered`,
the last turn is the answer, and `text` is its text.
"""

from __future__ import annotations

from typing import Any

from longshort.dialogue.encoding import RETHINK
from longshort.team.conversation import Event, Piece, TurnBegan, TurnEnded


def told(event: Event) -> dict[str, Any]:
    """The event as JSON."""
    match event:
        case TurnBegan(role=role, number=number):
            return {"event": "turn_began", "role": role, "turn": number}
        case Piece(role=role, text=text):
            return {"event": "piece", "role": role, "text": text}
        case TurnEnded(turn=turn):
            completion = turn.completion
            return {
                "event": "turn_ended",
                "role": turn.role,
                "tokens": len(completion.token_ids),
                "stop": completion.stop,
            }
    hand_backs = sum(turn.completion.stop == RETHINK for turn in event.episode.turns)
    return {
        "event": "finished",
        "stop": event.episode.stop,
        "text": event.text,
        "finish_reason": event.finish_reason,
        "hand_backs": hand_backs,
    }
