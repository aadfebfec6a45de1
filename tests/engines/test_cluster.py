"""Engines and learners as Ray actors, vLLM included: log-probs, stops, weights, and survival of a killed engine."""

import asyncio
import os
import signal

import psutil
import pytest
import torch

from longshort.backends import ray_cluster
from longshort.miniature.tokenizer import build_tokenizer
from longshort.types import LONG, ROLES, SHORT, LongShortError, Sampling
from tests.support.engine_cases import PROMPTS, check_authors, inflated, load, written_across_an_update


def settings(i, **changes):
    return Sampling(**{"max_tokens": 24, "stop": (), "seed": i} | changes)


async def generate_all(engine, **changes):
    return await asyncio.gather(*(engine.generate(prompt, settings(i, **changes)) for i, prompt in enumerate(PROMPTS)))


async def largest_gap(policy, temperature):
    """The largest difference in nats between the engine's log-probs of its own tokens and the learner's."""
    gaps = []
    for prompt, turn in zip(PROMPTS, await generate_all(policy.engine, temperature=temperature), strict=True):
        scores = await policy.learner.score(prompt, turn.token_ids, temperature)
        gaps += [abs(a - b) for a, b in zip(turn.logprobs, scores, strict=True)]
    return max(gaps)


def test_nothing_listens_beyond_loopback(pair):
    mine = psutil.Process()
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [mine, *mine.children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert [address for address in addresses if not address.startswith("127.") and address != "::1"] == []


def test_the_engines_of_a_pair_are_vllms(pair):
    assert [pair.policies[role].engine.backend for role in ROLES] == ["vllm", "vllm"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("role", ROLES)
def test_vllm_agrees_with_the_learner(pair, run_in_loop, role, temperature):
    assert run_in_loop(largest_gap(pair.policies[role], temperature)) < 1e-4


def test_vllm_stops_on_a_string_and_cuts_the_text_but_not_the_ids(pair, run_in_loop):
    engine = pair.policies[LONG].engine
    free = run_in_loop(engine.generate(PROMPTS[0], settings(0)))
    text = engine.tokenizer.decode(free.token_ids)
    tag = text[9:11]
    stopped = run_in_loop(engine.generate(PROMPTS[0], settings(0, stop=(tag,))))
    assert stopped.stop == tag
    assert stopped.text == text[: text.find(tag)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


def test_vllm_stops_on_a_token_and_keeps_it_in_the_ids(pair, run_in_loop):
    engine = pair.policies[LONG].engine
    free = run_in_loop(engine.generate(PROMPTS[0], settings(0)))
    closing = free.token_ids[4]
    closed = run_in_loop(engine.generate(PROMPTS[0], settings(0, stop=("</think>",), stop_token_ids=(closing,))))
    assert closed.stop == "</think>"
    assert closed.token_ids == free.token_ids[: free.token_ids.index(closing) + 1]


def test_vllm_streams_a_turn_and_the_id_of_a_tag_goes_together_with_a_stop_string(pair, run_in_loop):
    engine, seen = pair.policies[LONG].engine, []
    free = run_in_loop(engine.generate(PROMPTS[0], settings(0, max_tokens=120)))
    tag = engine.tokenizer.decode(free.token_ids)[-4:]
    alone = run_in_loop(engine.generate(PROMPTS[0], settings(0, max_tokens=120, stop=(tag,))))
    both = settings(0, max_tokens=120, stop=("</think>", tag), stop_token_ids=(0,))
    assert run_in_loop(engine.generate(PROMPTS[0], both, lambda ids: seen.append(tuple(ids)))) == alone
    assert seen
    assert all(ids == free.token_ids[: len(ids)] for ids in seen)


def test_weights_that_do_not_fit_are_refused_and_the_engine_lives_on(pair, run_in_loop):
    engine = pair.policies[SHORT].engine
    before = run_in_loop(generate_all(engine))
    broken = {"model.norm.weight": torch.zeros(64)}
    with pytest.raises(LongShortError, match="missing tensors"):
        run_in_loop(engine.receive(lambda actor: actor.between_steps.remote("load_weights", broken, 1)))
    assert run_in_loop(generate_all(engine)) == before
    assert engine.restarts == 0


@pytest.mark.parametrize("role", ROLES)
def test_vllm_holds_a_new_version_after_it_is_published(pair, run_in_loop, role):
    policy = pair.policies[role]
    assert run_in_loop(policy.publish()) < 1e-4
    assert run_in_loop(policy.engine.generate(PROMPTS[0], settings(0))).version == 1


def test_vllm_takes_new_weights_while_turns_are_being_written(in_vllm_core, models):
    """Step by step, so that it is known how many tokens the old weights wrote."""
    path = models[LONG]
    finished = in_vllm_core(lambda core: written_across_an_update(core, inflated(load(path))))
    check_authors(finished, path)


def test_an_engine_killed_in_mid_rollout_is_replaced_and_gives_the_same_turns(pair, run_in_loop):
    policy = pair.policies[LONG]

    async def go():
        await policy.publish()
        clean = await generate_all(policy.engine, max_tokens=120)
        pid = await policy.engine._actor.ready.remote()
        again = asyncio.create_task(generate_all(policy.engine, max_tokens=120))
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        while not policy.engine.restarts:
            await asyncio.sleep(0.01)
        late = await generate_all(policy.engine, max_tokens=120)  # asked for while the engine is being replaced
        return clean, await again, late

    clean, recovered, late = run_in_loop(go())
    assert policy.engine.restarts == 1
    assert [turn.token_ids for turn in recovered] == [turn.token_ids for turn in clean]
    assert [turn.token_ids for turn in late] == [turn.token_ids for turn in clean]
    assert {turn.version for turn in recovered} == {policy.version}, "the replacement has the current weights"


@pytest.fixture
def transformers_engine(cluster, models):
    """Make an engine of transformers, which starts sooner than vLLM; supervision is the same."""
    made = []

    def make(**changes):
        section = cluster.long.model_copy(
            update={"engine": cluster.long.engine.model_copy(update={"backend": "transformers"})}
        )
        config = cluster.model_copy(update={"long": section} | changes)
        made.append(ray_cluster.make_engine(LONG, models[LONG], config, build_tokenizer(LONG)))
        return made[0]

    yield make
    for engine in made:
        engine.close()


def test_an_engine_that_stops_answering_is_replaced_and_gives_the_same_turns(transformers_engine, run_in_loop):
    engine = transformers_engine(engine_timeout_s=4.0)

    async def go():
        pid = await engine.start()
        clean = await generate_all(engine)
        again = asyncio.create_task(generate_all(engine))
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        return clean, await again

    clean, recovered = run_in_loop(go())
    assert engine.restarts == 1
    assert [turn.token_ids for turn in recovered] == [turn.token_ids for turn in clean]


def test_an_engine_that_keeps_dying_is_given_up_with_its_reason(transformers_engine, run_in_loop):
    engine = transformers_engine(max_engine_restarts=0)

    async def go():
        pid = await engine.start()
        pending = asyncio.create_task(engine.generate(PROMPTS[0], settings(0, max_tokens=200)))
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        await pending

    with pytest.raises(LongShortError, match=r"long engine failed 1 times \(max_engine_restarts is 0\)"):
        run_in_loop(go())
