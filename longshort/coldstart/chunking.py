"""Cuts a trace into coarse thoughts: paragraphs, grouped by an instruct model or by rules (arXiv 2505.11827, section
3.1).

The published checker accepts splits that do not cover the trace. Here joined thoughts are the trace, byte for byte, and
where a model cannot split it, the rules do, and the line says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from reprlib import repr as brief
from typing import Any

from longshort.coldstart.asking import NoUsableAnswer, ask_json
from longshort.coldstart.records import Refused, Thought
from longshort.dialogue.encoding import END_THINK
from longshort.dialogue.rollout import Engine
from longshort.recipe.coldstart import ChunkConfig

PACK_ABOVE = 24
"""Up to this many paragraphs, each is a thought of its own; a longer trace is packed."""
SETTLED = 200
"""Characters of a packed thought before a cue may end it: a burst of "Wait." and "Hmm." is one thought."""
OPENING = 200
"""Characters of a thought that may name its kind."""
TEMPERATURE = 0.1
"""Of the splitting model, as in the published code."""
Block = tuple[int, int, str]
"""(first step, last step, kind), steps counted from 1, both ends included: the paper's block."""

_CUES = (
    # kind, whether it begins a new thought of a long trace, how its paragraph opens
    ("alternative", True, r"(?:or |but )?(?:alternatively|another|perhaps another|a different)"),
    ("verification", True, r"[^\n.:?!]{0,80}?\b(?:double[- ]?check|check|verify|confirm|make sure)"),
    ("reconsideration", True, r"(?:but |so )?(?:wait|hmm|hold on|actually)"),
    (
        "planning",
        True,
        r"(?:(?:now|first|next|okay|alright|so|but),? )?"
        r"(?:let me (?:think|try|see)|(?:i|we) need to|to (?:find|solve|do))",
    ),
    ("calculation", True, r"(?:so |but )?(?:now|first|second|next|step|case|okay|alright)"),
    ("conclusion", True, r"final answer|in conclusion|to (?:summarize|recap)"),
    ("conclusion", False, r"therefore|thus|hence|so,? the"),
)
"""The first match wins. The words come from 120 traces of R1 on AMC 2023 and one on AIME. "So," and "Therefore," open
every sixth paragraph there, but they carry on the thought they are in."""
_OPENINGS = tuple((kind, begins, re.compile(rf"[\W\d]*(?:{cue})\b", re.IGNORECASE)) for kind, begins, cue in _CUES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """A trace cut into thoughts; the fields are those of ChunkLine."""

    thoughts: tuple[Thought, ...]
    splitter: str
    why: str
    tries: int


async def cut(question: str, text: str, engine: Engine | None, settings: ChunkConfig, seed: int) -> Chunks:
    """Cut a trace into 2 to `settings.max_thoughts` thoughts, with `engine` or, without one, by the rules.

    Raises Refused ("one_paragraph") where there is nothing to cut.
    """
    steps, most = split_steps(text), settings.max_thoughts
    if len(steps) < 2:
        message = f"the trace has {len(text)} characters and no blank line between two of them: {text[:80]!r}"
        raise Refused("one_paragraph", message)
    if engine is None:
        chunks = Chunks(thoughts=by_rules(steps, most), splitter="rules", why="chunk.splitter is rules", tries=0)
    else:
        chunks = await _by_instruct(question, steps, engine, settings, seed)
    made = len(chunks.thoughts)
    if "".join(thought.text for thought in chunks.thoughts) != text or not 2 <= made <= most:
        raise RuntimeError(f"{chunks.splitter} made {made} thoughts of {len(steps)} paragraphs that are not the trace")
    return chunks


def split_steps(text: str) -> list[str]:
    """Return the paragraphs, each with the blank lines behind it; a line of nothing but white space is blank.

    "One.\\n\\nTwo.\\r\\n \\r\\n  Three." -> ["One.\\n\\n", "Two.\\r\\n \\r\\n", "  Three."]
    """
    gaps = (gap for gap in re.finditer(r"(?<=\S)\s+(?=\S)", text) if gap.group().count("\n") > 1)
    cuts = [gap.start() + gap.group().rindex("\n") + 1 for gap in gaps]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def by_rules(steps: Sequence[str], max_thoughts: int) -> tuple[Thought, ...]:
    """Make each paragraph of a short trace a thought, pack a long trace from cue to cue; at most `max_thoughts`."""
    pieces = list(steps)
    if len(pieces) > min(PACK_ABOVE, max_thoughts):
        packed = _packed(steps)
        pieces = packed if len(packed) > 1 else pieces
    while len(pieces) > max_thoughts:
        shortest = min(range(len(pieces) - 1), key=lambda at: len(pieces[at]) + len(pieces[at + 1]))
        pieces[shortest : shortest + 2] = [pieces[shortest] + pieces[shortest + 1]]
    kinds = ["problem understanding", *("answer" if "\\boxed" in piece else _cue(piece)[0] for piece in pieces[1:])]
    return tuple(Thought(text=piece, kind=kind) for piece, kind in zip(pieces, kinds, strict=True))


def _packed(steps: Sequence[str]) -> list[str]:
    """Join paragraphs; a cue begins a new thought once the present one is SETTLED, and so does the end of thinking."""
    pieces = [steps[0]]
    for before, step in pairwise(steps):
        if END_THINK in before or (len(pieces[-1]) >= SETTLED and _cue(step)[1]):
            pieces.append(step)
        else:
            pieces[-1] += step
    return pieces


def _cue(text: str) -> tuple[str, bool]:
    """Return the kind that the text's opening names, and whether such an opening begins a new thought."""
    matches = ((kind, begins) for kind, begins, opening in _OPENINGS if opening.match(text, 0, OPENING))
    return next(matches, ("calculation", False))


async def _by_instruct(question: str, steps: list[str], engine: Engine, settings: ChunkConfig, seed: int) -> Chunks:
    """Return the model's split, or the rules' with the reason why the model's could not be used."""

    async def check(answer: Any) -> list[Block]:
        return check_blocks(answer, len(steps), settings.max_thoughts)

    request = splitting_request(question, steps, settings.max_thoughts)
    limits: dict[str, int] = {"tries": settings.tries, "max_tokens": settings.max_tokens}
    try:
        blocks, tries = await ask_json(engine, request, check, **limits, temperature=TEMPERATURE, seed=seed)
    except NoUsableAnswer as failure:
        why = f"instruct failed: {failure.reason} after {failure.tries} tries: {failure.faults[-1]}"
        thoughts = by_rules(steps, settings.max_thoughts)
        return Chunks(thoughts=thoughts, splitter="rules", why=why, tries=failure.tries)
    thoughts = tuple(Thought(text="".join(steps[start - 1 : end]), kind=kind) for start, end, kind in blocks)
    return Chunks(thoughts=thoughts, splitter="instruct", why="chunk.splitter is instruct", tries=tries)


def splitting_request(question: str, steps: Sequence[str], max_thoughts: int) -> str:
    """Return the prompt: the problem, the numbered steps, and the paper's format of answer."""
    numbered = "\n".join(f"Step {number}: {step.strip()}" for number, step in enumerate(steps, 1))
    return (
        "Below are a math problem and a student's solution in numbered steps. Group consecutive steps into the coarse "
        "thoughts that the student had, such as understanding the problem, planning, each major calculation, "
        "verification, an alternative, the answer.\n\n"
        f"Problem:\n{question}\n\nSolution:\n{numbered}\n\n"
        'Answer with JSON only: {"block 1": {"start": 1, "end": 3, "block type": "problem understanding"}, '
        '"block 2": {"start": 4, …}, …}. Start and end are step numbers, both included. Block 1 starts at step 1, each '
        f"next block at the step behind the last one's end, the last block ends at step {len(steps)}. Write 2 to "
        f"{max_thoughts} blocks. A block type is a broad category in a few words."
    )


def check_blocks(answer: Any, number_of_steps: int, max_thoughts: int) -> list[Block]:
    """Return the blocks of an answer that covers every step exactly once, in order; else ValueError, in words that help
    the model.

    {"block 1": {"start": 1, "end": 3, "block type": "planning"}, "block 2": …} -> [(1, 3, "planning"), …]
    """
    if not isinstance(answer, dict):
        raise ValueError(f"the answer must be one JSON object with the keys block 1, block 2, …, not {brief(answer)}")
    if not 2 <= len(answer) <= max_thoughts:
        raise ValueError(f"there must be 2 to {max_thoughts} blocks, not {len(answer)}")
    blocks: list[Block] = []
    for number, (key, block) in enumerate(answer.items(), 1):
        if key != f"block {number}":
            raise ValueError(f'key {number} must be "block {number}", not {brief(key)}')
        due = blocks[-1][1] + 1 if blocks else 1
        blocks.append(_block(key, block, due, number_of_steps))
    if (end := blocks[-1][1]) != number_of_steps:
        raise ValueError(
            f"the last block, block {len(blocks)}, ends at step {end}, but the last step is {number_of_steps}"
        )
    return blocks


def _block(key: str, block: Any, due: int, number_of_steps: int) -> Block:
    """Return one block, which must start at the step `due`."""
    if not isinstance(block, dict) or not {"start", "end", "block type"} <= block.keys():
        raise ValueError(f'{key} must be an object with "start", "end" and "block type", not {brief(block)}')
    start, end, kind = block["start"], block["end"], block["block type"]
    for name, step in (("start", start), ("end", end)):
        if type(step) is not int:  # isinstance would let True pass
            raise ValueError(f'{key}: "{name}" must be a whole number, not {brief(step)}')
    if start != due:
        raise ValueError(
            f"{key} starts at step {start}, but must start at step {due}: blocks leave no step out and share none"
        )
    if end < start:
        raise ValueError(f"{key} is empty: it starts at step {start} and ends at step {end}")
    if end > number_of_steps:
        raise ValueError(f"{key} ends at step {end}, but the last step is {number_of_steps}")
    if not isinstance(kind, str) or not kind.strip() or not kind.strip().isprintable():
        raise ValueError(f'{key}: "block type" must be one line of text, not {brief(kind)}')
    return start, end, kind.strip()
