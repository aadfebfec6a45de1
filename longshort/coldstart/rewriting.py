"""The short thoughts written anew, as short answers between the long thoughts that were kept (arXiv 2505.11827, section 3.3).

A rewriter is one coroutine `(draft, context) -> one text per short message`, and one line in `REWRITERS`. What it writes is
checked: the stitched dialogue must still reach the gold answer, and no message may hold a role tag.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from longshort.coldstart.asking import NoUsableAnswer
from longshort.coldstart.rewriting_instruct import DraftMessage, rewrite_by_instruct
from longshort.dialogue.answers import last_boxed
from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK, ROLE_TAGS
from longshort.dialogue.grading import GradingPool
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT, Problem

KEPT, REPAIRED = "kept", "repaired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A partitioned trace: its messages in order, the short ones not written yet."""

    problem: Problem
    messages: tuple[DraftMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a rewriter may use: settings, an engine (or None), the grading pool, a seed."""

    settings: RewriteConfig
    engine: Any
    pool: GradingPool
    seed: int


Written = tuple[list[str], int]
"""One text per short message, and how many tries it took."""
Message = tuple[str, str, str]


async def instruct(draft: Draft, context: Context) -> Written:
    """An instruct model writes them, knowing the question, the kept thoughts and only the kinds of the dropped ones."""
    settings = context.settings
    rewritten = await rewrite_by_instruct(
        draft.problem.question,
        draft.messages,
        context.engine,
        tries=settings.tries,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=context.seed,
        check_answer=lambda text: _right(draft.problem, text, context.pool),
    )
    return list(rewritten.texts), rewritten.tries


async def verbatim(draft: Draft, context: Context) -> Written:
    """The dropped thoughts as they were: nothing is shortened. The control that tells rewriting from partitioning.

    A trace that ends on a long thought is closed by repeating its last box.
    """
    box = last_boxed("".join(thought.text for message in draft.messages for thought in message.thoughts))
    closing = f"\\boxed{{{box}}}" if box else ""
    return [text_of(message) or closing for message in draft.messages if message.role == SHORT], 1


async def miniature(draft: Draft, context: Context) -> Written:
    """The miniature's rules: the totals that are missing, and some of the rest."""
    from longshort.miniature.rewriting import short_texts

    kept = [(message.role, [thought.text for thought in message.thoughts]) for message in draft.messages]
    return short_texts(draft.problem, kept, random.Random(context.seed), context.settings.redundancy), 1


REWRITERS: dict[str, Callable[[Draft, Context], Awaitable[Written]]] = {
    "instruct": instruct,
    "verbatim": verbatim,
    "miniature": miniature,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """A dialogue as (role, text, closing tag) messages, ready for `protocols.demonstration`; or why it was dropped.

    `outcome` is `kept`, `repaired` (a later try, or a closing answer that the trace lacked), or a reason: `wrong_answer`, `no_answer`,
    `role_tags`, `empty_message`, `bad_json`, `bad_answer`, `length`, `context`, or `grading_<verdict>` where the grader could not decide.
    """

    outcome: str
    detail: str = ""
    tries: int = 0
    dialogue: tuple[Message, ...] = ()


async def rewrite(draft: Draft, rewriter: Callable[[Draft, Context], Awaitable[Written]], context: Context) -> Stitched:
    """Write the short messages, stitch, and verify against the gold answer; what fails is dropped with its reason."""
    try:
        texts, tries = await rewriter(draft, context)
    except NoUsableAnswer as error:
        return Stitched(outcome=error.reason, detail=str(error), tries=error.tries)
    dialogue = stitch(draft.messages, texts)
    for role, text, _ in dialogue:
        if not text:
            return Stitched(outcome="empty_message", detail=f"a {role} message has no text", tries=tries)
        if found := [tag for tag in ROLE_TAGS if tag in text]:
            return Stitched(outcome="role_tags", detail=f"a {role} message holds {', '.join(found)}", tries=tries)
    verdict = await context.pool.grade(draft.problem.answer, dialogue[-1][1])
    if not verdict.correct:
        outcome = {"no_answer": "no_answer", "mismatch": "wrong_answer"}.get(
            verdict.reason, f"grading_{verdict.reason}"
        )
        return Stitched(
            outcome=outcome,
            detail=f"{verdict.reason}: {dialogue[-1][1][-80:]!r}, gold {draft.problem.answer!r}",
            tries=tries,
        )
    closed = not draft.messages[-1].thoughts
    return Stitched(outcome=REPAIRED if tries > 1 or closed else KEPT, tries=tries, dialogue=tuple(dialogue))


def stitch(messages: Sequence[DraftMessage], texts: Sequence[str]) -> list[Message]:
    """Long messages as they were, short ones from `texts`, each with the tag that closes it: `</rethink>` wherever a long one follows."""
    written = iter(texts)
    dialogue = []
    for index, message in enumerate(messages):
        if message.role == LONG:
            dialogue.append((LONG, text_of(message), END_THINK))
        else:
            dialogue.append((SHORT, next(written).strip(), END_ANSWER if index == len(messages) - 1 else RETHINK))
    return dialogue


def text_of(message: DraftMessage) -> str:
    """A message's thoughts joined, without white space around them."""
    return "".join(thought.text for thought in message.thoughts).strip()


async def _right(problem: Problem, text: str, pool: GradingPool) -> bool:
    return (await pool.grade(problem.answer, text)).correct
