"""Text is data to the last token, for every family of tokenizers: no control token, no seam, one decoder."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.plain_text import decode_plain, encode_plain, plain_text
from longshort.types import LongShortError
from tests.support import hand_built

TOKENIZERS = {name: make() for name, make in hand_built.FAMILIES.items()}
TEMPLATED = {
    (name, template): make(template)
    for name, make in hand_built.FAMILIES.items()
    for template in (hand_built.CHATML, hand_built.INST)
}
ADDED = (*hand_built.SPECIAL, *hand_built.UNMARKED)


def control_in(tokenizer, ids):
    """The added tokens among these ids."""
    added = tokenizer.get_added_vocab()
    return [token for token in tokenizer.convert_ids_to_tokens(list(ids)) if token in added]


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_name_of_an_added_token_is_encoded_as_characters(family, added):
    tokenizer, text = TOKENIZERS[family], f"a{added}b"
    ids = encode_plain(tokenizer, text)
    assert control_in(tokenizer, ids) == []
    assert tokenizer.decode(ids) == text


def test_an_unmarked_token_in_a_byte_level_text_is_one_token_per_character():
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.convert_ids_to_tokens(encode_plain(tokenizer, "a</think>b")) == list("a</think>b")


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from([*ADDED, "<|im_", "start|>", "</", "think>", "<", " ", "  ", "the", "a", "\n", "é"]))
)
@pytest.mark.parametrize("family", TOKENIZERS)
def test_any_text_of_their_names_and_parts_comes_back_without_control_tokens(family, parts):
    tokenizer, text = TOKENIZERS[family], "".join(parts)
    ids = encode_plain(tokenizer, text)
    assert control_in(tokenizer, ids) == []
    assert decode_plain(tokenizer, ids) == text


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from([*ADDED, "<|im_", "end|>", "[/INST]", " ", "the", "\n"])))
@pytest.mark.parametrize("template", [hand_built.CHATML, hand_built.INST], ids=["chatml", "inst"])
@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_prompt_has_the_templates_own_control_tokens_and_no_other(family, template, parts):
    tokenizer, question = TEMPLATED[family, template], "".join(parts)
    prompt = encode_problem(tokenizer, "", question)
    own = ["<|im_start|>", "<|im_end|>", "<|im_start|>"] if template == hand_built.CHATML else ["<s>"]
    assert control_in(tokenizer, prompt) == own
    assert question.strip() in decode_plain(tokenizer, prompt)


def test_added_white_space_is_text_and_keeps_its_id():
    """Phi and Gemma add runs of spaces and of newlines; a model that reads them one by one reads something new."""
    tokenizer = hand_built.byte_level()
    tokenizer.add_tokens(["    "])
    run = tokenizer.convert_tokens_to_ids("    ")
    assert encode_plain(tokenizer, "a    b")[1:-1] == (run,)


def test_an_added_word_is_text_where_the_tokenizers_settings_say_so():
    """A vocabulary that was extended by words of a subject keeps them; without the list they could be anything."""
    tokenizer = hand_built.byte_level()
    tokenizer.add_tokens(["quark", "<sep>"])
    tokenizer.init_kwargs["added_words"] = ["quark"]
    assert encode_plain(tokenizer, "quark") == (tokenizer.convert_tokens_to_ids("quark"),)
    assert control_in(tokenizer, encode_plain(tokenizer, "<sep>")) == []


def test_a_control_token_of_one_character_that_the_model_holds_is_refused_by_name():
    from tokenizers import AddedToken

    tokenizer = hand_built.unigram()
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("#", special=True)]})
    with pytest.raises(LongShortError, match="holds '#', which this tokenizer can write only as its control token"):
        encode_plain(tokenizer, "a#b")


def test_a_token_that_is_added_later_is_control_too():
    tokenizer = hand_built.byte_level()
    before = encode_plain(tokenizer, "<sep>")
    tokenizer.add_tokens(["<sep>"])
    assert encode_plain(tokenizer, "<sep>") == before
    assert control_in(tokenizer, encode_problem(tokenizer, "", "<sep>")) == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]


def test_unknown_characters_are_the_unknown_token_and_no_error():
    tokenizer = TOKENIZERS["unigram"]
    assert encode_plain(tokenizer, "a😀b")[1] == tokenizer.unk_token_id


@pytest.mark.parametrize("family", ["llama2", "metaspace", "unigram"])
def test_a_text_that_goes_on_gets_no_space_and_keeps_its_own(family):
    tokenizer = TOKENIZERS[family]
    assert tokenizer.convert_ids_to_tokens(encode_plain(tokenizer, "a")) == ["a"]
    assert decode_plain(tokenizer, encode_plain(tokenizer, " the a")) == " the a"


@pytest.mark.parametrize(("family", "pieces"), [("llama2", ["▁", "a"]), ("byte_level", ["a"])])
def test_the_first_text_of_a_sequence_is_encoded_as_the_tokenizer_does(family, pieces):
    tokenizer = hand_built.FAMILIES[family](template=None)
    assert tokenizer.convert_ids_to_tokens(encode_problem(tokenizer, "", "a")) == ["<s>", *pieces]


def test_spaces_before_punctuation_are_not_cleaned_away():
    tokenizer = hand_built.unigram()
    tokenizer.clean_up_tokenization_spaces = True
    ids = encode_plain(tokenizer, "a . b")
    assert (tokenizer.decode(ids), decode_plain(tokenizer, ids)) == ("a. b", "a . b")


def test_ids_beyond_the_vocabulary_have_no_text():
    tokenizer = TOKENIZERS["llama2"]
    assert decode_plain(tokenizer, [*encode_plain(tokenizer, "a"), 10**6]) == "a"


def test_the_model_is_shared_and_not_copied():
    plain = plain_text(TOKENIZERS["llama2"])
    assert plain.first.get_vocab_size() == plain.further.get_vocab_size() == 3 + 256 + 1 + len(hand_built.LETTERS) + 5
