"""The driver's side of an engine, against fake processes: which turns are asked for again, fail, or are streamed."""

import asyncio
from types import SimpleNamespace

import pytest

from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.recipe.schema import parse
from longshort.types import LONG, Completion, LongShortError, Sampling

PLAIN, POISON = Sampling(max_tokens=9, stop=()), Sampling(max_tokens=9, stop=(), seed=666)


class Died(Exception):
    pass


class Process:
    """Answers every turn with the ids (1, 2, 3) after two drafts, dies of a poisoned one, or does not start at all."""

    def __init__(self, number, starts=True):
        self.starts, self.number, self.requests, self.sent, self.messages = starts, number, [], {}, []
        for name in ("ready", "submit", "collect", "abort"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _ready(self):
        if not self.starts:
            raise Died("no memory")
        return 1000 + self.number

    def _submit(self, requests):
        self.requests += requests

    def _abort(self, request_ids):
        self.requests = [request for request in self.requests if request[0] not in request_ids]

    async def _collect(self):
        await asyncio.sleep(0.001)
        await self._ready()
        if any(sampling.seed == 666 for _, _, sampling, _ in self.requests):
            raise Died("of poison")
        news = []
        for request in list(self.requests):
            request_id, _, _, streamed = request
            sent = self.sent.setdefault(request_id, 0)
            if streamed and sent < 2:
                news.append((request_id, (sent, (sent + 1,))))
                self.sent[request_id] += 1
            else:
                self.requests.remove(request)
                news.append(
                    (request_id, Completion(token_ids=(1, 2, 3), logprobs=(0.0,) * 3, text="", stop="eos", version=0))
                )
        self.messages += news
        return news


def engine_of(processes, **config):
    """An engine whose processes are these, one after the other; the last one for ever."""
    left = list(processes)
    settings = parse({"max_engine_restarts": 2} | config)
    return RemoteEngine(
        LONG,
        settings,
        tokenizer=None,
        engine=settings.long.engine,
        backend="fake",
        model="fake",
        spawn=lambda: left.pop(0) if len(left) > 1 else left[0],
        kill=lambda actor, pid: None,
        failure=Died,
    )


def test_only_streamed_turns_are_reported():
    process, seen = Process(0), []

    async def go():
        engine = engine_of([process])
        await asyncio.gather(
            engine.generate((5,), PLAIN), engine.generate((6,), PLAIN, lambda ids: seen.append(list(ids)))
        )
        return engine

    asyncio.run(go())
    assert seen == [[1], [1, 2]]
    assert [type(news).__name__ for request_id, news in process.messages if request_id == "long-0"] == ["Completion"]


def test_a_turn_that_kills_the_engine_again_and_again_fails_and_later_turns_do_not():
    """It is asked for three times (two restarts) and fails; the next turn gets a living engine."""
    processes = [Process(number) for number in range(9)]

    async def go():
        engine = engine_of(processes)
        with pytest.raises(
            LongShortError, match=r"long engine failed 3 times \(max_engine_restarts is 2\); last: of poison"
        ):
            await engine.generate((5,), POISON)
        return engine, (await engine.generate((6,), PLAIN)).token_ids

    engine, ids = asyncio.run(go())
    assert ids == (1, 2, 3) and engine.waiting == 0


def test_failures_before_a_delivered_turn_do_not_count():
    """A server runs for months: three crashes, each followed by good turns, are no reason to give up."""

    class Frail(Process):
        """Delivers one turn and dies of the next."""

        async def _collect(self):
            if self.messages and self.requests:
                raise Died("again")
            return await super()._collect()

    async def go():
        engine = engine_of([Frail(number) for number in range(9)])
        return [(await engine.generate((number,), PLAIN)).token_ids for number in range(6)], engine.restarts

    answers, restarts = asyncio.run(go())
    assert answers == [(1, 2, 3)] * 6 and restarts == 5


def test_an_engine_that_does_not_start_fails_everyone_and_the_next_one_tries_again():
    dead, well = [Process(number, starts=False) for number in range(3)], Process(9)
    first = Process(0)

    async def go():
        engine = engine_of([first, *dead[:2], well])
        first.requests.append(("", (), POISON, False))  # it dies, and its two replacements do not start
        waiting = [asyncio.create_task(engine.generate((number,), PLAIN)) for number in range(2)]
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        return failed, (await engine.generate((7,), PLAIN)).token_ids, engine.restarts

    failed, ids, restarts = asyncio.run(go())
    assert all("failed 3 times" in str(error) and "no memory" in str(error) for error in failed), failed
    assert ids == (1, 2, 3) and restarts == 3


def test_a_replacement_writes_a_streamed_turn_from_its_start():
    class Halfway(Process):
        """Dies after it has sent the first two ids."""

        async def _collect(self):
            if len(self.messages) == 2:
                raise Died("halfway")
            return await super()._collect()

    seen = []

    async def go():
        engine = engine_of([Halfway(0), Process(1)])
        return (await engine.generate((5,), PLAIN, lambda ids: seen.append(list(ids)))).token_ids

    assert asyncio.run(go()) == (1, 2, 3)
    assert seen == [[1], [1, 2], [1], [1, 2]]
