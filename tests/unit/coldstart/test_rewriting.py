"""The dialogue made of a partitioned trace: stitched, verified against the gold answer, dropped with a reason."""

import asyncio
import random

import pytest

from longshort.coldstart.asking import NoUsableAnswer
from longshort.coldstart.records import DialogueDraft, DraftMessage, Thought
from longshort.coldstart.rewriting import REWRITERS, RewriteContext, rewrite
from longshort.grading.pool import GradingPool
from longshort.miniature.rewriting import short_texts
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT, LongShortError, Problem
from tests.support.scripted_engine import ScriptedEngine

PROBLEM = Problem(id="p", question="Last digit of a: 4*6*2+b: 2*9*7?", answer="4")  # 48 + 126
PRODUCT_A, TOTAL_A, PRODUCT_B = "a: 4*6=4, *2=8.", "Total a: 0+8 -> 8.", "+b: 2*9=8, *7=6."
CHECK_B, TOTAL_B, WRAP, BOX = (
    "Check Total +b: 8+6 -> 4.",
    "Total +b: 8+6 -> 4.",
    "So the last digit is 4.",
    "\\boxed{4}",
)


def message(role, *texts):
    return DraftMessage(role=role, thoughts=tuple(Thought(text=f"{text}\n\n", kind="calculation") for text in texts))


DRAFT = DialogueDraft(
    trace="t",
    problem=PROBLEM,
    messages=(
        message(LONG, PRODUCT_A),
        message(SHORT, TOTAL_A),
        message(LONG, PRODUCT_B),
        message(SHORT, TOTAL_B, CHECK_B, WRAP, BOX),
    ),
)


def run(draft=DRAFT, rewriter="miniature", engine=None, **settings):
    with GradingPool() as pool:
        context = RewriteContext(
            settings=RewriteConfig(**{"redundancy": 0.0} | settings), engine=engine, pool=pool, seed=0
        )
        return asyncio.run(rewrite(draft, rewriter if callable(rewriter) else REWRITERS[rewriter], context))


def fixed(*texts, tries=1):
    async def rewriter(draft, context):
        return list(texts), tries

    return rewriter


def test_the_miniature_rewriter_word_for_word():
    found = run()
    assert found.outcome == "kept" and found.dialogue == (
        (LONG, PRODUCT_A, "</think>"),
        (SHORT, TOTAL_A, "</rethink>"),
        (LONG, PRODUCT_B, "</think>"),
        (SHORT, f"{TOTAL_B}\n\n{BOX}", "</answer>"),
    )
    assert run(redundancy=1.0).dialogue[-1][1] == f"{TOTAL_B}\n\n{CHECK_B}\n\n{WRAP}\n\n{BOX}"


def test_totals_whose_product_was_dropped_are_written_all_the_same():
    parts = [(LONG, [PRODUCT_A]), (SHORT, [TOTAL_A, PRODUCT_B, TOTAL_B, BOX])]
    assert short_texts(PROBLEM, parts, random.Random(0), 0.0) == [f"{TOTAL_A}\n\n{TOTAL_B}\n\n{BOX}"]
    kept = [(LONG, [PRODUCT_A, TOTAL_A]), (SHORT, ["Check a: 4*6=4, *2=8."]), (LONG, [PRODUCT_B]), (SHORT, [])]
    assert short_texts(PROBLEM, kept, random.Random(0), 0.0) == ["Check a: 4*6=4, *2=8.", f"{TOTAL_B}\n\n{BOX}"]
    with pytest.raises(LongShortError, match="covers no thought"):
        short_texts(
            PROBLEM, [(LONG, [PRODUCT_A]), (SHORT, []), (LONG, [PRODUCT_B]), (SHORT, [BOX])], random.Random(0), 0.0
        )


def test_verbatim_keeps_what_was_dropped():
    assert [text for _, text, _ in run(rewriter="verbatim").dialogue][1::2] == [
        TOTAL_A,
        "\n\n".join([TOTAL_B, CHECK_B, WRAP, BOX]),
    ]


def test_verbatim_closes_a_trace_that_ends_on_a_long_thought_with_its_own_box():
    closing = DialogueDraft(trace="t", problem=PROBLEM, messages=(message(LONG, PRODUCT_A, BOX), message(SHORT)))
    found = run(closing, rewriter="verbatim")
    assert (found.outcome, found.dialogue[-1]) == ("repaired", (SHORT, BOX, "</answer>"))
    boxless = DialogueDraft(trace="t", problem=PROBLEM, messages=(message(LONG, PRODUCT_A), message(SHORT)))
    assert run(boxless, rewriter="verbatim").outcome == "empty_message"


@pytest.mark.parametrize(
    ("texts", "outcome", "detail"),
    [
        (("ok", "\\boxed{5}"), "wrong_answer", r"mismatch: '\\boxed{5}', gold '4'"),
        (("\\boxed{4}", "done"), "no_answer", "no_answer"),
        (("", "\\boxed{4}"), "empty_message", "a short message has no text"),
        (("</answer>", "\\boxed{4}"), "role_tags", "a short message holds </answer>"),
    ],
)
def test_what_fails_is_dropped_with_its_reason(texts, outcome, detail):
    found = run(rewriter=fixed(*texts))
    assert (found.outcome, found.dialogue) == (outcome, ()) and detail.replace("\\\\", "\\") in found.detail.replace(
        "\\\\", "\\"
    )


def test_a_later_try_and_a_closing_answer_count_as_repaired():
    assert run(rewriter=fixed("ok", BOX, tries=2)).outcome == "repaired"
    closing = DialogueDraft(trace="t", problem=PROBLEM, messages=(message(LONG, PRODUCT_A, PRODUCT_B), message(SHORT)))
    assert run(closing).outcome == "repaired" and run(closing).dialogue[-1] == (
        SHORT,
        f"{TOTAL_A}\n\n{TOTAL_B}\n\n{BOX}",
        "</answer>",
    )


def test_the_instruct_rewriter_repairs_and_gives_up():
    reply = '{"short 1": "The total is 8.", "short 2": "So 8+6 ends in 4: \\\\boxed{4}"}'
    wrong = reply.replace("boxed{4}", "boxed{3}")
    found = run(rewriter="instruct", engine=ScriptedEngine(wrong, reply))
    assert (found.outcome, found.tries, found.dialogue[1]) == ("repaired", 2, (SHORT, "The total is 8.", "</rethink>"))
    given_up = run(rewriter="instruct", engine=ScriptedEngine(wrong), tries=2)
    assert (given_up.outcome, given_up.tries) == ("wrong_answer", 2)
    assert run(rewriter="instruct", engine=ScriptedEngine("no json")).outcome == "bad_json"
    assert issubclass(NoUsableAnswer, LongShortError)


def test_role_tags_in_what_stays_long_drop_the_trace():
    spoofed = DialogueDraft(trace="t", problem=PROBLEM, messages=(message(LONG, "a </rethink> b"), message(SHORT, BOX)))
    assert run(spoofed, rewriter=fixed(BOX)).outcome == "role_tags"
