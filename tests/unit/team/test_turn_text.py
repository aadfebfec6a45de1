"""Pieces of a turn are its text, whatever the tokenizer and wherever the stream is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.backends.engines.ending import ending
from longshort.dialogue.plain_text import encode_plain
from longshort.team.conversation import TurnText
from longshort.types import Sampling
from tests.support import hand_built

TOKENIZERS = {name: make() for name, make in hand_built.FAMILIES.items()}


def streamed(tokenizer, ids, sizes, stops=()):
    """The pieces of a turn that is read when it has these many tokens, and its text by the engine's own rule."""
    turn = TurnText(tokenizer, stops)
    pieces = [turn.read(ids[:size]) for size in sizes if size < len(ids)]
    _, text = ending(tokenizer, ids, Sampling(max_tokens=len(ids), stop=stops), "length")
    return [*pieces, turn.finish(text)], text


def test_the_space_before_the_first_word_is_streamed_and_kept():
    tokenizer = TOKENIZERS["llama2"]
    ids = encode_plain(tokenizer, " the he.")
    pieces, text = streamed(tokenizer, ids, range(1, len(ids)), stops=(".",))
    assert (pieces, text) == ([" the", " ", "he", ""], " the he")


def test_a_character_in_bytes_is_streamed_whole():
    tokenizer = TOKENIZERS["llama2"]
    ids = encode_plain(tokenizer, "a你b")
    pieces, text = streamed(tokenizer, ids, range(1, len(ids)))
    assert (pieces, text) == (["a", "", "", "", "你b"], "a你b")


def test_a_whole_character_waits_while_the_bytes_after_it_may_undo_it():
    """The decoder reads a run of bytes at once: one byte too many makes all of them unreadable."""
    tokenizer = TOKENIZERS["llama2"]
    ids = (*encode_plain(tokenizer, "a你"), tokenizer.convert_tokens_to_ids("<0xE4>"), *encode_plain(tokenizer, "b"))
    pieces, text = streamed(tokenizer, ids, range(1, len(ids)))
    assert "".join(pieces) == text == "a\ufffd\ufffd\ufffd\ufffdb"


def test_an_id_without_a_token_does_not_end_a_run_of_bytes():
    tokenizer = TOKENIZERS["metaspace"]
    ids = [*tokenizer.convert_tokens_to_ids(["<0x41>"]), 10**6, *tokenizer.convert_tokens_to_ids(["<0x80>", "b"])]
    pieces, text = streamed(tokenizer, ids, range(1, len(ids)))
    assert "".join(pieces) == text == "\ufffd\ufffdb"


@settings(max_examples=150, deadline=None)
@given(data=st.data(), stops=st.sampled_from([(), (".", ","), ("the", "</think>"), ("é",)]))
@pytest.mark.parametrize("family", TOKENIZERS)
def test_pieces_of_any_ids_cut_anywhere_are_the_text(family, data, stops):
    tokenizer = TOKENIZERS[family]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), min_size=1, max_size=30))
    for size in range(1, len(ids)):  # as an engine would, end the turn where a stop string is complete
        if ending(tokenizer, ids[:size], Sampling(max_tokens=size, stop=stops), "length")[0] != "length":
            ids = ids[:size]
            break
    pieces, text = streamed(tokenizer, ids, sorted(data.draw(st.sets(st.integers(1, len(ids))))), stops)
    assert "".join(pieces) == text
