"""Engines and learners as Ray actors, vLLM included: log-probs, survival of a killed engine, named failures."""

import asyncio
import os
import signal

import pytest

from longshort.backends import ray_cluster
from longshort.miniature.tokenizer import build_tokenizer
from longshort.pair import LearningPair
from longshort.types import LONG, ROLES, SHORT, LongShortError, Sampling
from tests.support import tiny_models
from tests.support.engine_cases import check_authors, inflated, load, written_across_an_update

pytestmark = pytest.mark.engine
PROMPTS = [tuple(range(40, 60)), tuple(range(41, 75)), (270, 65, 66)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("models"), tied_short=True)


@pytest.fixture(scope="module")
def cluster(models, tmp_path_factory):
    """One Ray cluster for the module; yields the recipe."""
    config = tiny_models.config(tmp_path_factory.mktemp("cluster"), models)
    stop = ray_cluster.start(config)
    yield config
    stop()


def settings(i, **changes):
    return Sampling(**{"max_tokens": 24, "stop": (), "seed": i} | changes)


async def generate_all(engine, **changes):
    return await asyncio.gather(*(engine.generate(prompt, settings(i, **changes)) for i, prompt in enumerate(PROMPTS)))


def listening():
    """(addresses beyond loopback, loopback addresses) of this process tree's listening sockets."""
    import psutil

    mine = psutil.Process()
    found = set()
    for process in [mine, *mine.children(recursive=True)]:
        found |= {
            c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN
        }
    loopback = {ip for ip in found if ip.startswith("127.") or ip == "::1"}
    return found - loopback, loopback


def test_a_pair_of_vllm_engines_agrees_with_its_learners_before_and_after_updates(cluster, models):
    async def go():
        async with LearningPair(cluster, models, total_updates=dict.fromkeys(ROLES, 2)) as pair:
            outside, loopback = listening()
            assert outside == set() and loopback
            gaps = []
            for role, policy in pair.policies.items():
                assert policy.engine.backend == "vllm"
                for temperature in (1.0, 0.7):
                    for prompt, completion in zip(
                        PROMPTS, await generate_all(policy.engine, temperature=temperature), strict=True
                    ):
                        scores = await policy.learner.score(prompt, completion.token_ids, temperature)
                        gaps += [abs(a - b) for a, b in zip(completion.logprobs, scores, strict=True)]
                gaps.append(await policy.publish())
                assert (await policy.engine.generate(PROMPTS[0], settings(0))).version == 1, role
            return max(gaps)

    assert asyncio.run(go()) < 1e-4


def test_vllm_takes_new_weights_while_turns_are_being_written(cluster, models):
    """In a process with an engine's environment, step by step: how many tokens the old weights wrote is known."""
    import ray

    from longshort.backends.engines.vllm_engine import ENVIRONMENT, VllmCore

    config = cluster.long.engine

    def across(model):
        return written_across_an_update(VllmCore(model, config), inflated(load(model)))

    run = ray.remote(across).options(num_cpus=ray_cluster.cpu_share(), runtime_env={"env_vars": ENVIRONMENT})
    check_authors(ray.get(run.remote(models[LONG]), timeout=120), models[LONG])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_killed_or_stopped_in_mid_rollout_is_replaced_and_gives_the_same_turns(cluster, models, number):
    impatient = cluster.model_copy(update={"engine_timeout_s": 20.0})

    async def go():
        async with LearningPair(impatient, models, total_updates=dict.fromkeys(ROLES, 2)) as pair:
            policy = pair.policies[LONG]
            await policy.publish()
            clean = await generate_all(policy.engine, max_tokens=120)
            pid = await policy.engine._actor.ready.remote()
            again = asyncio.create_task(generate_all(policy.engine, max_tokens=120))
            await asyncio.sleep(0.01)
            os.kill(pid, number)
            while not policy.engine.restarts:
                await asyncio.sleep(0.01)
            late = await generate_all(policy.engine, max_tokens=120)  # asked for while the engine is being replaced
            recovered = await again
            assert policy.engine.restarts == 1 and [c.token_ids for c in late] == [c.token_ids for c in clean]
            assert [c.token_ids for c in recovered] == [c.token_ids for c in clean]
            assert {c.version for c in recovered} == {1}, "the replacement got the current weights"

    asyncio.run(go())


def test_an_engine_that_keeps_dying_is_given_up_with_its_reason(models, tmp_path, cluster):
    config = cluster.model_copy(update={"max_engine_restarts": 0})

    async def go():
        engine = ray_cluster.make_engine(LONG, models[LONG], config, build_tokenizer(LONG))
        pid = await engine.start()
        pending = asyncio.create_task(engine.generate(PROMPTS[0], settings(0, max_tokens=200)))
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        try:
            await pending
        finally:
            engine.close()

    with pytest.raises(LongShortError, match=r"long engine failed 1 times \(max_engine_restarts is 0\)"):
        asyncio.run(go())


def test_weights_that_do_not_fit_are_refused_and_the_engine_lives_on(cluster, models):
    import torch

    async def go():
        engine = ray_cluster.make_engine(SHORT, models[SHORT], cluster, build_tokenizer(SHORT))
        await engine.start()
        before = await generate_all(engine)
        with pytest.raises(LongShortError, match="missing tensors"):
            await engine.receive(
                lambda actor: actor.between_steps.remote("load_weights", {"model.norm.weight": torch.zeros(64)}, 1)
            )
        after = await generate_all(engine)
        engine.close()
        return before == after and engine.restarts == 0

    assert asyncio.run(go())


def test_no_memory_for_an_engine_is_explained(cluster, models):
    engine_config = cluster.long.engine.model_copy(update={"kv_cache_gib": 5000.0})
    config = cluster.model_copy(update={"long": cluster.long.model_copy(update={"engine": engine_config})})

    async def go():
        engine = ray_cluster.make_engine(LONG, models[LONG], config, build_tokenizer(LONG))
        try:
            await engine.start()
        finally:
            engine.close()

    with pytest.raises(
        LongShortError, match=r"long engine \(vllm, .*did not start.*lower long.engine.kv_cache_gib \(5000.0\)"
    ):
        asyncio.run(go())


def test_vllm_stops_on_strings_and_on_tokens(cluster, models):
    async def go():
        engine = ray_cluster.make_engine(LONG, models[LONG], cluster, build_tokenizer(LONG))
        await engine.start()
        free = (await generate_all(engine))[0]
        text = engine.tokenizer.decode(free.token_ids)
        tag = text[9:11]
        string = await engine.generate(PROMPTS[0], settings(0, stop=(tag,)))
        token = await engine.generate(PROMPTS[0], settings(0, stop=("</think>",), stop_token_ids=(free.token_ids[4],)))
        both, seen = settings(0, stop=("</think>", tag), stop_token_ids=(0,)), []
        watched = await engine.generate(PROMPTS[0], both, lambda ids: seen.append(tuple(ids)))
        engine.close()
        assert watched == string and all(ids == free.token_ids[: len(ids)] for ids in seen), (
            "a tag's id and a string go together"
        )
        return free, text, tag, string, token

    free, text, tag, string, token = asyncio.run(go())
    assert string.stop == tag and string.text == text[: text.find(tag)]
    assert string.token_ids == free.token_ids[: len(string.token_ids)]
    assert token.stop == "</think>" and token.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[4]) + 1]
