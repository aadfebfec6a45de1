"""The short messages, written anew between the long thoughts that were kept (arXiv 2505.11827, section 3.3).

A rewriter is one coroutine `(draft, context) -> (one text per short message, tries)` and one line in `REWRITERS`. Its
texts are checked: no message may hold a role tag, and the dialogue must still reach the gold answer. The paper trusts
what comes back.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from longshort.coldstart.asking import NoUsableAnswer
from longshort.coldstart.records import KEPT, REPAIRED, DialogueDraft, DraftMessage, RewriteLine
from longshort.coldstart.rewriting_instruct import ask_for_texts
from longshort.dialogue.answers import last_boxed
from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK, ROLE_TAGS
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import Engine
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT

Message = tuple[str, str, str]
"""(role, text, closing tag)"""
Written = tuple[list[str], int]
"""One text per short message, and the number of tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteContext:
    """What a rewriter may use."""

    settings: RewriteConfig
    engine: Engine | None
    """The instruct model; None unless `coldstart.rewrite.rewriter` is "instruct"."""
    pool: GradingPool
    seed: int


async def instruct(draft: DialogueDraft, context: RewriteContext) -> Written:
    """Let an instruct model write them from the question, the kept thoughts and the kinds of the dropped ones."""
    assert context.engine is not None, "the step starts the engine for this rewriter"
    return await ask_for_texts(draft, context.engine, context.settings, context.seed, context.pool)


async def verbatim(draft: DialogueDraft, context: RewriteContext) -> Written:
    """Keep the dropped thoughts as they were: the control that tells rewriting from partitioning.

    A trace that ends on a long thought is closed by repeating its last box.
    """
    box = last_boxed("".join(thought.text for message in draft.messages for thought in message.thoughts))
    closing = f"\\boxed{{{box}}}" if box else ""
    return [message.text or closing for message in draft.messages if message.role == SHORT], 1


async def miniature(draft: DialogueDraft, context: RewriteContext) -> Written:
    """Apply the miniature's rules: write the totals that are missing, and some of the other thoughts."""
    from longshort.miniature.rewriting import short_texts

    kept = [(message.role, [thought.text for thought in message.thoughts]) for message in draft.messages]
    return short_texts(draft.problem, kept, random.Random(context.seed), context.settings.redundancy), 1


Rewriter = Callable[[DialogueDraft, RewriteContext], Awaitable[Written]]
REWRITERS: dict[str, Rewriter] = {"instruct": instruct, "verbatim": verbatim, "miniature": miniature}


async def rewrite(draft: DialogueDraft, rewriter: Rewriter, context: RewriteContext) -> RewriteLine:
    """Write the short messages, stitch the dialogue and verify it against the gold answer; the line says what came of
    it."""
    try:
        texts, tries = await rewriter(draft, context)
    except NoUsableAnswer as error:
        return RewriteLine(id=draft.trace, outcome=error.reason, detail=str(error), tries=error.tries, dialogue=())
    dialogue = stitch(draft.messages, texts)
    outcome, detail = await _fault(draft, dialogue, context.pool)
    if outcome:
        return RewriteLine(id=draft.trace, outcome=outcome, detail=detail, tries=tries, dialogue=())
    closed = not draft.messages[-1].thoughts
    outcome = REPAIRED if tries > 1 or closed else KEPT
    return RewriteLine(id=draft.trace, outcome=outcome, detail="", tries=tries, dialogue=tuple(dialogue))


async def _fault(draft: DialogueDraft, dialogue: Sequence[Message], pool: GradingPool) -> tuple[str, str]:
    """Return the reason to drop a dialogue and its details; two empty strings when nothing is wrong."""
    for role, text, _ in dialogue:
        if not text:
            return "empty_message", f"a {role} message has no text"
        if tags := [tag for tag in ROLE_TAGS if tag in text]:
            return "role_tags", f"a {role} message holds {', '.join(tags)}"
    answer = dialogue[-1][1]
    verdict = await pool.grade(draft.problem.answer, answer)
    if verdict.correct:
        return "", ""
    outcome = {"no_answer": "no_answer", "mismatch": "wrong_answer"}.get(verdict.reason, f"grading_{verdict.reason}")
    return outcome, f"{verdict.reason}: {answer[-80:]!r}, gold {draft.problem.answer!r}"


def stitch(messages: Sequence[DraftMessage], texts: Sequence[str]) -> list[Message]:
    """Return the dialogue: long messages as they were, short ones from `texts`, each with its closing tag."""
    written, dialogue = iter(texts), []
    for index, message in enumerate(messages):
        if message.role == LONG:
            dialogue.append((LONG, message.text, END_THINK))
        else:
            dialogue.append((SHORT, next(written).strip(), END_ANSWER if index == len(messages) - 1 else RETHINK))
    return dialogue
