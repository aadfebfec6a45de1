"""The miniature's rewriter: rules that stand in for an instruct model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from longshort.miniature.world import BOXED, CHECK, GAP, TOTAL, WRAP, total_thoughts
from longshort.types import SHORT, LongShortError, Problem


def short_texts(
    problem: Problem, messages: Sequence[tuple[str, Sequence[str]]], rng: random.Random, redundancy: float
) -> list[str]:
    """Return a text for each short message of (role, thoughts): its running totals, some of its checks and wrap-ups.

    `redundancy` is the share of the optional thoughts that survive. The last message also has the totals that are still
    missing, and the box. A total is written even if its product was dropped; whether a model can learn to guess it
    depends on the partition. Raises LongShortError for thoughts of another world.
    """
    totals, written, texts = total_thoughts(problem), 0, []
    for index, (role, thoughts) in enumerate(messages):
        dropped = [thought.strip() for thought in thoughts]
        done = written + sum(thought.startswith(TOTAL) for thought in dropped)
        if role != SHORT:
            written = done
            continue
        last = index == len(messages) - 1
        done = len(totals) if last else done
        lines = totals[written:done]
        optional = [thought for thought in dropped if thought.startswith((CHECK + TOTAL, WRAP))]
        lines += [thought for thought in optional if rng.random() < redundancy]
        if last:
            lines.append(f"{BOXED}{problem.answer}}}")
        if not lines and not dropped:
            raise LongShortError(f"problem {problem.id}: a short message between two long ones covers no thought")
        texts.append(GAP.join(lines or dropped[:1]))
        written = done
    return texts
