"""Rollouts beside updates in the trainer: old samples are dropped and counted, groups without variance replaced."""

import asyncio
from types import SimpleNamespace

import pytest

from longshort.backends.time_share import NoTimeShare
from longshort.pair import LivePolicy
from longshort.types import LONG, LongShortError, Sample
from tests.support import tiny_models
from tests.support.training_runs import trainer


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("untrained"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"staleness": -1}, r"staleness: Input should be greater than or equal to 0 \(got -1\)"),
        ({"staleness": 1, "deterministic": True}, r"deterministic needs staleness 0 \(got 1\): how much"),
        ({"refill": -2}, r"refill: Input should be greater than or equal to 0 \(got -2\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_number(tmp_path, untrained, settings, says):
    with pytest.raises(LongShortError, match=says):
        trainer(tmp_path, untrained, **settings)


def test_samples_beyond_the_bound_are_dropped_and_counted_and_have_no_gaps(tmp_path, untrained):
    """The learner stands at version 7; with staleness 1, what version 5 began is dropped, whoever finished it."""

    class Learner:
        async def update(self, samples):
            self.got = samples
            return {"optimizer_steps": 0.0}

        async def gaps(self):
            return [[0.01] * sum(sample.mask) for sample in self.got]

    def sample(version):
        return Sample(
            role=LONG, token_ids=(1, 9), mask=(0, 1), logprobs=(0.0, -0.5), advantages=(0.0, 1.0), version=version
        )

    async def go(staleness):
        config = trainer(tmp_path, untrained, staleness=staleness).config
        policy = LivePolicy(LONG, SimpleNamespace(tokenizer=None, context=9), Learner(), config, None, NoTimeShare())
        policy.version = 7
        metrics = await policy.update([sample(7), sample(5), sample(6)])
        counts = [metrics[name] for name in ("stale_dropped", "staleness/mean", "staleness/max")]
        return [got.version for got in policy.learner.got], counts, await policy.gaps()

    assert asyncio.run(go(1)) == ([7, 6], [1, 1.0, 2], [[0.01], None, [0.01]])
    assert asyncio.run(go(2)) == ([7, 5, 6], [0, 1.0, 2], [[0.01]] * 3)


def test_spare_problems_are_of_no_use_twice_and_depend_on_the_step_alone(tmp_path, untrained):
    run = trainer(tmp_path, untrained, refill=3)
    order = [run.spare_problems(step) for step in range(4)]
    for step, spares in enumerate(order):
        assert len({problem.id for problem in [*spares, *run.step_problems(step)]}) == 7
    assert [run.spare_problems(step) for step in (3, 0)] == [order[3], order[0]] and order[0] != order[1]
    few = trainer(tmp_path, untrained, refill=3)
    few.problems = few.problems[:6]
    assert len(few.spare_problems(0)) == 2, "no more than there are"
    assert trainer(tmp_path, untrained).spare_problems(0) == []
