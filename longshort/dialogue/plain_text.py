"""Text as data: no text becomes a control token, and a text that goes on after another has no seam.

A control token is a token that was added to a tokenizer's vocabulary, whether it is marked special or not:
`<|im_end|>`, `</think>`, `<tool_call>`. Text are, if they are not special, added runs of white space, added single
characters, and what the list `added_words` of tokenizer_config.json names.

Tokenizers like Llama's put a space before each text that they encode, and take one away from each text that they
decode. A turn goes on where another text ended, so both are left out here. Engines and streams decode by this file
alone: what is streamed, what a turn's text is and what the partner reads are the same.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from longshort.types import LongShortError


def encode_plain(tokenizer, text: str, *, first: bool = False) -> tuple[int, ...]:
    """Encode `text` as data, going on after other text; `first`: at the beginning of a sequence."""
    if not hasattr(tokenizer, "backend_tokenizer"):  # preflight refuses a model folder with such a tokenizer
        return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else ()
    plain = plain_text(tokenizer)
    return tuple(plain.encode(text, plain.first if first else plain.further))


def decode_plain(tokenizer, ids: Sequence[int]) -> str:
    """Return the text of these ids, every space and every token's name included."""
    return plain_text(tokenizer).decode(ids)


def settled(tokenizer, ids: Sequence[int]) -> Sequence[int]:
    """Return the ids without the bytes at their end: what a run of byte tokens says is known when it has ended."""
    token_of, size = tokenizer.backend_tokenizer.id_to_token, len(ids)
    while size and ((token := token_of(ids[size - 1])) is None or (len(token) == 6 and token.startswith("<0x"))):
        size -= 1  # an id without a token writes nothing, so it does not end a run
    return ids[:size]


def plain_text(tokenizer) -> PlainText:
    """Return the tokenizer's PlainText, a new one when tokens were added."""
    return _plain_text(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=16)
def _plain_text(tokenizer, size: int) -> PlainText:
    words = tokenizer.init_kwargs.get("added_words", ())
    return PlainText(tokenizer.backend_tokenizer, tokenizer.unk_token_id, words)


class PlainText:
    """A tokenizer without its control tokens.

    `first` encodes what begins a sequence, `further` what goes on after other text, and `section` what follows a
    control token of the chat template. They share the model, which is large.
    """

    def __init__(self, backend: Tokenizer, unknown: int | None, words: Collection[str]):
        added = backend.get_added_tokens_decoder()
        kept = {i: token for i, token in added.items() if not token.special
                and (len(token.content.strip()) < 2 or token.content in words)}  # fmt: skip
        self.control = frozenset(added.keys() - kept.keys())
        self.unmarked = {token.content: i for i, token in added.items() if i in self.control and not token.special}
        """The control tokens that are not marked special, by name."""
        self._unknown, self._name = unknown, backend.id_to_token
        self.first, self.section, self.further = (
            _without_control(backend, kept.values(), leave_out) for leave_out in ((), ("first",), ("first", "always"))
        )
        self._ids = {self.first.token_to_id(token.content): i for i, token in kept.items()}
        self._decoder = self.further.decoder

    def encode(self, text: str, encoder: Tokenizer) -> list[int]:
        encoding = encoder.encode(text, add_special_tokens=False)
        ids = [self._ids.get(i, i) for i in encoding.ids]
        cuts = [] if self.control.isdisjoint(ids) else list(self._cuts(text, ids, encoding.offsets))
        if not cuts:
            return ids
        # The model's own vocabulary holds the token (Unigram), but no token reaches across a cut.
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
        parts = [self.encode(pieces[0], encoder), *(self.encode(piece, self.further) for piece in pieces[1:])]
        return list(itertools.chain.from_iterable(parts))

    def _cuts(self, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Yield a place inside each name of a control token that the text was read as."""
        for token, (start, end) in zip(ids, spans, strict=True):
            name = self._name(token) or ""
            if token == self._unknown:  # also what any unknown characters are read as
                yield from (start + found.start() + 1 for found in re.finditer(re.escape(name), text[start:end]))
            elif token in self.control and end - start > 1:
                yield start + 1
            elif token in self.control:
                raise LongShortError(
                    f"the text holds {text[start:end]!r}, which this tokenizer can write only as its control token "
                    f"{name!r}; replace it"
                )

    def decode(self, ids: Iterable[int]) -> str:
        tokens = [token for token in map(self._name, ids) if token is not None]
        return self._decoder.decode(tokens) if self._decoder else " ".join(tokens)


def _without_control(backend: Tokenizer, kept: Iterable[AddedToken], leave_out: Sequence[str]) -> Tokenizer:
    """Return a tokenizer of the same model with `kept` as its only added tokens.

    `leave_out` says which spaces are not put before a text: those of a sequence's "first" text, or "always".
    """
    shell = Tokenizer(models.BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(shell, part, value)
    settings = json.loads(shell.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        settings[part] = _seamless(settings[part], leave_out)
    plain = Tokenizer.from_str(json.dumps(settings))
    plain.model = backend.model
    plain.add_tokens(list(kept))
    return plain


def _seamless(part: Any, leave_out: Sequence[str]) -> Any:
    """Return a part's settings without what adds or takes away spaces at the ends of a text."""
    if not part or not leave_out:
        return part
    always = "always" in leave_out
    match part["type"]:
        case "Sequence":
            key = next(key for key in part if key != "type")
            return part | {key: [new for old in part[key] if (new := _seamless(old, leave_out))]}
        case "Metaspace" if part["prepend_scheme"] in leave_out:
            return part | {"prepend_scheme": "never"}
        case "Prepend" if always:
            return None
        case "ByteLevel" if always:
            return part | {"add_prefix_space": False}
        case "Strip" if always:  # a normalizer has the switches, a decoder the counts
            off = {"strip_left": False, "strip_right": False, "start": 0, "stop": 0}
            return part | {key: value for key, value in off.items() if key in part}
    return part
