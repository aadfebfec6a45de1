"""The tokenizers and templates of real pretrained models, with the unmarked tokens of Qwen3 and R1 added."""

import pytest

from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.plain_text import decode_plain, encode_plain
from tests.support import hand_built

QUESTIONS = ("What is 1+1?", "the W\n", "  two  spaces ", "é 😀\n\n\n[x]", "a <b> | c")


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def tokenizer(request, real_models):
    from transformers import AutoTokenizer

    folder = real_models / request.param
    if not folder.is_dir():
        pytest.skip(f"{real_models} has no {request.param}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(hand_built.UNMARKED))
    return tokenizer


def control_in(tokenizer, ids):
    return [token for token in tokenizer.get_added_vocab().values() if token in ids]


def test_a_prompt_is_what_the_template_makes(tokenizer):
    """Gemma's base model has none: its prompt is what the tokenizer makes of the question."""
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        if tokenizer.chat_template:
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            expected = tokenizer(question).input_ids
        assert encode_problem(tokenizer, "", question) == tuple(expected)


def test_the_name_of_every_added_token_is_text(tokenizer):
    for added in tokenizer.get_added_vocab():
        ids = encode_plain(tokenizer, f"x {added}y")
        assert control_in(tokenizer, ids) == []
        assert tokenizer.decode(ids) == f"x {added}y"


def test_a_question_that_names_every_added_token_adds_no_control(tokenizer):
    hostile = encode_problem(tokenizer, "", "".join(tokenizer.get_added_vocab()))
    assert control_in(tokenizer, hostile) == control_in(tokenizer, encode_problem(tokenizer, "", "1+1?"))


def test_text_comes_back_space_for_space(tokenizer):
    text = "  Let  $x<3$ , then\n\n\n x . é 😀 你好"
    assert decode_plain(tokenizer, encode_plain(tokenizer, text)) == text
