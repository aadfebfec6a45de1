"""Several ranks behind one handle: whose answer counts, and who is to blame when one does not come."""

import asyncio

import pytest

from longshort.backends.learners import remote_learner
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.types import LongShortError


class Died(Exception):
    """The error of a process that is gone."""


class Rank:
    """An actor whose every method gives `answer` after `delay` seconds, raises it, or (None) never returns."""

    def __init__(self, answer, delay: float = 0.0):
        self.answer, self.delay, self.killed = answer, delay, False
        self.call = self  # actor.call.remote(...)

    async def remote(self, *arguments):
        await asyncio.sleep(3600 if self.answer is None else self.delay)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def outcome(*ranks: Rank):
    """What `update` returns or raises, and which ranks were killed."""

    async def go():
        learner = RemoteLearner("long", ranks, kill=lambda actor, pid: setattr(actor, "killed", True), death=Died)
        return await learner.update([])

    try:
        told = asyncio.run(go())
    except Exception as error:  # noqa: BLE001
        told = error
    return told, [rank.killed for rank in ranks]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(remote_learner, "SETTLE_S", 0.2)


def test_the_first_ranks_answer_counts_once_all_have_answered():
    assert outcome(Rank("a"), Rank("b", 0.05)) == ("a", [False, False])


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            [Rank(RuntimeError("peer\nclosed by peer")), Rank(Died("killed"), 0.1)],
            "the long learner died: rank 1 of 2: killed; resume",
        ),
        (
            [Rank(RuntimeError("timed out")), Rank(None)],
            "learner failed: rank 1 of 2 gives no sign of life; rank 0 of 2: timed out; resume",
        ),
        (
            [Rank("fine"), Rank(RuntimeError("out of memory"))],
            "the long learner failed: rank 1 of 2: out of memory; resume",
        ),
        (
            [Rank("fine"), Rank(LongShortError("no such folder"))],
            "the long learner failed: rank 1 of 2: no such folder; resume",
        ),
        ([Rank(Died("killed"))], "the long learner died: killed; resume from the last checkpoint"),
    ],
)
def test_the_culprit_is_named_and_the_others_are_ended(ranks, message):
    error, killed = outcome(*ranks)
    assert type(error) is LongShortError and message in str(error) and all(killed)


def test_a_refusal_that_all_ranks_share_arrives_as_it_is_and_ends_nobody():
    refusals = [LongShortError("long: 3 updates in a row were not finite") for _ in range(2)]
    wrapped = RuntimeError("as Ray wraps it")
    wrapped.cause = refusals[1]
    assert outcome(Rank(refusals[0]), Rank(wrapped)) == (refusals[0], [False, False])


def test_what_a_single_learner_raises_is_not_changed():
    error = ValueError("the learner of 'long' got samples of ['short']")
    assert outcome(Rank(error)) == (error, [False])
