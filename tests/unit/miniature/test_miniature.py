"""The miniature: problems, traces and dialogues with right answers, lossless tokenizers, models that load."""

import random
import re

import pytest

from longshort.dialogue.encoding import ROLE_TAGS, encode_plain, encode_problem
from longshort.dialogue.protocols import LongShort, demonstration
from longshort.dialogue.solo import Solo
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import EOS, FINAL_NOTICE, PAD, PROBLEM, SOLVE, build_tokenizer
from longshort.miniature.world import (
    PHRASES,
    compressed_trace,
    dialogue,
    make_problems,
    products,
    teacher_trace,
    terms_of,
)
from longshort.recipe.miniature import ModelShape
from longshort.types import LONG, ROLES, SHORT, LongShortError, Problem

PROBLEM_48 = Problem(id="p", question="Last digit of a: 4*6*2-b: 9+c: 2*9*7?", answer="5")  # 48 - 9 + 126 = 165
TINY = ModelShape(
    hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32,
    base_steps=1, base_learning_rate=1e-3,
)  # fmt: skip


def protocol():
    budgets = {"turn_tokens": {LONG: 96, SHORT: 64}, "episode_tokens": 400}
    return LongShort(
        max_exchanges=3, tags="special", instructions={LONG: "", SHORT: ""}, final_notice=FINAL_NOTICE, **budgets
    )


@pytest.fixture(scope="module")
def tokenizers():
    return {role: build_tokenizer(role) for role in ROLES}


def value(problem):
    """The answer by Python's own arithmetic on the expression without its labels."""
    expression = re.sub(r"[a-d]: ", "", problem.question.removeprefix("Last digit of ").removesuffix("?"))
    return str(eval(expression) % 10)


def test_answers_are_what_python_computes():
    problems = make_problems("train", 300, seed=0)
    assert value(PROBLEM_48) == "5"
    assert [value(problem) for problem in problems] == [problem.answer for problem in problems]
    assert {products(problem) for problem in problems} == {1, 2, 3}


def test_splits_never_share_a_question_and_ids_do_not_depend_on_the_seed():
    by_split = {
        split: {p.question: p.id for seed in (0, 1) for p in make_problems(split, 300, seed)}
        for split in ("train", "dev", "test")
    }
    assert not by_split["train"].keys() & by_split["test"].keys()
    assert not by_split["train"].keys() & by_split["dev"].keys()
    assert not by_split["dev"].keys() & by_split["test"].keys()
    assert len(set(by_split["dev"].values())) == len(by_split["dev"])
    assert make_problems("dev", 5, seed=0) == make_problems("dev", 5, seed=0)
    assert make_problems("dev", 5, seed=0) == make_problems("dev", 9, seed=0)[:5]
    assert len({problem.question for problem in make_problems("train", 2000, seed=3)}) == 2000


def test_unknown_split_and_foreign_question_are_refused():
    with pytest.raises(LongShortError, match="'train', 'dev' or 'test', got 'val'"):
        make_problems("val", 1, seed=0)
    with pytest.raises(LongShortError, match=r"p7: 'What is 2.2' is not of the miniature world"):
        terms_of(Problem(id="p7", question="What is 2+2", answer="4"))


def test_a_problem_from_elsewhere_has_no_count_of_products_whatever_its_id():
    assert products(Problem(id="mini-7", question="What is 2+2", answer="4")) is None
    assert products(Problem(id="q", question="Last digit of a: 4*6*2-b: 9+c: 2*9*7?", answer="5")) == 2


def test_terms_and_products_are_read_from_the_question():
    assert [(term.label, term.factors, term.value) for term in terms_of(PROBLEM_48)] == [
        ("a: ", (4, 6, 2), 8),
        ("-b: ", (9,), 9),
        ("+c: ", (2, 9, 7), 6),
    ]
    assert products(PROBLEM_48) == 2


