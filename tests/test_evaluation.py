"""Accuracy, its error and the episode metrics, worked out by hand."""

import asyncio

import pytest

from longshort.evaluation.command import results_table
from longshort.evaluation.measures import accuracy, summarise, wilson
from longshort.evaluation.runner import Evaluation, evaluate
from longshort.team.metrics import episode_metrics, group_metrics
from longshort.team.protocols import LongShort
from longshort.team.rollout import Decoding
from longshort.types import LONG, SHORT, Completion, Episode, Group, Problem, Reward, Turn

PROTOCOL = LongShort(turn_tokens={LONG: 9, SHORT: 9}, episode_tokens=60)
PRICES = {LONG: 1.0, SHORT: 0.5}


def turn(role, tokens, stop, text="x"):
    return Turn(
        role=role,
        prompt_ids=(0,),
        completion=Completion(token_ids=(1,) * tokens, logprobs=(0.0,) * tokens, text=text, stop=stop, version=0),
    )


def episode(*turns, stop="answered", name="p"):
    return Episode(problem=Problem(id=name, question="?", answer="3"), turns=turns, stop=stop)


QUICK = episode(turn(LONG, 10, "</think>"), turn(SHORT, 4, "</answer>", "\\boxed{3}"))
BACK = episode(turn(LONG, 6, "</think>"), turn(SHORT, 2, "</rethink>"), turn(LONG, 8, "</think>"), turn(SHORT, 4, "</answer>"))
CUT = episode(turn(LONG, 12, "turn_length"), stop="turn_length")


def test_episode_metrics_by_hand():
    metrics = episode_metrics([QUICK, BACK, CUT], PROTOCOL, PRICES)
    assert metrics["tokens"] == pytest.approx((14 + 20 + 12) / 3)
    assert metrics["cost"] == pytest.approx((12 + 17 + 12) / 3)
    assert metrics["tokens/long"] == pytest.approx((10 + 14 + 12) / 3)
    assert metrics["turns"] == pytest.approx(7 / 3) and metrics["hand_back_rate"] == pytest.approx(1 / 3)
    assert metrics["format/long"] == pytest.approx(2 / 3) and metrics["format/short"] == 1.0 and metrics["format"] == pytest.approx(2 / 3)
    assert metrics["stop/answered"] == pytest.approx(2 / 3) and metrics["stop/turn_length"] == pytest.approx(1 / 3)


def test_group_metrics_report_rewards_and_their_terms():
    rewards = [Reward(totals={LONG: 1.0, SHORT: 2.0}, terms={"correct": 1.0, "length": 0.5}) for _ in range(2)]
    group = Group(problem=QUICK.problem, episodes=(QUICK, BACK), rewards=(*rewards,))
    metrics = group_metrics([group], PROTOCOL, PRICES)
    assert (metrics["team/reward"], metrics["team/reward/long"], metrics["team/accuracy"], metrics["reward/length"]) == (1.5, 1.0, 1.0, 0.5)


def test_standard_error_is_clustered_by_problem():
    """Problem means 1, 0.5, 0: mean 0.5, standard deviation 0.5, error 0.5/sqrt(3)."""
    graded = Evaluation(episodes=(QUICK,) * 6, correct=(True, True, True, False, False, False), num_samples=2)
    mean, error = accuracy(graded)
    assert (mean, error) == (0.5, pytest.approx(0.5 / 3**0.5))
    assert accuracy(Evaluation(episodes=(QUICK,), correct=(True,), num_samples=1)) == (1.0, 0.0)


def test_wilson_interval_against_published_values():
    """8 of 10: [0.490, 0.943]; 0 of 10: [0, 0.278] (Brown, Cai and DasGupta 2001, Wilson)."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)


class Pool:
    async def grade(self, gold, text):
        return type("Verdict", (), {"correct": gold in text})


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
    assert "0.500" in results_table({"pair": summary})
