"""An episode is the same after it has been a line of JSON."""

import json

import pytest

from longshort.runs.episodes import EpisodeLine, TrainingLine, episode_row
from longshort.types import LONG, SHORT, Completion, Episode, Problem, Turn


def turn(role, prompt_ids, token_ids, stop):
    completion = Completion(
        token_ids=token_ids, logprobs=(-0.25,) * len(token_ids), text=f"{role} <é>", stop=stop, version=7
    )
    return Turn(role=role, prompt_ids=prompt_ids, completion=completion)


def dialogue(*turns):
    return Episode(problem=Problem(id="p", question="1+1?", answer="2"), turns=turns, stop="answered")


EPISODE = dialogue(
    turn(LONG, (1, 2), (31, 9), "</think>"),
    turn(SHORT, (5, 6), (8,), "</rethink>"),
    turn(LONG, (1, 2, 31, 9, 40), (32,), "</think>"),
    turn(SHORT, (5, 6, 8, 41, 42), (10, 11), "</answer>"),
)


def test_an_episode_survives_its_line():
    assert EpisodeLine.model_validate_json(json.dumps(episode_row(EPISODE))).episode == EPISODE


def test_a_line_says_when_new_weights_arrived_and_old_lines_have_nothing_to_say():
    completion = Completion(token_ids=(8, 9, 7), logprobs=(-0.25,) * 3, text="", stop="eos", version=7, updates=(1, 2))
    episode = dialogue(turn(LONG, (1, 2), (31,), "</think>"), Turn(role=SHORT, prompt_ids=(5,), completion=completion))
    line = json.loads(json.dumps(episode_row(episode)))
    assert [written.get("updates") for written in line["turns"]] == [None, [1, 2]]
    read_back = EpisodeLine.model_validate(line).episode
    assert read_back == episode
    assert read_back.turns[1].completion.versions == (7, 8, 9)


def test_a_line_holds_each_id_of_the_dialogue_once():
    assert [turn["context_ids"] for turn in episode_row(EPISODE)["turns"]] == [(1, 2), (5, 6), (40,), (41, 42)]


def test_what_else_stands_in_the_line_does_not_matter():
    assert EpisodeLine.model_validate({"something": 3} | episode_row(EPISODE)).episode == EPISODE


def test_a_line_of_training_says_its_step_and_its_rewards():
    scores = {"reward": {"long": 1.0}, "terms": {"correct": 1.0}, "advantages": {"long": 0.5}}
    line = TrainingLine.model_validate_json(json.dumps({"step": 3} | episode_row(EPISODE) | scores))
    assert line.episode == EPISODE
    assert (line.step, line.reward, line.gaps) == (3, {"long": 1.0}, {})


def test_a_prompt_that_is_not_append_only_is_refused():
    broken = dialogue(
        turn(LONG, (1, 2), (31,), "</think>"),
        turn(SHORT, (5,), (8,), "</rethink>"),
        turn(LONG, (1, 2, 99), (4,), "</think>"),
    )
    with pytest.raises(ValueError, match="problem p: a prompt of 'long' does not begin with the 3 ids"):
        episode_row(broken)


def test_log_probs_are_kept_to_four_decimals():
    completion = Completion(token_ids=(1,), logprobs=(-0.123456,), text="", stop="eos", version=0)
    row = episode_row(dialogue(Turn(role=LONG, prompt_ids=(3,), completion=completion)))
    assert row["turns"][0]["logprobs"] == (-0.1235,)
