"""The thread around an engine core: what is delivered when."""

import threading

import pytest

from longshort.backends.engines import engine_loop
from longshort.backends.engines.engine_loop import BATCHING_S_PER_REQUEST, MAX_BATCHING_S, EngineLoop
from longshort.types import Completion, Sampling


class Core:
    """Takes a step when the test allows one; a turn ends with the step of its `max_tokens`."""

    prompt_tokens = cached_tokens = decoded = 0

    def __init__(self):
        self.ends, self.allowed = {}, threading.Semaphore(0)

    @property
    def busy(self):
        return bool(self.ends)

    def add(self, request_id, prompt_ids, sampling):
        self.ends[request_id] = sampling.max_tokens

    def abort(self, request_ids):
        for request_id in request_ids:
            self.ends.pop(request_id, None)

    def step(self):
        self.allowed.acquire()
        self.decoded += 1
        finished = [request_id for request_id, end in self.ends.items() if end == self.decoded]
        self.abort(finished)
        return [
            (request_id, Completion(token_ids=(1,), logprobs=(0.0,), text="", stop="length", version=0))
            for request_id in finished
        ]


@pytest.fixture
def loop():
    loop = EngineLoop(Core)
    yield loop
    loop.abort(list(loop.core.ends))
    loop.core.allowed.release(10)


def requests(**ends):
    return [(name, (1,), Sampling(max_tokens=end, stop=(), seed=0), False) for name, end in ends.items()]


def collected(loop, steps):
    loop.core.allowed.release(steps)
    return [request_id for request_id, _ in loop.collect(timeout=30)]


def test_a_finished_turn_waits_for_company_only_where_there_may_be_some(loop, monkeypatch):
    waits = []
    monkeypatch.setattr(engine_loop.time, "sleep", waits.append)
    others = {f"other{number}": 1000 for number in range(100)}
    loop.submit(requests(first=1, second=3, third=5, **others))
    assert collected(loop, 1) == ["first"] and waits.pop() == MAX_BATCHING_S, (
        "at most so long, however many are being written"
    )
    loop.abort(list(others)[9:])
    assert collected(loop, 2) == ["second"] and waits.pop() == pytest.approx(10 * BATCHING_S_PER_REQUEST)
    loop.abort(list(others))
    loop.submit(requests(last=6))
    assert collected(loop, 2) == ["third"] and waits.pop() == pytest.approx(BATCHING_S_PER_REQUEST)
    assert collected(loop, 1) == ["last"] and waits == [], "nobody else is written: nothing to wait for"
