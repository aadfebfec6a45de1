"""The rule-based rewriter of the miniature: what an instruct model would write in place of the dropped thoughts, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

from longshort.miniature.world import BOXED, CHECK, GAP, TOTAL, WRAP, total_thoughts
from longshort.types import SHORT, LongShortError, Problem


def short_texts(
    problem: Problem, messages: Sequence[tuple[str, Sequence[str]]], rng: random.Random, redundancy: float
) -> list[str]:
    """One text per short message of (role, its thoughts): the running totals that it stands for, with `redundancy` a check or a wrap-up.

    The last one also writes whatever total is still missing, and the box. A total whose product was dropped too is written all the same:
    whether a model can learn to guess it is the partition's business. Raises LongShortError for thoughts of another world.
    """
    totals, written, texts = total_thoughts(problem), 0, []
    for index, (role, thoughts) in enumerate(messages):
        dropped = [thought.strip() for thought in thoughts]
        theirs = sum(thought.startswith(TOTAL) for thought in dropped)
        if role != SHORT:
            written += theirs
            continue
        last = index == len(messages) - 1
        upto = len(totals) if last else written + theirs
        lines = totals[written:upto]
        optional = [thought for thought in dropped if thought.startswith((CHECK + TOTAL, WRAP))]
        lines += [thought for thought in optional if rng.random() < redundancy]
        if last:
            lines.append(f"{BOXED}{problem.answer}}}")
        if not lines and not dropped:
            raise LongShortError(
                f"problem {problem.id}: a short message between two long ones stands for no thought at all"
            )
        texts.append(GAP.join(lines or dropped[:1]))
        written = upto
    return texts
