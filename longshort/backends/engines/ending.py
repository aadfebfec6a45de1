"""How a turn ended and what its text is: the same on every engine, from the ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longshort.dialogue.plain_text import decode_plain
from longshort.types import Sampling


def strings_of(sampling: Sampling) -> tuple[str, ...]:
    """Return the stop strings that are searched for in the text: the first stops may be single tokens."""
    return sampling.stop[len(sampling.stop_token_ids) :]


def ending(tokenizer: Any, ids: Sequence[int], sampling: Sampling, reason: str) -> tuple[str, str]:
    """Return a turn's stop and its text without what ended it.

    `reason` is why the engine stopped; "eos" for any of the model's end tokens. A stop token or string goes before.
    """
    if ids and ids[-1] in sampling.stop_token_ids:
        return sampling.stop[sampling.stop_token_ids.index(ids[-1])], decode_plain(tokenizer, ids[:-1])
    if reason == "eos":
        return reason, decode_plain(tokenizer, ids[:-1])
    text = decode_plain(tokenizer, ids)
    # The string that is complete first, as if the text had come letter by letter.
    complete = [(text.find(stop) + len(stop), n, stop) for n, stop in enumerate(strings_of(sampling)) if stop in text]
    if not complete:
        return reason, text
    end, _, stop = min(complete)
    return stop, text[: end - len(stop)]
