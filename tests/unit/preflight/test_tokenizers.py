"""A tokenizer or chat template that cannot work is one sentence before anything starts, whichever role has it."""

import json

import pytest

from longshort.preflight.checks import load_tokenizer
from longshort.recipe.schema import parse
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import hand_built


def loaded(folder, role, template):
    tokenizer = hand_built.llama2(template)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = parse({role: {"model": str(folder)}, "protocol": {"tags": "text"}})
    return load_tokenizer(config, role, len(tokenizer))


def test_a_usable_template_is_accepted(tmp_path):
    assert loaded(tmp_path, LONG, hand_built.INST).chat_template == hand_built.INST


@pytest.mark.parametrize("role", ROLES)
def test_a_template_that_wants_a_system_message_is_one_sentence(tmp_path, role):
    with pytest.raises(LongShortError, match=r"chat template of .* fails on one user message \(no system message\)"):
        loaded(tmp_path, role, "{{ raise_exception('no system message') }}")


def test_a_template_without_a_place_for_the_question_is_one_sentence(tmp_path):
    with pytest.raises(LongShortError, match="must contain the user's message exactly once"):
        loaded(tmp_path, SHORT, "<s>Solve it.")
