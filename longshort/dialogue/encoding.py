"""Turn a prompt into token ids. Text is always data; only chat templates and role tags make control tokens."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from longshort.dialogue.plain_text import encode_plain, plain_text
from longshort.types import LongShortError

THINK, END_THINK, ANSWER, END_ANSWER, RETHINK = "<think>", "</think>", "<answer>", "</answer>", "</rethink>"
ROLE_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, RETHINK)
OPENED = re.compile(rf"({THINK}|{ANSWER})\s*\Z")
SLOT = "QUESTIONxSLOT"


def encode_problem(tokenizer, instructions: str, question: str, *, opening: str | None = None) -> tuple[int, ...]:
    """Encode the prompt before the first turn: the chat template as control, instructions and question as data.

    The ids are those that the chat template itself makes. Some templates open `<think>` for the model. A role that
    writes tags gives its `opening` tag: any other tag that the template opened is left out ("": every one).
    """
    return _prompt(tokenizer, str(tokenizer.chat_template or ""), _message(instructions, question), opening)[0]


def encode_opening(tokenizer, instructions: str, question: str, opening: str, tags: str) -> tuple[int, ...]:
    """Encode the prompt before a role's first words: `encode_problem`, then its opening tag, once."""
    content = _message(instructions, question)
    prompt, opened = _prompt(tokenizer, str(tokenizer.chat_template or ""), content, opening)
    return prompt if opened else prompt + encode_tag(tokenizer, opening, tags)


def _message(instructions: str, question: str) -> str:
    return f"{instructions}\n\n{question}" if instructions else question


@functools.lru_cache(maxsize=256)
def _prompt(tokenizer, template: str, content: str, opening: str | None) -> tuple[tuple[int, ...], bool]:
    """Return the ids of one user message, and whether they end with the opening tag.

    Cached: a group of episodes asks the same, and rendering takes longer than encoding.
    """
    if not template:
        bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        return bos + encode_plain(tokenizer, content, first=True), False
    text, frame = _render(tokenizer, content), _frame(tokenizer, opening)
    text = text[: len(text) - frame.left_out]
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    plain = plain_text(tokenizer)
    if tuple(i for i in ids if i in plain.control) == frame.control:
        return ids, frame.opened
    # The question names control tokens: encode what stands between the template's own ones without any.
    before, head, tail, after = frame.parts
    end = len(text) - len(after)
    between = text[len(before) : end]
    if not (text.startswith(before + head) and text.endswith(tail + after)):
        raise LongShortError(
            f"the chat template of {tokenizer.name_or_path!r} changes with the user's message, which names control "
            f"tokens: {content[:80]!r}; use a template that shows the message as it is, or drop the problem"
        )
    first, last = (tuple(tokenizer.encode(part, add_special_tokens=False)) if part else () for part in (before, after))
    return first + tuple(plain.encode(between, plain.section if before else plain.first)) + last, frame.opened


class _Frame(NamedTuple):
    """What a chat template puts around the user's message."""

    parts: tuple[str, str, str, str]
    """The text up to the template's last control token before the message, from there to it, and the same behind it."""
    control: tuple[int, ...]
    """The template's control tokens."""
    opened: bool
    """Whether it ends with the opening tag that was asked for."""
    left_out: int
    """Characters at its end that are left out: another opening tag."""


def _frame(tokenizer, opening: str | None) -> _Frame:
    """Look at the chat template with a word that stands for the user's message. Each time: some write today's date."""
    whole = _render(tokenizer, SLOT)
    if whole.count(SLOT) != 1:
        raise LongShortError(
            f"the chat template of {tokenizer.name_or_path!r} must contain the user's message exactly once"
        )
    found = None if opening is None else OPENED.search(whole)
    opened = found is not None and found[1] == opening
    text = whole[: found.start()] if found and not opened else whole
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    control = plain_text(tokenizer).control
    spans = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    marks = [(i, start, stop) for i, (start, stop) in spans if i in control]
    begin, end = text.index(SLOT), text.index(SLOT) + len(SLOT)
    before = max((stop for _, _, stop in marks if stop <= begin), default=0)
    after = min((start for _, start, _ in marks if start >= end), default=len(text))
    parts = text[:before], text[before:begin], text[end:after], text[after:]
    return _Frame(parts, tuple(i for i, _, _ in marks), opened, len(whole) - len(text))


def template_faults() -> tuple[type[Exception], ...]:
    """Return what a chat template may raise: it is a small program."""
    import jinja2  # transformers has loaded it by then

    return jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError


def _render(tokenizer, content: str) -> str:
    """Return what the chat template makes of one user message, ready for the model's answer."""
    messages = [{"role": "user", "content": content}]
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except template_faults() as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise LongShortError(
            f"the chat template of {tokenizer.name_or_path!r} fails on one user message ({what}); give the model's "
            "folder a template (chat_template.jinja) that needs no other message"
        ) from error


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
    """Encode a role tag as `tags` says: "special", one special token, or "text", as the model itself would write it.

    A reasoning model's own `<think>`, a token that is added but not special, is that token with "text" too.
    """
    if tags == "special":
        return special_ids(tokenizer, (tag,))
    own = plain_text(tokenizer).unmarked.get(tag)
    return encode_plain(tokenizer, tag) if own is None else (own,)
