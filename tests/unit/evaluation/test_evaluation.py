"""Held-out problems through two engines, graded, and the table of the results."""

import asyncio

from longshort.dialogue.protocols import LongShort
from longshort.dialogue.rollout import Decoding
from longshort.evaluation.measures import summarise
from longshort.evaluation.runner import evaluate
from longshort.evaluation.systems import preset, protocol_of
from longshort.evaluation.tables import results_table
from longshort.recipe.schema import parse
from longshort.types import LONG, SHORT, Completion, Problem
from tests.support import hand_built

PRICES = {LONG: 1.0, SHORT: 0.5}


class Pool:
    async def grade(self, gold, text):
        return type("Verdict", (), {"correct": gold in text, "reason": "match" if gold in text else "mismatch"})


class Engine:
    context, tokenizer = 500, None

    def __init__(self, *stops):
        self.stops, self.calls = stops, 0

    async def generate(self, prompt_ids, sampling):
        stop = self.stops[self.calls % len(self.stops)]
        self.calls += 1
        return Completion(token_ids=(1, 2), logprobs=(0.0, 0.0), text="\\boxed{3}", stop=stop, version=0)


class Rendered(LongShort):
    def render(self, problem, turns, speaker, tokenizer):
        return (0,) * (len(turns) + 1)


def test_an_unanswered_episode_is_wrong_even_if_its_text_holds_the_answer():
    protocol = Rendered(turn_tokens={LONG: 9, SHORT: 9}, episode_tokens=60)
    engines = {LONG: Engine("</think>"), SHORT: Engine("</answer>", "eos")}
    problems = [Problem(id="a", question="?", answer="3"), Problem(id="b", question="?", answer="3")]
    graded = asyncio.run(evaluate(engines, protocol, problems, Pool(), Decoding()))
    assert sorted(graded.correct) == [False, True]
    summary = summarise(graded, protocol, PRICES)
    assert (summary["accuracy"], summary["n"], summary["cost"]) == (0.5, 2, 3.0)
    assert "0.500" in results_table("two problems", {"pair": summary})


class Obedient(Engine):
    """Boxes its answer if its prompt says so, as an instruct model does."""

    tokenizer = hand_built.byte_level(hand_built.CHATML)

    async def generate(self, prompt_ids, sampling):
        text = "\\boxed{3}" if "\\boxed" in self.tokenizer.decode(prompt_ids) else "3"
        return Completion(token_ids=(1, 2), logprobs=(0.0, 0.0), text=text, stop="eos", version=0)


def test_a_single_model_that_boxes_only_when_told_scores_1():
    protocol = protocol_of(parse({}), preset("single_long"))
    problems = [Problem(id="a", question="1+2?", answer="\\boxed{3}")]
    graded = asyncio.run(evaluate({LONG: Obedient()}, protocol, problems, Pool(), Decoding()))
    assert graded.correct == (True,)
