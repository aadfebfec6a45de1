"""The measures of an evaluation, each against numbers worked out by hand."""

from statistics import fmean

import pytest

from longshort.dialogue.metrics import episode_metrics, group_metrics
from longshort.dialogue.protocols import LongShort
from longshort.dialogue.solo import Solo
from longshort.evaluation import measures
from longshort.evaluation.measures import (
    Comparison,
    accuracy,
    accuracy_interval,
    aes,
    compare,
    overall,
    pass_at,
    summarise,
    wilson,
)
from longshort.evaluation.rethinking import PHRASES, rethinking_phrases
from longshort.evaluation.runner import Evaluation
from longshort.types import LONG, SHORT, Completion, Episode, Group, LongShortError, Problem, Reward, Turn

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


def graded(*marks: str, names=range(240), tokens=4) -> Evaluation:
    """A problem for each string, a sample for each character: "+-" is a problem solved once of twice."""
    episodes = [
        episode(turn(SHORT, tokens, "</answer>"), name=str(name)) for name, mark in zip(names, marks) for _ in mark
    ]
    return Evaluation(
        episodes=(*episodes,), correct=tuple(mark == "+" for mark in "".join(marks)), num_samples=len(marks[0])
    )


QUICK = episode(turn(LONG, 10, "</think>"), turn(SHORT, 4, "</answer>", "\\boxed{3}"))
BACK = episode(
    turn(LONG, 6, "</think>"), turn(SHORT, 2, "</rethink>"), turn(LONG, 8, "</think>"), turn(SHORT, 4, "</answer>")
)
CUT = episode(turn(LONG, 12, "turn_length"), stop="turn_length")


def test_episode_metrics_by_hand():
    metrics = episode_metrics([QUICK, BACK, CUT], PROTOCOL, PRICES)
    assert metrics["tokens"] == pytest.approx((14 + 20 + 12) / 3)
    assert metrics["cost"] == pytest.approx((12 + 17 + 12) / 3)
    assert metrics["tokens/long"] == pytest.approx((10 + 14 + 12) / 3)
    assert metrics["turns"] == pytest.approx(7 / 3) and metrics["hand_back_rate"] == pytest.approx(1 / 3)
    assert (
        metrics["format/long"] == pytest.approx(2 / 3)
        and metrics["format/short"] == 1.0
        and metrics["format"] == pytest.approx(2 / 3)
    )
    assert metrics["stop/answered"] == pytest.approx(2 / 3) and metrics["stop/turn_length"] == pytest.approx(1 / 3)


def test_hand_backs_are_counted_and_their_rate_is_of_episodes():
    twice = episode(
        turn(LONG, 1, "</think>"), turn(SHORT, 1, "</rethink>"), turn(LONG, 1, "</think>"), turn(SHORT, 1, "</rethink>")
    )
    metrics = episode_metrics([QUICK, BACK, twice, QUICK], PROTOCOL, PRICES)
    assert (metrics["hand_backs"], metrics["hand_back_rate"]) == ((0 + 1 + 2 + 0) / 4, 2 / 4)


def test_group_metrics_report_rewards_and_their_terms():
    rewards = [Reward(totals={LONG: 1.0, SHORT: 2.0}, terms={"correct": 1.0, "length": 0.5}) for _ in range(2)]
    group = Group(problem=QUICK.problem, episodes=(QUICK, BACK), rewards=(*rewards,))
    metrics = group_metrics([group], PROTOCOL, PRICES)
    assert (
        metrics["team/reward"],
        metrics["team/reward/long"],
        metrics["team/accuracy"],
        metrics["reward/length"],
    ) == (1.5, 1.0, 1.0, 0.5)


def test_standard_error_is_clustered_by_problem():
    """Problem means 1, 0.5, 0: mean 0.5, standard deviation 0.5, error 0.5/sqrt(3)."""
    assert accuracy(graded("++", "+-", "--")) == (0.5, pytest.approx(0.5 / 3**0.5))
    assert accuracy(graded("+")) == (1.0, 0.0)


