"""The short messages, written anew between the long thoughts that were kept (arXiv 2505.11827, section 3.3).

A rewriter is one coroutine `(draft, context) -> (one text per short message, tries)` and one line in `REWRITERS`. Its
texts are checked: no message may hold a role tag, and the dialogue must still reach the gold answer. The paper trusts
what comes back.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from longshort.coldstart.asking import Fault, NoUsableAnswer, ask_json
from longshort.coldstart.records import KEPT, REPAIRED, DialogueDraft, DraftMessage, RewriteLine
from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK, ROLE_TAGS
from longshort.dialogue.rollout import Engine
from longshort.grading.boxes import last_boxed
from longshort.grading.pool import GradingPool
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT

Message = tuple[str, str, str]
"""(role, text, closing tag)"""
Written = tuple[list[str], int]
"""One text per short message, and the number of tries."""

_MANGLED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]|\n(?:eq|abla|otin)\b")
r"""What JSON makes of `\boxed`, `\frac`, `\times`, `\right`, `\neq` with a single backslash: control characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteContext:
    """What a rewriter may use."""

    settings: RewriteConfig
    engine: Engine | None
    """The instruct model; None unless `coldstart.rewrite.rewriter` is "instruct"."""
    pool: GradingPool
    seed: int


async def instruct(draft: DialogueDraft, context: RewriteContext) -> Written:
    """Let an instruct model write them from the question, the long thoughts and the kinds of the dropped ones.

    The dropped words must not leak into the short turns, or those would be long ones in disguise. Raises NoUsableAnswer
    with the last try's reason: "bad_json", "bad_answer", "wrong_answer", "length" or "context".
    """
    assert context.engine is not None, "the step starts the engine for this rewriter"
    settings, count = context.settings, sum(message.role == SHORT for message in draft.messages)

    async def check(answer: Any) -> list[str]:
        texts = check_texts(answer, count)
        if not (await context.pool.grade(draft.problem.answer, texts[-1])).correct:
            # The gold answer is not given: a model that knew it would write it under any reasoning.
            raise Fault("the final answer is wrong; recompute it from the long thoughts", "wrong_answer")
        return texts

    return await ask_json(
        context.engine,
        rewriting_request(draft.problem.question, draft.messages),
        check,
        tries=settings.tries,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=context.seed,
    )


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
    """Write the short messages, stitch the dialogue and check it against the gold answer; return what came of it."""
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


def rewriting_request(question: str, dialogue: Sequence[DraftMessage]) -> str:
    """Return the prompt: problem, long texts, kinds of the dropped thoughts, and the form of the answer."""
    parts, counts = [], {LONG: 0, SHORT: 0}
    for message in dialogue:
        counts[message.role] += 1
        name = f"{message.role} {counts[message.role]}"
        if message.role == LONG:
            parts.append(f"[{name}]\n{message.text}")
        elif message.thoughts:
            kinds = ", ".join(thought.kind for thought in message.thoughts)
            parts.append(f"[{name}: for you to write; it stands for thoughts of these kinds: {kinds}]")
        else:
            parts.append(f"[{name}: for you to write; a closing short answer with the boxed result]")
    names = [f"short {number}" for number in range(1, counts[SHORT] + 1)]
    form = ", ".join(f'"{name}": "…"' for name in names)
    return (
        "A long thinker and a short thinker solve a math problem together. The long thinker's messages are given; "
        "write the short thinker's. Each takes up the message before it and says, as briefly as it can, what leads "
        "to the message behind it.\n\n"
        f"Problem:\n{question}\n\nDialogue:\n" + "\n\n".join(parts) + "\n\n"
        f"Answer with JSON only: {{{form}}}. Put the final answer in \\boxed{{}} in {names[-1]}, and use \\boxed "
        "nowhere else. Write no tags such as <think>. In JSON each backslash is written twice: \\\\boxed{}."
    )


def check_texts(answer: Any, count: int) -> list[str]:
    r"""Return the `count` short texts of an answer {"short 1": "…", …}; raise Fault with what is wrong.

    Each is text without a role tag; the last, and no other, has a \boxed{}.
    """
    names = [f"short {number}" for number in range(1, count + 1)]
    if not isinstance(answer, dict) or list(answer) != names:
        given = ", ".join(map(brief, answer)) if isinstance(answer, dict) else brief(answer)
        raise Fault(
            f"the JSON object must have exactly the keys {', '.join(names)}, in this order, not {given or 'none'}"
        )
    for name, text in answer.items():
        if not isinstance(text, str) or not text.strip():
            raise Fault(f"{name} must be non-empty text, not {brief(text)}")
        if tags := [tag for tag in ROLE_TAGS if tag in text]:
            raise Fault(f"{name} must not contain {', '.join(tags)}")
        if _MANGLED.search(text):
            raise Fault(
                f"{name} has a control character where a backslash was not doubled: "
                "write \\\\boxed, \\\\frac, \\\\times"
            )
        if name != names[-1] and "\\boxed" in text:
            raise Fault(f"{name} must not contain \\boxed: only {names[-1]} gives the final answer")
    if last_boxed(answer[names[-1]]) is None:
        raise Fault(f"{names[-1]} must give the final answer in \\boxed{{}}")
    return [text.strip() for text in answer.values()]
