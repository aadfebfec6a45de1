"""A trained pair answers from ordinary code as its evaluation does."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from longshort.dialogue.rollout import Decoding
from longshort.evaluation.runner import evaluate
from longshort.grading.pool import GradingPool
from longshort.miniature.world import make_problems
from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.team.conversation import Finished, ImpossibleQuery, Piece, Query, TurnEnded
from longshort.team.team import Team
from longshort.trainer import LongShortTrainer
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models

QUESTION = "Last digit of a: 7+b: 6?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it: two models that close their turns, checkpoints, a recipe, an evaluation."""
    folder = tmp_path_factory.mktemp("team")
    models = tiny_models.make_speaking(folder / "models")
    config = tiny_models.config(folder, models)
    output_dir = Path(config.output_dir)
    output_dir.mkdir()
    for step in (1, 2):
        partial = checkpoint.begin(output_dir, step)
        for role in ROLES:
            shutil.copytree(models[role], partial / role)
        (partial / "state" / "optimizer.safetensors").write_bytes(b"moments")
        checkpoint.commit(
            partial, {"step": step, "versions": {LONG: step, SHORT: step}, "recipe": config.model_dump(mode="json")}
        )
    (output_dir / "recipe.yaml").write_text(dump(config))
    (output_dir / "eval").mkdir()
    (output_dir / "eval" / "results.json").write_text(json.dumps(evaluation()))
    return config


def evaluation():
    """A results file with the newest checkpoint's pair, an older one's, a single model and a cell of the cross-play."""

    def row(system, accuracy):
        names = {"system": system, "benchmark": "miniature:dev", "decoding": "sampled", "n": 8, "samples": 1}
        measures = {"accuracy": accuracy, "stderr": 0.1, "interval": [0.1, 0.9], "tokens": 20.0, "turns": 2.0}
        return names | measures | {"hand_back_rate": 0.5, "format": 1.0}

    models = {
        "pair": "run/checkpoint-2",
        "before": "run/checkpoint-1",
        "single_long": "models",
        "long@trained+short@trained": "models",
    }
    systems = {name: {"title": name, "models": {LONG: f"{folder}/long"}} for name, folder in models.items()}
    return {
        "name": "results",
        "made": "2026-01-31T10:00:00+00:00",
        "systems": systems,
        "benchmarks": {"miniature:dev": {"title": "miniature:dev"}},
        "cross_play": {"long": ["trained"], "short": ["trained"]},
        "results": [row(name, (2 + number) / 8) for number, name in enumerate(models)],
    }


@pytest.fixture(scope="module")
def folder(run):
    return LongShortTrainer(args=run).save_model()


def test_a_team_answers_from_ordinary_code_as_its_evaluation_does(run, folder):
    problems = make_problems("dev", 24, 0)
    with Team.from_pretrained(folder) as team:
        solved = team.solve(problems, seed=5, temperature=1.0)
        assert [episode.problem for episode in solved] == problems
        assert team.solve(problems, seed=5, temperature=1.0) == solved, "the same dice give the same episodes"
        one = team.solve(problems[3], seed=5, temperature=1.0)
        assert one.turns[0].prompt_ids == solved[3].turns[0].prompt_ids
        assert {turn.role for turn in team.solve(QUESTION, mode="short").turns} == {SHORT}

        async def evaluated():
            with GradingPool() as pool:
                found = await evaluate(team.engines(), team.protocol, problems, pool, Decoding(temperature=1.0), seed=5)
            return list(found.episodes)

        assert [texts(episode) for episode in team._thread.run(evaluated())] == [texts(episode) for episode in solved]
        events = list(team.stream(QUESTION, seed=1))
        assert isinstance(events[-1], Finished)
        told = "".join(event.text for event in events if isinstance(event, Piece))
        assert told == "".join(event.turn.completion.text for event in events if isinstance(event, TurnEnded)) != ""
        for event in team.stream(QUESTION, max_tokens=200):
            if isinstance(event, Piece):
                break
        assert all(engine.waiting == 0 for engine in team._thread.run(coroutine(team.engines))), (
            "who leaves frees the engines"
        )
        with pytest.raises(LongShortError, match="runs in another event loop"):
            asyncio.run(team.ask(Query(question=QUESTION)))
        with pytest.raises(ImpossibleQuery, match=r"question takes \d+ tokens, but the long model's context holds 256"):
            team.solve(QUESTION * 100)
    assert team._pair is None and team._thread is None


def test_a_team_answers_in_a_coroutine(folder):
    """With transformers' engines; two of the settings that from_pretrained takes for both."""

    async def go():
        with pytest.raises(LongShortError, match=r"engines of run take 2000 GPUs but the cluster has \d"):
            await Team.from_pretrained(folder, num_gpus=1000).__aenter__()
        async with Team.from_pretrained(folder, backend="transformers", max_num_seqs=2) as team:
            assert team.capacity == 6
            with pytest.raises(LongShortError, match="started by `async with`"):
                team.solve(QUESTION)
            many = await team.asolve([QUESTION] * 8)
            abandoned = team.converse(Query(question=QUESTION))
            await anext(abandoned)
            await abandoned.aclose()
            stats = await team.stats()
            return many, stats

    many, stats = asyncio.run(go())
    assert len({episode.turns[0].completion.token_ids for episode in many}) > 1, "each has its own dice"
    assert {role: (each["restarts"], each["waiting"]) for role, each in stats.items()} == {LONG: (0, 0), SHORT: (0, 0)}
    assert stats[LONG]["sampled_tokens"] >= sum(episode.tokens(LONG) for episode in many)


def texts(episode):
    return [(turn.role, turn.completion.text, turn.completion.stop) for turn in episode.turns]


async def coroutine(function):
    return function().values()
