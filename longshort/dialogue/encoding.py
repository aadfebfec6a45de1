"""Turn text into token ids. Text is always data; only chat templates and role tags make control tokens."""

from __future__ import annotations

import functools

from longshort.types import LongShortError

THINK, END_THINK, ANSWER, END_ANSWER, RETHINK = "<think>", "</think>", "<answer>", "</answer>", "</rethink>"
ROLE_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, RETHINK)


def encode_plain(tokenizer, text: str) -> tuple[int, ...]:
    """Encode `text` as data: the name of a special token in it becomes ordinary characters."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else ()


def encode_problem(tokenizer, instructions: str, question: str) -> tuple[int, ...]:
    """Encode the prompt before the first turn: the chat template as control, instructions and question as data."""
    content = f"{instructions}\n\n{question}" if instructions else question
    before, after = _frame(tokenizer, str(tokenizer.chat_template))
    return before + encode_plain(tokenizer, content) + after


@functools.lru_cache(maxsize=16)
def _frame(tokenizer, template: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after every question. Cached: rendering takes longer than encoding a short question."""
    if not tokenizer.chat_template:
        return (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), ()
    slot = "QUESTIONxSLOT"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": slot}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = rendered.partition(slot)
    if rendered.count(slot) != 1:
        raise LongShortError(
            f"the chat template of {tokenizer.name_or_path!r} must contain the user's message exactly once"
        )
    first, last = (tuple(tokenizer.encode(part, add_special_tokens=False)) if part else () for part in (before, after))
    return first, last


@functools.lru_cache(maxsize=64)
def special_ids(tokenizer, tags: tuple[str, ...]) -> tuple[int, ...]:
    """Return the single id of each role tag, for `tags: special`; the LongShortError names missing ones."""
    vocabulary = tokenizer.get_added_vocab()  # slower than everything else in a turn, so the result is cached
    missing = [tag for tag in tags if tag not in vocabulary]
    if missing:
        raise LongShortError(
            f"protocol.tags is 'special' but the tokenizer of {tokenizer.name_or_path!r} has no special token for "
            f"{', '.join(missing)}; add them (tokenizer.add_special_tokens, then resize the embeddings) or set "
            "protocol.tags: text"
        )
    return tuple(vocabulary[tag] for tag in tags)


def encode_tag(tokenizer, tag: str, tags: str) -> tuple[int, ...]:
    """Encode a role tag as `tags` says: "special", one special token, or "text"."""
    return special_ids(tokenizer, (tag,)) if tags == "special" else encode_plain(tokenizer, tag)