def test_wilson_interval_against_published_values():
    """8 of 10: [0.490, 0.943]; 0 of 10: [0, 0.278] (Brown, Cai and DasGupta 2001, Wilson)."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)


def test_the_interval_of_one_sample_per_problem_is_wilsons():
    assert accuracy_interval(graded(*"++++++++--")) == pytest.approx(wilson(8, 10))
    assert accuracy_interval(graded("+")) == pytest.approx(wilson(1, 1))


@pytest.mark.parametrize("marks", [("++++", "----", "++++"), ("++++",) * 3, ("----",) * 3])
def test_samples_that_always_agree_are_worth_one_per_problem(marks):
    right = sum(mark[0] == "+" for mark in marks)
    assert accuracy_interval(graded(*marks)) == pytest.approx(wilson(right, 3))


def test_samples_that_differ_within_problems_are_worth_more_but_no_more_than_there_are():
    # Means 1, 1/2, 0 and the added 0, 1: p = 1/2, variance (4 * 1/4 + 0) / 5 = 1/5,
    # so worth 3 * (1/4) / (1/5) = 3.75 of 6 samples
    assert accuracy_interval(graded("++", "+-", "--")) == pytest.approx(wilson(3.75 / 2, 3.75))
    # Ten means of 1/2 and the added 0, 1: variance 2/4 / 12 = 1/24,
    # worth 10 * (1/4) * 24 = 60, but there are only 20 samples
    assert accuracy_interval(graded(*["+-"] * 10)) == pytest.approx(wilson(10, 20))


def test_pass_at_k_by_hand():
    # 1 of 4 right: the 3 wrong ones make C(3,2) = 3 of the 6 pairs, so half of the pairs hold a right one;
    # 3 right: every pair
    one, three, none = graded("+---"), graded("+++-"), graded("----")
    assert [pass_at(one, k) for k in (1, 2, 3, 4)] == [1 / 4, 1 / 2, 3 / 4, 1]
    assert [pass_at(three, k) for k in (1, 2)] == [3 / 4, 1] and pass_at(none, 4) == 0
    assert pass_at(graded("+---", "+++-", "----"), 2) == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize("k", [0, 3])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(LongShortError, match=rf"pass@{k} .* 2 samples"):
        pass_at(graded("+-"), k)


def test_rethinking_phrases_are_found_once_each_in_any_case():
    text = "Hmm, 12. Wait, let me double-check: wait. ALTERNATIVELY, hold on, I made a mistake; "
    text += "so let’s just verify. Think again!"
    names = ["hmm", "wait", "double-check", "alternatively", "hold on", "mistake", "let me verify", "think again"]
    assert rethinking_phrases(text) == dict.fromkeys(names, 1) | {"wait": 2}
    text = "Let me check that again. Actually, no. It is 5, but actually 6. "
    text += "On second thought, I am reconsidering: re-examine it."
    assert rethinking_phrases(text) == {"let me check": 1, "actually": 2, "on second thought": 1, "reconsider": 2}
    text = "Whoops. Recalculate it from scratch, or try a different approach."
    assert rethinking_phrases(text) == {"oops": 1, "recalculate": 1, "start over": 1, "another way": 1}
    assert len(PHRASES) == 16  # each of which stands in a text above


def test_ordinary_words_are_no_rethinking():
    text = (
        "A waiter, waiting, has to wait; they wait for 5 minutes, and the wait time is actually 6. "
        "Hold on to the hoops. I made a cake. "
        "Check a: 4*6. That is right. Let me think.</rethink>"
    )
    assert rethinking_phrases(text) == {}


def test_summarise_gives_every_measure_of_an_evaluation_worked_out_by_hand():
    waits = episode(
        turn(LONG, 10, "</think>", "Wait, hmm"), turn(SHORT, 4, "</answer>", "Wait")
    )  # 9 and 4 characters, 3 phrases
    hums = episode(turn(LONG, 12, "turn_length", "Hmm six"), stop="turn_length")  # 7 characters, 1 phrase
    plain = episode(turn(LONG, 12, "turn_length", "Sixteen"), stop="turn_length")  # 7 characters
    summary = summarise(
        Evaluation(episodes=(waits, hums, plain), correct=(True, False, False), num_samples=3), PROTOCOL, PRICES
    )
    assert (summary["n"], summary["samples"], summary["accuracy"], summary["stderr"]) == (
        1,
        3,
        pytest.approx(1 / 3),
        0.0,
    )
    # Means 1/3 and the added 0, 1: p = 4/9, variance (1 + 1/9) / 3 - 16/81 = 14/81, worth 1 * (20/81) / (14/81) = 10/7
    assert summary["interval"] == pytest.approx(wilson(10 / 21, 10 / 7))
    assert {key: value for key, value in summary.items() if key.startswith("pass@")} == pytest.approx(
        {"pass@1": 1 / 3, "pass@2": 2 / 3, "pass@3": 1.0}
    )
    assert summary["tokens"] == pytest.approx((14 + 12 + 12) / 3) and summary["cost"] == pytest.approx(
        (12 + 12 + 12) / 3
    )
    assert summary["characters/long"] == pytest.approx((9 + 7 + 7) / 3) and summary[
        "characters/short"
    ] == pytest.approx(4 / 3)
    assert summary["characters"] == pytest.approx((13 + 7 + 7) / 3)
    assert summary["rethinking"] == pytest.approx((3 + 1 + 0) / 3) and summary["rethinking_rate"] == pytest.approx(
        2 / 3
    )


def test_pass_at_one_sample_is_accuracy_and_a_model_alone_has_only_its_own_role():
    alone = Evaluation(episodes=(episode(turn(LONG, 5, "eos", "3")),) * 2, correct=(True, False), num_samples=1)
    summary = summarise(alone, Solo(turn_tokens=9), PRICES)
    assert [key for key in summary if "pass@" in key] == ["pass@1"] and summary["pass@1"] == summary["accuracy"] == 0.5
    assert summary["characters/long"] == 1.0 and "characters/short" not in summary


def test_overall_is_the_mean_over_benchmarks():
    first = {
        "accuracy": 0.8,
        "stderr": 0.03,
        "interval": [0.7, 0.86],
        "tokens": 100.0,
        "characters": 400.0,
        "cost": 80.0,
    }
    second = {
        "accuracy": 0.6,
        "stderr": 0.04,
        "interval": [0.3, 0.68],
        "tokens": 300.0,
        "characters": 900.0,
        "cost": 120.0,
    }
    # sides: below sqrt(0.1² + 0.3²) / 2 = 0.158114, above sqrt(0.06² + 0.08²) / 2 = 0.05;
    # error sqrt(0.03² + 0.04²) / 2 = 0.025
    row = overall([first, second])
    assert row.pop("interval") == pytest.approx([0.7 - 0.158114, 0.75], abs=1e-6)
    assert row == pytest.approx({"accuracy": 0.7, "stderr": 0.025, "tokens": 200.0, "characters": 650.0, "cost": 100.0})
    assert overall([first])["interval"] == pytest.approx(first["interval"])


@pytest.mark.parametrize(
    "accuracies, length, base, score",
    [
        ((93.4, 53.3, 36.7, 49.0, 95.0), 24_566, "qwen", 0.0),
        ((74.8, 16.7, 7.3, 37.9, 42.5), 1_623, "qwen", -1.33),
        ((80.4, 26.7, 13.3, 44.4, 67.5), 7_323, "qwen", -0.75),
        ((84.6, 36.7, 23.3, 45.5, 72.5), 2_169, "qwen", -0.08),
        ((89.8, 46.7, 33.3, 48.0, 90.0), 2_113, "qwen", 0.61),
        ((86.2, 40.0, 33.3, 47.0, 87.5), 2_402, "llama", 0.81),
    ],
)
def test_aes_of_the_papers_table(accuracies, length, base, score):
    """arXiv 2505.11827, main table: MATH500, AIME24, AIME25, GPQA-Diamond, AMC23; each against its R1-Distill."""
    bases = {"qwen": ((93.4, 53.3, 36.7, 49.0, 95.0), 24_566), "llama": ((87.2, 43.3, 30.0, 49.5, 90.0), 28_496)}
    base_accuracies, base_length = bases[base]
    assert aes(fmean(accuracies), length, fmean(base_accuracies), base_length) == pytest.approx(score, abs=0.01)


def test_aes_rewards_a_gain_threefold_and_punishes_a_loss_fivefold():
    assert aes(0.6, 50, 0.5, 100) == pytest.approx(0.5 + 3 * 0.2)
    assert aes(0.4, 150, 0.5, 100) == pytest.approx(-0.5 - 5 * 0.2)


@pytest.mark.parametrize("base", [(0.0, 100), (0.5, 0)])
def test_aes_refuses_a_base_that_it_would_divide_by(base):
    with pytest.raises(LongShortError, match=rf"{base[0]} and {base[1]}"):
        aes(0.5, 50, *base)


def test_a_comparison_of_two_problems_by_hand():
    """Differences 1 and 0: the four draws have the means 1, 1/2, 1/2, 0; two lie as far from the 1/2 found as that
    does from 0."""
    found = compare(graded("+", "+"), graded("-", "+"), "accuracy", PRICES, resamples=40_000)
    assert (found.difference, found.interval) == (0.5, (0.0, 1.0))
    assert found.p == pytest.approx(0.5, abs=0.01)


def test_a_comparison_pairs_problems_whatever_their_order_and_averages_their_samples():
    # Problem a: 1 - 1/2, problem b: 1/2 - 0: each difference is 1/2, so every draw is;
    # p is as small as 99 draws can make it
    a, b = graded("++", "-+", names="ab"), graded("--", "+-", names="ba")
    assert compare(a, b, "accuracy", PRICES, resamples=99) == Comparison(difference=0.5, interval=(0.5, 0.5), p=0.01)


def test_a_comparison_with_itself_finds_nothing():
    same = graded("++", "+-", "--")
    assert compare(same, same, "accuracy", PRICES) == Comparison(difference=0.0, interval=(0.0, 0.0), p=1.0)


def test_tokens_and_cost_are_compared_in_their_units():
    a, b = graded("+", "-", tokens=6), graded("-", "+", tokens=10)
    assert (compare(a, b, "tokens", PRICES).difference, compare(a, b, "cost", PRICES).difference) == (-4.0, -2.0)


def test_interval_and_p_agree_with_the_normal_law_where_there_are_many_problems():
    """240 problems, differences +1 for 60, -1 for 30, else 0: mean 1/8, variance 90/240 - 1/64 = 0.359375, s.e.
    0.0386961; z = 3.23.

    The normal interval is 0.125 ± 0.0758 and its p 0.0012.
    """
    a, b = graded(*"+" * 60 + "-" * 180), graded(*"-" * 60 + "+" * 30 + "-" * 150)
    found = compare(a, b, "accuracy", PRICES)
    assert found.interval == pytest.approx((0.125 - 0.0758, 0.125 + 0.0758), abs=0.005)
    assert found.p == pytest.approx(0.0012, abs=0.001)
    assert compare(b, a, "accuracy", PRICES).difference == -0.125


def test_the_same_seed_gives_the_same_comparison_whatever_the_memory_allowed(monkeypatch):
    a, b = graded(*"++-+-+-+++"), graded(*"+-----+--+")
    whole = compare(a, b, "accuracy", PRICES, seed=3)
    assert compare(a, b, "accuracy", PRICES, seed=4) != whole
    monkeypatch.setattr(measures, "BLOCK", 7_770)
    assert compare(a, b, "accuracy", PRICES, seed=3) == whole


def test_a_comparison_refuses_what_it_cannot_compare():
    a, b = graded("+", "+", "-", names="abc"), graded("+", "+", names="ax")
    with pytest.raises(LongShortError, match=r"2 of the first's 3 problems .* 1 of the second's 2"):
        compare(a, b, "accuracy", PRICES)
    with pytest.raises(LongShortError, match="at least 2, not 1"):
        compare(graded("++"), graded("+-"), "accuracy", PRICES)
    with pytest.raises(LongShortError, match=r"'turns'.*accuracy, tokens, cost"):
        compare(a, a, "turns", PRICES)
