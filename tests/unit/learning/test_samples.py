"""One sequence per (episode, role): each role's masked tokens are exactly what it sampled."""

from dataclasses import replace

import pytest

from longshort.learning.samples import sample_of
from longshort.types import LONG, SHORT, Completion, Episode, Problem, Turn

PROBLEM = Problem(id="p1", question="1+1?", answer="2")


def turn(role: str, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...], logprob: float = -0.5) -> Turn:
    completion = Completion(
        token_ids=token_ids, logprobs=(logprob,) * len(token_ids), text="", stop="</think>", version=0
    )
    return Turn(role=role, prompt_ids=prompt_ids, completion=completion)


DIALOGUE = Episode(
    problem=PROBLEM,
    turns=(
        turn(LONG, (1, 2), (31, 9), -0.1),
        turn(SHORT, (1, 3, 50), (7, 8, 8), -0.2),
        turn(LONG, (1, 2, 31, 9, 40, 41), (4,), -0.3),
        turn(SHORT, (1, 3, 50, 7, 8, 8, 60), (5, 6), -0.4),
    ),
    stop="answered",
)


def test_the_long_view_masks_the_partners_text():
    sample = sample_of(DIALOGUE, LONG, 0.5)
    assert sample.token_ids == (1, 2, 31, 9, 40, 41, 4)
    assert sample.mask == (0, 0, 1, 1, 0, 0, 1)
    assert sample.logprobs == (0.0, 0.0, -0.1, -0.1, 0.0, 0.0, -0.3)
    assert sample.advantages == (0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5)


def test_a_sample_is_as_old_as_its_oldest_token():
    parts = ((5, (2,)), (6, ()))  # the first turn was begun by version 5 and finished by 6
    written = [
        replace(turn.completion, version=v, updates=u) for turn, (v, u) in zip(DIALOGUE.turns[1::2], parts, strict=True)
    ]
    turns = [
        replace(turn, completion=completion) for turn, completion in zip(DIALOGUE.turns[1::2], written, strict=True)
    ]
    episode = replace(DIALOGUE, turns=(DIALOGUE.turns[0], turns[0], DIALOGUE.turns[2], turns[1]))
    assert (sample_of(episode, SHORT, 1.0).version, sample_of(episode, LONG, 1.0).version) == (5, 0)


@pytest.mark.parametrize("role", [LONG, SHORT])
def test_masked_tokens_are_exactly_what_the_role_sampled(role):
    sample = sample_of(DIALOGUE, role, 1.0)
    sampled = [i for turn in DIALOGUE.turns if turn.role == role for i in turn.completion.token_ids]
    assert [i for i, m in zip(sample.token_ids, sample.mask, strict=True) if m] == sampled


def test_a_role_that_sampled_nothing_has_no_sample():
    only_long = Episode(problem=PROBLEM, turns=DIALOGUE.turns[:1], stop="turn_length")
    empty = Episode(problem=PROBLEM, turns=(turn(SHORT, (1,), ()),), stop="malformed")
    assert sample_of(only_long, SHORT, 1.0) is None
    assert sample_of(empty, SHORT, 1.0) is None


@pytest.mark.parametrize(
    "prompt", [(1, 2, 31, 8, 40), (1, 3, 31, 9, 40), (1, 2)], ids=["sampled id changed", "prompt changed", "prompt cut"]
)
def test_a_prompt_that_rewrites_the_past_is_refused(prompt):
    episode = Episode(problem=PROBLEM, turns=(DIALOGUE.turns[0], turn(LONG, prompt, (4,))), stop="answered")
    with pytest.raises(ValueError, match=r"p1.*append-only"):
        sample_of(episode, LONG, 1.0)