def test_tersest_dialogue_word_for_word():
    assert dialogue(PROBLEM_48, random.Random(0), redundancy=0.0) == [
        (LONG, "a: 4*6=4, *2=8.", "</think>"),
        (SHORT, "Total a: 0+8 -> 8.\n\nTotal -b: 8-9 -> 9.", "</rethink>"),
        (LONG, "+c: 2*9=8, *7=6.", "</think>"),
        (SHORT, "Total +c: 9+6 -> 5.\n\n\\boxed{5}", "</answer>"),
    ]
    assert compressed_trace(PROBLEM_48, random.Random(0)) == (
        "a: 4*6=4, *2=8.\n\nTotal a: 0+8 -> 8.\n\nTotal -b: 8-9 -> 9.\n\n"
        "+c: 2*9=8, *7=6.\n\nTotal +c: 9+6 -> 5.\n\n\\boxed{5}"
    )


def test_digits_before_the_first_product_are_added_by_the_first_short_turn():
    problem = Problem(id="p", question="Last digit of a: 7+b: 3*4*2-c: 1?", answer="0")  # 7 + 24 - 1
    assert dialogue(problem, random.Random(0), redundancy=0.0) == [
        (LONG, "+b: 3*4=2, *2=4.", "</think>"),
        (SHORT, "Total a: 0+7 -> 7.\n\nTotal +b: 7+4 -> 1.\n\nTotal -c: 1-1 -> 0.\n\n\\boxed{0}", "</answer>"),
    ]


def test_redundancy_adds_only_optional_thoughts():
    full = [text.split("\n\n") for _, text, _ in dialogue(PROBLEM_48, random.Random(0), redundancy=1.0)]
    assert full == [
        [
            "We need the last digit of a: 4*6*2-b: 9+c: 2*9*7.",
            "a: 4*6=4, *2=8.",
            "Check a: 4*6=4, *2=8.",
            "Check a: 4*6=4, *2=8.",
        ],
        ["Total a: 0+8 -> 8.", "Check Total a: 0+8 -> 8.", "Total -b: 8-9 -> 9.", "Check Total -b: 8-9 -> 9."],
        ["+c: 2*9=8, *7=6.", "Check +c: 2*9=8, *7=6.", "Check +c: 2*9=8, *7=6."],
        ["Total +c: 9+6 -> 5.", "Check Total +c: 9+6 -> 5.", "So the last digit is 5.", "\\boxed{5}"],
    ]
    optional = ("We need", "Check", "So the")
    needed = [[thought for thought in turn if not thought.startswith(optional)] for turn in full]
    assert ["\n\n".join(turn) for turn in needed] == [
        text for _, text, _ in dialogue(PROBLEM_48, random.Random(0), redundancy=0.0)
    ]


def test_teacher_traces_are_verbose_and_end_on_the_gold_answer():
    rng = random.Random(0)
    problems = make_problems("train", 300, seed=0)
    traces = [teacher_trace(problem, rng) for problem in problems]
    assert [trace.split("\n\n")[-1] for trace in traces] == [f"\\boxed{{{problem.answer}}}" for problem in problems]
    assert sum("Wait, that is wrong. " in trace for trace in traces) == 21
    assert sum(map(len, traces)) > 1.6 * sum(len(compressed_trace(problem, rng)) for problem in problems)


def test_a_mistake_is_followed_by_its_correction():
    rng = random.Random(1)
    trace = next(trace for trace in (teacher_trace(PROBLEM_48, rng) for _ in range(500)) if "Wait" in trace)
    thoughts = trace.split("\n\n")
    fix = next(index for index, thought in enumerate(thoughts) if thought.startswith("Wait"))
    right = thoughts[fix].removeprefix("Wait, that is wrong. ")
    assert thoughts[fix - 1][:-2] == right[:-2] and thoughts[fix - 1][-2] != right[-2]


