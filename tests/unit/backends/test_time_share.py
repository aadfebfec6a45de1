"""Engines and learners that hold the GPU in turns: who sleeps when, at which level, and with which weights it wakes."""

import asyncio

import pytest

from longshort.backends.engines.transformers_engine import TransformersCore
from longshort.backends.time_share import TimeShare
from longshort.backends.weight_transfer import ObjectStore
from longshort.pair import LivePolicy
from longshort.recipe.schema import parse
from longshort.recipe.sections import EngineConfig
from longshort.types import LONG, SHORT, LongShortError, Sample, Sampling
from tests.support import tiny_models
from tests.support.engine_cases import PROMPTS, load, sample


class Engine:
    """Writes down what it is told; `receive` is how a delivery reaches it."""

    tokenizer, context = None, 9

    def __init__(self, role, log):
        self.role, self.log = role, log

    async def sleep(self, level):
        self.log.append(f"{self.role} sleeps {level}")
        await asyncio.sleep(0)

    async def wake(self, tags):
        self.log.append(f"{self.role} wakes {'+'.join(tags)}")
        await asyncio.sleep(0)

    async def receive(self, delivery):
        self.log.append(f"{self.role} receives")


class Learner:
    """An update that takes `steps` ticks of the clock."""

    def __init__(self, role, log, steps=1, optimizer_steps=1.0, error=None):
        self.role, self.log, self.steps, self.optimizer_steps, self.error = role, log, steps, optimizer_steps, error

    async def update(self, samples):
        self.log.append(f"{self.role} learns")
        for _ in range(self.steps):
            await asyncio.sleep(0.001)
        if self.error:
            raise self.error
        return {"optimizer_steps": self.optimizer_steps}

    async def ready(self):
        self.log.append(f"{self.role} ready")

    async def free_cache(self):
        self.log.append(f"{self.role} frees its cache")

    def weights(self):
        return "reference"


class Policy(LivePolicy):
    """A LivePolicy whose canary always sings."""

    async def _prove(self):
        self.engine.log.append(f"{self.role} proven")
        return 0.0


SAMPLE = Sample(role=LONG, token_ids=(1, 9), mask=(0, 1), logprobs=(0.0, -0.5), advantages=(0.0, 1.0))


def played(*roles, steps=2, **learners):
    """Return what happens when these roles are updated in each step; `learners` are settings by role."""
    log: list[str] = []

    async def go():
        engines = {role: Engine(role, log) for role in (LONG, SHORT)}
        held = {role: Learner(role, log, **learners.get(role, {})) for role in engines}
        time_share = TimeShare(engines, held)
        config = parse({"time_share": True})
        policies = {
            role: Policy(role, engines[role], held[role], config, ObjectStore(held[role]), time_share)
            for role in engines
        }
        for _ in range(steps):
            results = await asyncio.gather(*(policies[role].update([SAMPLE]) for role in roles), return_exceptions=True)
        return results

    results = asyncio.run(go())
    first = log[: len(log) // steps]
    assert sorted(log) == sorted(first * steps), "every step is like the first"
    return results, first


def test_both_engines_sleep_until_the_slower_learner_is_done():
    _, log = played(LONG, SHORT, short={"steps": 9})
    assert sorted(log[:4]) == ["long learns", "long sleeps 2", "short learns", "short sleeps 2"]
    assert log.index("long sleeps 2") < log.index("short sleeps 2") < log.index("long learns")
    assert log.index("long frees its cache") < log.index("short frees its cache") < log.index("long wakes weights")
    for role in (LONG, SHORT):
        mine = [line.removeprefix(f"{role} ") for line in log if line.startswith(role)]
        assert mine == [
            "sleeps 2",
            "learns",
            "frees its cache",
            "ready",
            "wakes weights",
            "receives",
            "wakes kv_cache",
            "proven",
        ]


def test_the_engine_of_a_frozen_partner_keeps_its_weights():
    _, log = played(SHORT)
    assert log == [
        "long sleeps 1",
        "short sleeps 2",
        "short learns",
        "short frees its cache",
        "long wakes weights+kv_cache",
        "short ready",
        "short wakes weights",
        "short receives",
        "short wakes kv_cache",
        "short proven",
    ]


def test_an_engine_that_forgot_its_weights_gets_them_even_if_nothing_was_learned():
    (metrics,), log = played(SHORT, short={"optimizer_steps": 0.0})
    assert metrics["optimizer_steps"] == 0 and metrics["weight_sync/canary_gap"] == 0.0
    assert log[-4:] == ["short wakes weights", "short receives", "short wakes kv_cache", "short proven"]


def test_a_learner_that_fails_does_not_leave_its_partner_waiting():
    (_, error), log = played(LONG, SHORT, steps=1, short={"error": LongShortError("the short learner died")})
    assert str(error) == "the short learner died" and "long proven" in log and "short receives" not in log


def test_rollouts_beside_updates_cannot_be_had_with_engines_that_sleep():
    with pytest.raises(
        LongShortError, match=r"time_share needs staleness 0 \(got 1\): an engine that sleeps writes nothing beside"
    ):
        parse({"time_share": True, "staleness": 1})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("models"), tied_short=True)


def awake(core):
    core.wake(["weights"])
    core.wake(["kv_cache"])


@pytest.mark.parametrize("role", [LONG, SHORT])
def test_a_transformers_engine_sleeps_and_wakes(models, role):
    """Level 1 restores the weights; level 2 gives NaN until the learner's come; nothing is decoded in between."""
    core = TransformersCore(models[role], EngineConfig(**tiny_models.ENGINE))
    before = sample(core, PROMPTS)
    core.sleep(1)
    awake(core)
    assert sample(core, PROMPTS) == before
    core.sleep(2)
    assert {parameter.device.type for parameter in core._model.parameters()} == {"meta"}
    core.add("early", PROMPTS[0], Sampling(max_tokens=20, stop=(), seed=0))
    assert not core.busy
    core.wake(["weights"])
    assert all(parameter.isnan().all() for parameter in core._model.parameters())
    weights = load(models[role]).state_dict()
    core.load_weights(weights, 1)
    assert not core.busy, "no cache yet"
    core.wake(["kv_cache"])
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    assert finished["early"].logprobs == pytest.approx(before[0].logprobs, abs=1e-5) and finished["early"].version == 1
    tied = core._model.config.tie_word_embeddings
    assert (core._model.lm_head.weight is core._model.model.embed_tokens.weight) == tied == (role == SHORT)


def test_an_engine_does_not_fall_asleep_over_its_work(models):
    core = TransformersCore(models[LONG], EngineConfig(**tiny_models.ENGINE))
    core.add("0", PROMPTS[0], Sampling(max_tokens=4, stop=(), seed=0))
    with pytest.raises(LongShortError, match="cannot sleep while turns are being written"):
        core.sleep(2)
    assert core.busy
