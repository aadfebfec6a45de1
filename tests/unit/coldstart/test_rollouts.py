"""Rollouts: every prefix of a trace, from P_0 to the whole, in one stream; what is right is what the grader says."""

import asyncio

import pytest

from longshort.coldstart.records import ChunkLine, Refused, Thought
from longshort.coldstart.rollouts import encode_prefixes, roll_out
from longshort.dialogue.encoding import THINK, encode_plain, encode_problem
from longshort.grading.pool import GradingPool, Verdict
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.coldstart import ImportanceConfig
from longshort.types import SHORT, Completion, Problem

PROBLEM = Problem(id="p", question="Last digit of a: 4*6*2?", answer="8")
THOUGHTS = ["a: 4*6=4, *2=8.\n\n", "Total a: 0+8 -> 8.\n\n", "\\boxed{8}"]


class Quick:
    """Right once it has seen the product, right every fourth time before; ends at once when the box is there. Counts
    what waits."""

    def __init__(self, context=384):
        self.tokenizer, self.context, self.prompts, self.samplings, self.waiting, self.most = (
            build_tokenizer(SHORT),
            context,
            [],
            [],
            0,
            0,
        )

    async def generate(self, prompt_ids, sampling):
        self.prompts.append(prompt_ids)
        self.samplings.append(sampling)
        self.waiting, self.most = self.waiting + 1, max(self.most, self.waiting + 1)
        await asyncio.sleep(0)
        self.waiting -= 1
        text = self.tokenizer.decode(prompt_ids)
        right = "*2=8." in text or sampling.seed % 4 == 0
        answer = "" if "boxed" in text else f"\\boxed{{{8 if right else 3}}}"
        return Completion(
            token_ids=(7,) * (1 + len(answer)), logprobs=(0.0,) * (1 + len(answer)), text=answer, stop="eos", version=0
        )


def chunks(thoughts):
    cut = tuple(Thought(text=text, kind="calculation") for text in thoughts)
    return ChunkLine(id="t", outcome="ok", problem=PROBLEM, thoughts=cut)


def run(engine, thoughts=THOUGHTS, seed=5, **settings):
    settings = ImportanceConfig(**{"num_rollouts": 40, "instructions": "", "max_tokens": 50} | settings)
    with GradingPool() as pool:
        return asyncio.run(roll_out(chunks(thoughts), engine, pool, settings, tags="special", seed=seed))


def test_counts_lengths_and_tokens_of_every_prefix():
    engine = Quick()
    found = run(engine)
    assert found.tokens == tuple(len(encode_plain(engine.tokenizer, text)) for text in THOUGHTS)
    assert found.correct[1:] == (40, 40, 40) and 3 <= found.correct[0] <= 20  # P_0 about a quarter
    assert found.length == (
        10.0,
        10.0,
        10.0,
        1.0,
    )  # `\boxed{8}` and the end; the whole trace only ends. The prefix does not count


def test_all_rollouts_wait_together_each_with_its_own_seed():
    engine = Quick()
    run(engine)
    assert engine.most == len(engine.prompts) == 160
    assert len({sampling.seed for sampling in engine.samplings}) > 155  # 31-bit hashes
    again = Quick()
    assert run(again) == run(Quick()) and [s.seed for s in again.samplings] == [s.seed for s in engine.samplings]


def test_prompts_are_the_problem_an_open_think_and_the_prefix_so_that_each_extends_the_last():
    engine = Quick()
    run(engine, num_rollouts=1)
    tokenizer = engine.tokenizer
    opening = encode_problem(tokenizer, "", PROBLEM.question) + (tokenizer.convert_tokens_to_ids(THINK),)
    assert engine.prompts == [opening + encode_plain(tokenizer, "".join(THOUGHTS[:k])) for k in range(4)]
    assert [
        prompt[: len(before)] for before, prompt in zip(engine.prompts, engine.prompts[1:], strict=False)
    ] == engine.prompts[:-1]


def test_role_tags_inside_a_trace_are_characters_and_not_control():
    engine = Quick()
    run(engine, ["</answer>\n\n", "\\boxed{8}"], num_rollouts=1)
    assert engine.tokenizer.convert_tokens_to_ids("</answer>") not in engine.prompts[-1]


def test_a_trace_that_leaves_no_room_for_a_whole_rollout_is_refused_with_the_numbers():
    assert len(run(Quick(context=84)).correct) == 4
    with pytest.raises(Refused, match=r"take 34 tokens and a rollout 50 .*context is 83") as caught:
        run(Quick(context=83))
    assert caught.value.outcome == "context"


def test_a_thought_without_a_token_is_named():
    with pytest.raises(Refused, match="thought 2 has no token") as caught:
        run(Quick(), ["a\n\n", "", "b"])
    assert caught.value.outcome == "empty_thought"


def test_a_box_in_the_prefix_counts_until_the_rollout_writes_its_own():
    assert run(Quick(), ["\\boxed{8}\n\n", "\\boxed{3}\n\n", "\\boxed{8}"]).correct[1:] == (40, 0, 40)


def test_what_the_grader_could_not_decide_is_counted():
    class Stuck(GradingPool):
        async def grade(self, gold, text):
            return Verdict(correct=False, reason="timeout")

    with Stuck() as pool:
        settings = ImportanceConfig(num_rollouts=2, instructions="", max_tokens=50)
        found = asyncio.run(roll_out(chunks(THOUGHTS), Quick(), pool, settings, tags="special", seed=0))
    assert found.ungraded == {"timeout": 8} and found.correct == (0, 0, 0, 0)


def test_a_tokenizer_that_changes_text_at_seams_gets_every_prefix_whole():
    class Spacing:
        """Puts a space before each piece, as SentencePiece does."""

        def encode(self, text, **_):
            return [ord(character) for character in " " + text]

        def decode(self, ids):
            return "".join(map(chr, ids)).removeprefix(" ")

    prefixes = encode_prefixes(Spacing(), ["ab\n\n", "c"])
    assert [Spacing().decode(prefix) for prefix in prefixes] == ["", "ab\n\n", "ab\n\nc"]