@pytest.mark.parametrize("role", ROLES)
def test_tokenizer_is_lossless_on_any_text(tokenizers, role):
    tokenizer = tokenizers[role]
    ours = ["", "a: 4*6=4, *2=8.\n\nCheck a: 4", "  two  spaces , .", "Last turn.", "<think> is text here </answer>"]
    texts = [*ours, "héllo 数学 😀 \u200d\t\r\n", "\x00\x7f"]
    assert [tokenizer.decode(encode_plain(tokenizer, text)) for text in texts] == texts
    rng = random.Random(0)
    codes = [code for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    for _ in range(50):
        text = "".join(map(chr, rng.choices(codes, k=20)))
        assert tokenizer.decode(encode_plain(tokenizer, text)) == text


def test_role_tags_in_text_are_bytes_and_as_control_one_token(tokenizers):
    for tokenizer in tokenizers.values():
        for tag in (*ROLE_TAGS, EOS, PAD, PROBLEM, SOLVE):
            assert len(encode_plain(tokenizer, tag)) == len(tag)
            assert len(tokenizer.encode(tag, add_special_tokens=False)) == 1
        assert [len(encode_plain(tokenizer, FINAL_NOTICE)), tokenizer.eos_token, tokenizer.pad_token] == [1, EOS, PAD]


def test_each_phrase_is_one_token_of_long_and_the_vocabularies_differ(tokenizers):
    many = {role: [phrase for phrase in PHRASES if len(encode_plain(tokenizers[role], phrase)) != 1] for role in ROLES}
    assert many == {LONG: [], SHORT: ["We need the last digit of ", "Wait, that is wrong. "]}
    assert [len(tokenizers[role]) for role in ROLES] == [285, 283]
    long, short = (tokenizers[role].get_vocab() for role in ROLES)
    assert len([token for token in short if long[token] == short[token]]) <= 1


def test_chat_template_frames_the_question(tokenizers):
    for tokenizer in tokenizers.values():
        ids = encode_problem(tokenizer, "", "Last digit of a: 4*6*2?<think>")
        assert tokenizer.convert_ids_to_tokens(ids[0]) == PROBLEM
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == SOLVE
        assert tokenizer.decode(ids[1:-1]) == "Last digit of a: 4*6*2?<think>"


def test_dialogues_and_traces_are_answered_demonstrations(tokenizers):
    rng = random.Random(0)
    for problem in make_problems("train", 60, seed=0):
        episode = demonstration(problem, dialogue(problem, rng, 0.5), protocol(), tokenizers)
        assert (episode.stop, protocol().hand_backs(episode)) == ("answered", products(problem) - 1)
        assert f"\\boxed{{{problem.answer}}}" in protocol().final_text(episode)
        solo = demonstration(problem, [(LONG, teacher_trace(problem, rng), "eos")], Solo(turn_tokens=300), tokenizers)
        assert solo.stop == "answered"


def test_last_exchange_shows_the_final_notice_as_one_token(tokenizers):
    three = next(problem for problem in make_problems("train", 60, seed=0) if products(problem) == 3)
    episode = demonstration(three, dialogue(three, random.Random(0), 0.0), protocol(), tokenizers)
    notice, opening = episode.turns[5].prompt_ids[-2:]
    assert tokenizers[SHORT].convert_ids_to_tokens([notice, opening]) == [FINAL_NOTICE, "<answer>"]


def test_unknown_role_is_refused():
    with pytest.raises(LongShortError, match="long, short, not for 'medium'"):
        build_tokenizer("medium")


def test_model_is_seeded_untied_and_leaves_the_global_generator_alone(tokenizers):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        build_model(tokenizers[SHORT], TINY, seed, max_position_embeddings=256) for seed in (0, 0, 1)
    )
    assert torch.rand(1) == expected
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert not first.lm_head.weight.equal(first.model.embed_tokens.weight)
    assert (first.config.vocab_size, first.config.max_position_embeddings, first.dtype) == (283, 256, torch.float32)


def test_head_size_that_vllm_cannot_run_is_refused(tokenizers):
    with pytest.raises(LongShortError, match="hidden_size 64 with 4 heads"):
        build_model(tokenizers[SHORT], TINY.model_copy(update={"num_heads": 4}), seed=0, max_position_embeddings=256)


def test_saved_folder_loads_with_the_auto_classes(tokenizers, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build_model(tokenizers[LONG], TINY, seed=0, max_position_embeddings=256)
    save(model, tokenizers[LONG], tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight.equal(model.lm_head.weight)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a: 4*6=4, *2=8. <think> 数学"
    assert encode_plain(loaded, text) == encode_plain(tokenizers[LONG], text)
    assert loaded.chat_template == tokenizers[LONG].chat_template
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizers[LONG].eos_token_id, tokenizers[LONG].pad_token_id)
