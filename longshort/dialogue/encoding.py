"""How text becomes token ids: text is data to the last token, control tokens come from templates and tags only."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from longshort.types import LongShortError

THINK, END_THINK, ANSWER, END_ANSWER, RETHINK = "<think>", "</think>", "<answer>", "</answer>", "</rethink>"
ROLE_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, RETHINK)


def encode_plain(tokenizer, text: str) -> tuple[int, ...]:
    """Encode `text` as data: a special-token string in it becomes ordinary characters, never control."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else ()


def encode_problem(tokenizer, instructions: str, question: str) -> tuple[int, ...]:
    """The prompt before the first turn: the chat template's own tokens as control, the instructions and the question as data."""
    content = f"{instructions}\n\n{question}" if instructions else question
    before, after = _frame(tokenizer, str(tokenizer.chat_template))
    return before + encode_plain(tokenizer, content) + after


@functools.lru_cache(maxsize=16)
def _frame(tokenizer, template: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after every question. Kept, since rendering a template takes longer than encoding a short question."""
    if not tokenizer.chat_template:
        return (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), ()
    slot = "QUESTIONxSLOT"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": slot}], add_generation_prompt=True, tokenize=False
    )
    before, found, after = rendered.partition(slot)
    if not found or slot in after:
        raise LongShortError(
            f"the chat template of {tokenizer.name_or_path!r} must contain the user's message exactly once"
        )
    encode_control = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()  # noqa: E731
    return encode_control(before), encode_control(after)


def special_ids(tokenizer, tags: Sequence[str]) -> Mapping[str, int]:
    """The single id of each role tag, for `tags: special`; raises LongShortError naming the tags this tokenizer lacks."""
    return _special_ids(tokenizer, tuple(tags))


@functools.lru_cache(maxsize=64)
def _special_ids(tokenizer, tags: tuple[str, ...]) -> Mapping[str, int]:
    vocabulary = tokenizer.get_added_vocab()  # which takes longer than all else in a turn
    missing = [tag for tag in tags if tag not in vocabulary]
    if missing:
        raise LongShortError(
            f"protocol.tags is 'special' but the tokenizer of {tokenizer.name_or_path!r} has no special token for {', '.join(missing)}; "
            "add them (tokenizer.add_special_tokens, then resize the embeddings) or set protocol.tags: text"
        )
    return MappingProxyType({tag: vocabulary[tag] for tag in tags})


def encode_tag(tokenizer, tag: str, tags: str) -> tuple[int, ...]:
    """A role tag in the tokenizer's ids, as `protocol.tags` says: one special token, or plain text."""
    return (special_ids(tokenizer, (tag,))[tag],) if tags == "special" else encode_plain(tokenizer, tag)
