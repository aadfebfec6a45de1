"""Short messages from an instruct model (arXiv 2505.11827, section 3.3).

The model reads the problem, the long thoughts as they are, and of the dropped thoughts only their kinds: their words
must not leak into the short turns, or those would be long ones in disguise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from reprlib import repr as brief
from typing import Any

from longshort.coldstart.asking import Fault, ask_json
from longshort.coldstart.records import DialogueDraft, DraftMessage
from longshort.dialogue.answers import last_boxed
from longshort.dialogue.encoding import ROLE_TAGS
from longshort.dialogue.grading import GradingPool
from longshort.dialogue.rollout import Engine
from longshort.recipe.coldstart import RewriteConfig
from longshort.types import LONG, SHORT

_MANGLED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]|\n(?:eq|abla|otin)\b")
r"""What JSON makes of `\boxed`, `\frac`, `\times`, `\right`, `\neq` where the backslash was not doubled: control
characters."""


async def ask_for_texts(
    draft: DialogueDraft, engine: Engine, settings: RewriteConfig, seed: int, pool: GradingPool
) -> tuple[list[str], int]:
    """Return the short messages in the model's words, the last of which gives the gold answer, and the number of tries.

    Raises NoUsableAnswer with the last try's reason: "bad_json", "bad_answer", "wrong_answer", "length" or "context".
    """
    count = sum(message.role == SHORT for message in draft.messages)

    async def check(answer: Any) -> list[str]:
        texts = check_texts(answer, count)
        if not (await pool.grade(draft.problem.answer, texts[-1])).correct:
            # The gold answer is not given: a model that knew it would write it under any reasoning.
            raise Fault("the final answer is wrong; recompute it from the long thoughts", "wrong_answer")
        return texts

    return await ask_json(
        engine,
        rewriting_request(draft.problem.question, draft.messages),
        check,
        tries=settings.tries,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=seed,
    )


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
