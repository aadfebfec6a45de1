"""A pair answers from ordinary code, and from a coroutine, as its evaluation does; engines of transformers."""

import asyncio

import pytest

from longshort.dialogue.rollout import Decoding
from longshort.evaluation.runner import evaluate
from longshort.grading.pool import GradingPool
from longshort.miniature.world import make_problems
from longshort.recipe.schema import dump
from longshort.team.conversation import Finished, ImpossibleQuery, Piece, Query, TurnEnded
from longshort.team.team import Team
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models

QUESTION = "Last digit of a: 7+b: 6?"
PROBLEMS = make_problems("dev", 24, 0)


@pytest.fixture(scope="module")
def recipe(cluster, speaking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    (folder / "recipe.yaml").write_text(dump(tiny_models.config(folder, speaking)))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def team(recipe):
    with Team.from_pretrained(recipe, backend="transformers") as team:
        yield team


@pytest.fixture(scope="module")
def solved(team):
    return team.solve(PROBLEMS, seed=5, temperature=1.0)


def texts(episode):
    return [(turn.role, turn.completion.text, turn.completion.stop) for turn in episode.turns]


def test_a_team_answers_every_problem_in_order(solved):
    assert [episode.problem for episode in solved] == PROBLEMS


def test_the_same_seed_gives_the_same_episodes(team, solved):
    again = team.solve(PROBLEMS, seed=5, temperature=1.0)
    assert [texts(episode) for episode in again] == [texts(episode) for episode in solved]


def test_one_problem_is_asked_as_many_are(team, solved):
    alone = team.solve(PROBLEMS[3], seed=5, temperature=1.0)
    assert alone.turns[0].prompt_ids == solved[3].turns[0].prompt_ids


def test_answers_are_those_of_the_evaluation(team, solved):
    async def evaluated():
        with GradingPool() as pool:
            return await evaluate(team.engines(), team.protocol, PROBLEMS, pool, Decoding(temperature=1.0), seed=5)

    episodes = team._thread.run(evaluated()).episodes
    assert [texts(episode) for episode in episodes] == [texts(episode) for episode in solved]


def test_the_short_model_can_be_asked_alone(team):
    assert {turn.role for turn in team.solve(QUESTION, mode="short").turns} == {SHORT}


def test_the_pieces_of_a_stream_are_the_text_of_its_turns(team):
    events = list(team.stream(QUESTION, seed=1))
    pieces = "".join(event.text for event in events if isinstance(event, Piece))
    assert pieces
    assert pieces == "".join(event.turn.completion.text for event in events if isinstance(event, TurnEnded))
    assert isinstance(events[-1], Finished)


def test_leaving_a_stream_frees_the_engines(team):
    for event in team.stream(QUESTION, max_tokens=200):
        if isinstance(event, Piece):
            break

    async def waiting():
        return [engine.waiting for engine in team.engines().values()]

    assert team._thread.run(waiting()) == [0, 0]


def test_another_event_loop_is_refused(team):
    with pytest.raises(LongShortError, match="runs in another event loop"):
        asyncio.run(team.ask(Query(question=QUESTION)))


def test_a_question_longer_than_the_context_is_refused(team):
    with pytest.raises(ImpossibleQuery, match=r"question takes \d+ tokens, but the long model's context holds 256"):
        team.solve(QUESTION * 100)


def test_more_gpus_than_the_cluster_has_are_refused(recipe):
    async def start():
        await Team.from_pretrained(recipe, num_gpus=1000).__aenter__()

    with pytest.raises(LongShortError, match=r"engines of \w+ take 2000 GPUs but the cluster has \d"):
        asyncio.run(start())


@pytest.fixture(scope="module")
def in_a_coroutine(recipe):
    """Eight answers to one question, one abandoned conversation, and the engines' counts, from one event loop."""

    async def go():
        async with Team.from_pretrained(recipe, backend="transformers", max_num_seqs=2) as team:
            with pytest.raises(LongShortError, match="started by `async with`"):
                team.solve(QUESTION)
            many = await team.asolve([QUESTION] * 8)
            abandoned = team.converse(Query(question=QUESTION))
            await anext(abandoned)
            await abandoned.aclose()
            return team.capacity, many, await team.stats()

    return asyncio.run(go())


def test_the_capacity_follows_the_engines_settings(in_a_coroutine):
    assert in_a_coroutine[0] == 6


def test_each_of_many_answers_has_its_own_seed(in_a_coroutine):
    assert len({episode.turns[0].completion.token_ids for episode in in_a_coroutine[1]}) > 1


def test_an_abandoned_conversation_leaves_nothing_waiting(in_a_coroutine):
    stats = in_a_coroutine[2]
    assert {role: (stats[role]["restarts"], stats[role]["waiting"]) for role in ROLES} == {LONG: (0, 0), SHORT: (0, 0)}


def test_the_engines_count_the_tokens_they_sampled(in_a_coroutine):
    _, many, stats = in_a_coroutine
    assert stats[LONG]["sampled_tokens"] >= sum(episode.tokens(LONG) for episode in many)
