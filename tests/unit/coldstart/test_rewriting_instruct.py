"""The instruct rewriter against a scripted engine: what the model sees, what is refused, and that the gold answer never
leaks."""

import asyncio

import pytest

from longshort.coldstart.asking import Fault, NoUsableAnswer
from longshort.coldstart.records import DialogueDraft, DraftMessage, Thought
from longshort.coldstart.rewriting import RewriteContext, check_texts, instruct, rewriting_request
from longshort.grading.pool import GradingPool
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT, Problem
from tests.support.scripted_engine import ScriptedEngine

RIGHT = '{"short 1": "So 6 is left.", "short 2": "7+6=13: \\\\boxed{3}"}'
WRONG = '{"short 1": "So 6 is left.", "short 2": "7+6=12: \\\\boxed{2}"}'


def message(role, *thoughts):
    return DraftMessage(role=role, thoughts=tuple(Thought(text=text, kind=kind) for text, kind in thoughts))


DIALOGUE = (
    message(LONG, ("We start with a.\n\n", "problem understanding"), ("a is 7.\n\n", "calculation")),
    message(SHORT, ("SECRET check of a.\n\n", "verification"), ("SECRET plan.\n\n", "planning")),
    message(LONG, ("b is 6.\n\n", "calculation")),
    message(SHORT, ("SECRET \\boxed{3}", "answer")),
)


PROBLEM = Problem(id="p", question="Last digit of a+b?", answer="3")


def rewrite(engine, dialogue=DIALOGUE):
    draft = DialogueDraft(trace="t", problem=PROBLEM, messages=dialogue)
    with GradingPool() as pool:
        context = RewriteContext(settings=RewriteConfig(tries=2, max_tokens=60), engine=engine, pool=pool, seed=1)
        return asyncio.run(instruct(draft, context))


def failure(engine) -> NoUsableAnswer:
    with pytest.raises(NoUsableAnswer) as caught:
        rewrite(engine)
    return caught.value


def test_the_model_sees_long_texts_and_of_the_dropped_thoughts_only_their_kinds():
    request = rewriting_request("Last digit of a+b?", DIALOGUE)
    assert "Problem:\nLast digit of a+b?\n" in request and "SECRET" not in request
    assert (
        "[long 1]\nWe start with a.\n\na is 7.\n\n"
        "[short 1: for you to write; it stands for thoughts of these kinds: verification, planning]\n\n"
        "[long 2]\nb is 6.\n\n"
        "[short 2: for you to write; it stands for thoughts of these kinds: answer]\n\n"
    ) in request
    assert '{"short 1": "…", "short 2": "…"}' in request and "\\boxed{} in short 2" in request


def test_a_trace_that_ends_long_is_closed_by_a_short_answer():
    dialogue = (*DIALOGUE[:3], DraftMessage(role=SHORT, thoughts=()))
    assert "[short 2: for you to write; a closing short answer with the boxed result]" in rewriting_request(
        "q", dialogue
    )
    assert rewrite(ScriptedEngine(RIGHT), dialogue)[0] == ["So 6 is left.", "7+6=13: \\boxed{3}"]


def test_a_right_answer_is_kept_and_a_wrong_one_is_repaired_without_the_gold():
    assert rewrite(ScriptedEngine(RIGHT)) == (["So 6 is left.", "7+6=13: \\boxed{3}"], 1)
    engine = ScriptedEngine(WRONG, RIGHT)
    assert rewrite(engine)[1] == 2
    assert "It was wrong: the final answer is wrong; recompute it" in engine.texts()[1]
    assert "\\boxed{3}" not in engine.texts()[1]


@pytest.mark.parametrize(
    "reply, reason",
    [
        (WRONG, "wrong_answer"),
        ("no", "bad_json"),
        ('{"short 1": "only one"}', "bad_answer"),
        (('{"short 1": "So', "length"), "length"),
    ],
)
def test_a_failure_is_named(reply, reason):
    assert failure(ScriptedEngine(reply)).reason == reason


def test_a_dialogue_beyond_the_context_is_named():
    assert failure(ScriptedEngine(RIGHT, context=50)).reason == "context"


@pytest.mark.parametrize(
    "answer, words",
    [
        ([], "exactly the keys short 1, short 2"),
        ({}, "not none"),
        ({"short 2": "\\boxed{3}", "short 1": "x"}, "in this order"),
        ({"short 1": "x", "short 2": "\\boxed{3}", "short 3": "y"}, "exactly the keys"),
        ({"short 1": " \n", "short 2": "\\boxed{3}"}, "short 1 must be non-empty text"),
        ({"short 1": 6, "short 2": "\\boxed{3}"}, "short 1 must be non-empty text, not 6"),
        ({"short 1": "x</rethink>", "short 2": "\\boxed{3}"}, "short 1 must not contain </rethink>"),
        ({"short 1": "\\boxed{3}", "short 2": "\\boxed{3}"}, "short 1 must not contain \\boxed"),
        ({"short 1": "x", "short 2": "3"}, "short 2 must give the final answer in \\boxed{}"),
        ({"short 1": "x", "short 2": "\\boxed{3"}, "short 2 must give the final answer in \\boxed{}"),
        ({"short 1": "x", "short 2": "\boxed{3}"}, "backslash was not doubled"),
        ({"short 1": "2 \times 3", "short 2": "\\boxed{6}"}, "short 1 has a control character"),
        ({"short 1": "a \neq b", "short 2": "\\boxed{6}"}, "short 1 has a control character"),
        ({"short 1": "x", "short 2": "\ud800 \\boxed{6}"}, "short 2 has a control character"),
    ],
)
def test_a_bad_answer_is_told_what_is_wrong(answer, words):
    with pytest.raises(Fault) as caught:
        check_texts(answer, 2)
    assert words in str(caught.value) and caught.value.reason == "bad_answer"


def test_lines_and_a_less_than_sign_are_fine():
    assert check_texts({"short 1": " 2 < 3\nequal: \\boxed{6}\n"}, 1) == ["2 < 3\nequal: \\boxed{6}"]
