"""Rewards against groups worked out by hand."""

import asyncio

import pytest

from longshort.dialogue.rewards import LENGTH_TERMS, SynergyReward, length_weight
from longshort.recipe.sections import LengthConfig, RewardConfig
from longshort.types import LONG, SHORT, Completion, Episode, Problem, Turn

PROBLEM = Problem(id="p", question="?", answer="3")
RIGHT = [True, True, False, False]
COST = [10.0, 30.0, 10.0, 50.0]


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("kimi", [0.5, 0.0, 0.0, -0.5]),  # 0.5 - (cost - 10)/40; the wrong ones never above 0
        ("laser", [1.0, 0.0, 0.0, 0.0]),  # target 20
        ("shortest_bonus", [1.0, 0.0, 0.0, 0.0]),
        ("target", [-0.5, -0.5, -0.5, -1.0]),  # |10-20|/20, |30-20|/20, …, capped
        ("none", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_length_terms(kind, expected):
    assert LENGTH_TERMS[kind](RIGHT, COST, 20.0) == pytest.approx(expected)


def test_equal_costs_earn_nothing_and_no_correct_answer_no_bonus():
    assert LENGTH_TERMS["kimi"]([True, False], [8.0, 8.0], 1.0) == [0.0, 0.0]
    assert LENGTH_TERMS["shortest_bonus"]([False, False], [8.0, 9.0], 1.0) == [0.0, 0.0]


@pytest.mark.parametrize("progress, mu", [(0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.4, 0.5), (1.0, 0.5)])
def test_mu_ramps_between_its_two_marks(progress, mu):
    assert length_weight(RewardConfig(), progress) == pytest.approx(mu)


class Protocol:
    roles = (LONG, SHORT)

    def final_text(self, episode):
        return episode.turns[-1].completion.text

    def well_formed(self, episode, role):
        return not (role == LONG and "bad" in episode.turns[0].completion.text)


class Pool:
    def __init__(self):
        self.asked = []

    async def grade(self, gold, text):
        self.asked.append(text)
        return type("Verdict", (), {"correct": text == f"\\boxed{{{gold}}}"})


def episode(long_tokens, short_tokens, answer, thought="fine", stop="answered"):
    def turn(role, tokens, text):
        completion = Completion(token_ids=(1,) * tokens, logprobs=(0.0,) * tokens, text=text, stop="", version=0)
        return Turn(role=role, prompt_ids=(0,), completion=completion)

    return Episode(
        problem=PROBLEM, turns=(turn(LONG, long_tokens, thought), turn(SHORT, short_tokens, answer)), stop=stop
    )


def test_the_synergy_reward_of_a_group_by_hand():
    """Prices 1 and 0.5: costs 10+2=12, 20+4=24, 8+4=12, 30+6=36; Kimi terms 0.5, 0, 0 (wrong), -0.5."""
    episodes = [
        episode(10, 4, "\\boxed{3}"),
        episode(20, 8, "\\boxed{3}", thought="bad"),
        episode(8, 8, "\\boxed{4}"),
        episode(30, 12, "\\boxed{3}", stop="max_turns"),
    ]
    pool = Pool()
    reward = SynergyReward(RewardConfig(), {LONG: 1.0, SHORT: 0.5}, Protocol(), pool)
    rewards = asyncio.run(reward(PROBLEM, episodes, 1.0))
    assert [r.terms["cost"] for r in rewards] == [12.0, 24.0, 12.0, 36.0]
    assert [r.terms["correct"] for r in rewards] == [1.0, 1.0, 0.0, 0.0]
    assert [r.terms["length"] for r in rewards] == [0.5, 0.0, 0.0, -0.5]
    assert [r.terms["format/long"] for r in rewards] == [1.0, 0.0, 1.0, 1.0]
    assert [r.totals[LONG] for r in rewards] == [1.75, 1.0, 0.5, 0.25]
    assert [r.totals[SHORT] for r in rewards] == [1.75, 1.5, 0.5, 0.25]
    assert len(pool.asked) == 3, "an unanswered episode is wrong without asking the grader"


def test_without_a_length_term_only_correctness_and_format_count():
    config = RewardConfig(correct_weight=2.0, format_weight=0.25, length=LengthConfig(kind="none"))
    reward = SynergyReward(config, {LONG: 1.0, SHORT: 1.0}, Protocol(), Pool())
    (only,) = asyncio.run(reward(PROBLEM, [episode(1, 1, "\\boxed{3}")], 1.0))
    assert only.totals == {LONG: 2.25, SHORT: 2.25}
