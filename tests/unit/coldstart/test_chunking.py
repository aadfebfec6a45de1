"""Traces into thoughts: nothing is lost, the rules' thoughts are sensible, a model's split is checked and has a
fallback."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.coldstart import chunking
from longshort.coldstart.chunking import by_rules, check_blocks, cut, split_steps
from longshort.coldstart.records import Refused, Thought
from longshort.recipe.coldstart import ChunkConfig
from tests.support.scripted_engine import ScriptedEngine

BLOCKS = {
    "block 1": {"start": 1, "end": 1, "block type": "problem understanding"},
    "block 2": {"start": 2, "end": 3, "block type": " calculation "},
}
TRACE = "Two and two.\n\nIt is 4.\n\n\\boxed{4}"


@pytest.mark.parametrize(
    "text, steps",
    [
        ("One.\n\nTwo.", ["One.\n\n", "Two."]),
        ("One.\nstill one.\n\n\n\n  Two.\n", ["One.\nstill one.\n\n\n\n", "  Two.\n"]),
        ("One.\r\n\r\nTwo.\r\n \t\r\nThree.", ["One.\r\n\r\n", "Two.\r\n \t\r\n", "Three."]),
        ("\n\n \nOne.\n\nTwo.\n\n", ["\n\n \nOne.\n\n", "Two.\n\n"]),
        ("One.\n\x0c\nTwo.\n\u00a0\nThree.", ["One.\n\x0c\n", "Two.\n\u00a0\n", "Three."]),
        ("a lone\r\rreturn", ["a lone\r\rreturn"]),
        ("", [""]),
        (" \n\n ", [" \n\n "]),
    ],
)
def test_paragraphs_end_at_blank_lines_and_keep_them(text, steps):
    assert split_steps(text) == steps


@given(
    st.lists(
        st.sampled_from(["x", "é", "语", "\n", "\r\n", "\r", " ", "\t", "\x0c", "\u2028", "\u00a0", "\x85", "</think>"])
    ).map("".join)
)
def test_steps_joined_are_the_text_and_each_has_one_paragraph(text):
    steps = split_steps(text)
    assert "".join(steps) == text
    if text.strip():
        assert all(step.strip() and step == split_steps(step)[0] for step in steps)


@given(st.text())
def test_any_text_survives_splitting(text):
    assert "".join(split_steps(text)) == text


def test_in_a_short_trace_each_paragraph_is_a_thought_whose_opening_names_its_kind():
    openings = {
        "Okay, what is asked?": "problem understanding",
        "Let me think about a plan.": "planning",
        "7+6=13.": "calculation",
        "Now 13 mod 10.": "calculation",
        "**Wait, but b is 6?": "reconsideration",
        "Hmm, fine.": "reconsideration",
        "Wait, let me double-check that.": "verification",
        "Check a: 7*3=1.": "verification",
        "12. **Alternatively, check by hand.": "alternative",
        "Another way is to count.": "alternative",
        "Waiting costs nothing.": "calculation",
        "Therefore the digit is 3.": "conclusion",
        "So the last digit is 3.": "conclusion",
        "So the last digit is \\boxed{3}": "answer",
    }
    thoughts = by_rules([opening + "\n\n" for opening in openings], 64)
    assert {thought.text.strip(): thought.kind for thought in thoughts} == openings


def paragraphs(*openings: str) -> list[str]:
    """Each opening followed by x up to 150 characters."""
    return [f"{opening} ".ljust(148, "x") + "\n\n" for opening in openings]


def test_a_long_trace_is_packed_from_cue_to_cue():
    steps = paragraphs(
        "Okay", "a", "b", "Wait", "Hmm", "c", "Alternatively", *["d"] * 17, "So", "Therefore", "Now", "e"
    )
    thoughts = by_rules(steps, 64)
    assert [len(thought.text) // 150 for thought in thoughts] == [3, 3, 20, 2]  # "Hmm" came before "Wait" was settled
    assert [thought.kind for thought in thoughts] == [
        "problem understanding",
        "reconsideration",
        "alternative",
        "calculation",
    ]
    assert "".join(thought.text for thought in thoughts) == "".join(steps)


def test_the_end_of_thinking_ends_a_thought():
    thinking = [*paragraphs(*["a"] * 24), "Hence.\n</think>\n\n"]
    thoughts = by_rules([*thinking, "The sum is\n\n", "\\boxed{4}"], 64)
    assert [thought.text for thought in thoughts] == ["".join(thinking), "The sum is\n\n\\boxed{4}"]


def test_too_many_thoughts_are_merged_smallest_neighbours_first():
    texts = ["12345", "1", "123", "12", "1", "1234567"]
    assert [thought.text for thought in by_rules(texts, 4)] == ["12345", "1123", "121", "1234567"]
    assert [thought.text for thought in by_rules(texts, 3)] == ["12345", "1123121", "1234567"]
    assert [thought.text for thought in by_rules(texts, 2)] == ["123451123121", "1234567"]


def test_a_long_trace_without_any_cue_is_still_cut():
    assert len(by_rules(["x = 1\n\n"] * 100, 64)) == 64


def test_a_split_that_covers_every_step_is_accepted():
    assert check_blocks(BLOCKS, 3, 64) == [(1, 1, "problem understanding"), (2, 3, "calculation")]


def changed(name, **fields):
    return BLOCKS | {name: BLOCKS[name] | {key.replace("_", " "): value for key, value in fields.items()}}


@pytest.mark.parametrize(
    "answer, words",
    [
        ([BLOCKS], "must be one JSON object"),
        ({}, "2 to 64 blocks, not 0"),
        ({"block 1": {"start": 1, "end": 3, "block type": "all"}}, "2 to 64 blocks, not 1"),
        ({f"block {i}": {"start": i, "end": i, "block type": "x"} for i in range(1, 66)}, "2 to 64 blocks, not 65"),
        (dict(reversed(BLOCKS.items())), "key 1 must be \"block 1\", not 'block 2'"),
        ({"block 1": BLOCKS["block 1"], "block2": BLOCKS["block 2"]}, 'key 2 must be "block 2"'),
        (BLOCKS | {"block 2": [2, 3]}, "block 2 must be an object"),
        (
            BLOCKS | {"block 2": {"start": 2, "end": 3}},
            'block 2 must be an object with "start", "end" and "block type"',
        ),
        (changed("block 1", start="1"), "block 1: \"start\" must be a whole number, not '1'"),
        (changed("block 1", start=True), 'block 1: "start" must be a whole number, not True'),
        (changed("block 1", end=1.0), 'block 1: "end" must be a whole number, not 1.0'),
        (changed("block 1", start=2, end=2), "block 1 starts at step 2, but must start at step 1"),
        (changed("block 2", start=3), "block 2 starts at step 3, but must start at step 2"),
        (changed("block 2", start=1), "block 2 starts at step 1, but must start at step 2"),
        (changed("block 2", end=1), "block 2 is empty"),
        (changed("block 2", end=2), "the last block, block 2, ends at step 2, but the last step is 3"),
        (changed("block 2", end=4), "block 2 ends at step 4, but the last step is 3"),
        (changed("block 2", block_type=" "), 'block 2: "block type" must be one line of text'),
        (changed("block 2", block_type=None), 'block 2: "block type" must be one line of text'),
        (changed("block 2", block_type="a\nb"), 'block 2: "block type" must be one line of text'),
    ],
)
def test_any_other_split_is_refused_and_told_why(answer, words):
    with pytest.raises(ValueError) as caught:
        check_blocks(answer, 3, 64)
    assert words in str(caught.value)


def cut_up(text, engine=None, **settings):
    return asyncio.run(cut("What is 2+2?", text, engine, ChunkConfig(**settings), seed=3))


def test_the_model_reads_numbered_steps_and_its_blocks_become_thoughts():
    engine = ScriptedEngine(json.dumps(BLOCKS))
    chunks = cut_up(TRACE, engine, max_tokens=77)
    assert chunks.thoughts == (
        Thought(text="Two and two.\n\n", kind="problem understanding"),
        Thought(text="It is 4.\n\n\\boxed{4}", kind="calculation"),
    )
    assert (chunks.splitter, chunks.why, chunks.tries) == ("instruct", "chunk.splitter is instruct", 1)
    (request,) = engine.texts()
    assert "Problem:\nWhat is 2+2?\n" in request
    assert "Solution:\nStep 1: Two and two.\nStep 2: It is 4.\nStep 3: \\boxed{4}\n" in request
    assert "the last block ends at step 3. Write 2 to 64 blocks." in request
    assert (engine.samplings[0].max_tokens, engine.samplings[0].temperature) == (77, 0.1)


def test_a_split_that_leaves_steps_out_is_fed_back_then_repaired():
    engine = ScriptedEngine(json.dumps(changed("block 2", end=2)), json.dumps(BLOCKS))
    assert cut_up(TRACE, engine).tries == 2
    assert "It was wrong: the last block, block 2, ends at step 2, but the last step is 3." in engine.texts()[1]


def test_a_model_that_cannot_split_falls_back_to_the_rules_and_says_so():
    chunks = cut_up(TRACE, ScriptedEngine("no"), tries=4)
    assert [thought.kind for thought in chunks.thoughts] == ["problem understanding", "calculation", "answer"]
    assert (chunks.splitter, chunks.tries) == ("rules", 4)
    assert chunks.why == "instruct failed: bad_json after 4 tries: it holds no complete JSON object"
    too_long = cut_up(TRACE, ScriptedEngine("no", context=20))
    assert (too_long.splitter, too_long.tries) == ("rules", 0)
    assert too_long.why.startswith("instruct failed: context after 0 tries: the request has ")


def test_without_a_model_the_rules_cut():
    chunks = cut_up(TRACE, max_thoughts=2)
    assert [thought.text for thought in chunks.thoughts] == ["Two and two.\n\n", "It is 4.\n\n\\boxed{4}"]
    assert (chunks.splitter, chunks.why, chunks.tries) == ("rules", "chunk.splitter is rules", 0)


@pytest.mark.parametrize("text", ["One paragraph.\nTwo lines.", "One.\n\n \n", ""])
def test_a_single_paragraph_is_refused(text):
    with pytest.raises(Refused, match="no blank line"):
        cut_up(text)


def test_a_splitter_that_loses_text_is_caught(monkeypatch):
    monkeypatch.setattr(
        chunking, "by_rules", lambda steps, max_thoughts: [Thought(text=step, kind="x") for step in steps[1:]]
    )
    with pytest.raises(RuntimeError, match="rules made 2 thoughts of 3 paragraphs that are not the trace"):
        cut_up(TRACE)


def test_every_real_trace_is_covered_byte_for_byte_in_2_to_64_thoughts(shared_data):
    counts = []
    for name in ("long_traces_amc23", "long_trace_r1_aime"):
        for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8"):
            text = json.loads(line)["response"]
            thoughts = cut_up(text).thoughts
            assert "".join(thought.text for thought in thoughts).encode() == text.encode()
            assert all(thought.text.strip() for thought in thoughts)
            counts.append(len(thoughts))
    assert len(counts) == 121 and min(counts) >= 2 and max(counts) <= 64
    assert 10 <= sorted(counts)[60] <= 30  # the paper's traces have so many
