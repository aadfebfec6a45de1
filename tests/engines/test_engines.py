"""Engines against the learner: the same ids get the same log-probs, turns end, weights arrive or are refused."""

import asyncio

import pytest

from longshort.backends.engines.transformers_engine import TransformersCore, processed_logprobs
from longshort.backends.weights.weight_sync import check_canary, check_weights
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.sections import EngineConfig
from longshort.runs.model_files import expected_weights
from longshort.types import LONG, SHORT, LongShortError, Sampling
from tests.support import tiny_models
from tests.support.engine_cases import (
    PROMPTS,
    check_authors,
    inflated,
    load,
    reference,
    sample,
    written_across_an_update,
)
from tests.support.local_engine import LocalEngine

CONFIG = EngineConfig(**tiny_models.ENGINE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("role", [LONG, SHORT])
def test_transformers_engine_logprobs_are_the_models(models, role, temperature):
    core, model = TransformersCore(models[role], CONFIG), load(models[role])
    for prompt, completion in zip(PROMPTS, sample(core, PROMPTS, temperature=temperature), strict=True):
        assert completion.logprobs == pytest.approx(
            reference(model, prompt, completion.token_ids, temperature), abs=1e-4
        )
        assert completion.stop in ("length", "eos")


def test_a_request_gets_the_same_tokens_alone_and_in_company(models):
    core = TransformersCore(models[LONG], CONFIG)
    together = sample(core, PROMPTS)
    core.add("alone", PROMPTS[1], Sampling(max_tokens=20, stop=(), seed=1))
    while not (finished := core.step()):
        pass
    assert finished[0][1].token_ids == together[1].token_ids


def test_a_stop_string_cuts_the_text_but_never_the_ids(models):
    core, tokenizer = TransformersCore(models[LONG], CONFIG), build_tokenizer(LONG)
    free = sample(core, PROMPTS[:1], max_tokens=30)[0]
    text = tokenizer.decode(free.token_ids)
    tag = text[9:11]
    stopped = sample(core, PROMPTS[:1], max_tokens=30, stop=(tag, "never"))[0]
    assert stopped.stop == tag and stopped.text == text[: text.find(tag)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)] and tag in tokenizer.decode(stopped.token_ids)


def test_a_stop_token_ends_the_turn_and_stays_in_the_ids(models):
    core = TransformersCore(models[LONG], CONFIG)
    free = sample(core, PROMPTS[:1])[0]
    stopped = sample(core, PROMPTS[:1], stop=("</think>",), stop_token_ids=(free.token_ids[4],))[0]
    assert stopped.stop == "</think>" and stopped.token_ids[-1] == free.token_ids[4] and len(stopped.token_ids) <= 5


def test_top_k_and_top_p_renormalise_by_hand():
    import torch

    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    two = processed_logprobs(logits, Sampling(max_tokens=1, stop=(), top_k=2)).exp()
    nucleus = processed_logprobs(logits, Sampling(max_tokens=1, stop=(), top_p=0.7)).exp()
    assert two.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    assert nucleus.tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])


def test_new_weights_change_the_engine_and_refused_ones_do_not(models):
    import torch

    core, model = TransformersCore(models[LONG], CONFIG), load(models[LONG])
    before = sample(core, PROMPTS)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for broken, message in (
        (
            {name: t for name, t in weights.items() if name != "model.norm.weight"},
            "missing tensors .'model.norm.weight'",
        ),
        (weights | {"extra": torch.zeros(1)}, "unknown tensors .'extra'"),
        (
            weights | {"model.norm.weight": torch.zeros(3)},
            r"model.norm.weight has shape \(3,\), the engine's model has \(128,\)",
        ),
        (weights | {"model.norm.weight": torch.full((128,), float("nan"))}, "model.norm.weight holds NaN"),
    ):
        with pytest.raises(LongShortError, match=message):
            core.load_weights(broken, 1)
    assert (core.version, sample(core, PROMPTS)) == (0, before)
    core.load_weights({name: tensor * 1.5 for name, tensor in weights.items()}, 1)
    after = sample(core, PROMPTS)
    assert after[0].version == 1 and after[0].logprobs != before[0].logprobs


def test_new_weights_arrive_while_turns_are_being_written(models):
    core = TransformersCore(models[LONG], CONFIG)
    check_authors(written_across_an_update(core, inflated(load(models[LONG]))), models[LONG])


def test_a_turn_given_up_leaves_the_others_as_they_are(models):
    core = TransformersCore(models[LONG], CONFIG)
    free = sample(core, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        core.add(str(i), prompt, Sampling(max_tokens=20, stop=(), seed=i))
    for _ in range(5):
        core.step()
    core.abort(["1"])
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    assert {name: completion.token_ids for name, completion in finished.items()} == {
        "0": free[0].token_ids,
        "2": free[2].token_ids,
    }


def test_a_tied_head_is_expected_by_its_own_name(models):
    expected = expected_weights(models[SHORT])
    assert expected["lm_head.weight"] == expected["model.embed_tokens.weight"]
    check_weights(load(models[SHORT]).state_dict(), expected)


def test_a_canary_beyond_its_tolerance_or_nan_is_an_error():
    assert check_canary([-1.0, -2.0], [-1.0, -2.0005], "float32", LONG, 3) == pytest.approx(0.00025)
    for wrong in (-2.3, float("nan")):
        with pytest.raises(RuntimeError, match="long engine does not hold version 3"):
            check_canary([-1.0, -2.0], [-1.0, wrong], "float32", LONG, 3)


def test_episodes_share_an_engine_in_this_process(models):
    async def go():
        engine = LocalEngine("transformers", models[LONG], CONFIG, build_tokenizer(LONG))
        return await asyncio.gather(
            *(engine.generate(prompt, Sampling(max_tokens=6, stop=(), seed=2)) for prompt in PROMPTS * 3)
        )

    answers = asyncio.run(go())
    assert [answer.token_ids for answer in answers[:3]] == [answer.token_ids for answer in answers[3:6]]


def test_a_turn_is_streamed_while_it_is_written_and_a_closing_token_is_not(models):
    """Own stop strings go along with tags that are single tokens; who leaves frees the engine."""

    async def go():
        engine, seen = LocalEngine("transformers", models[LONG], CONFIG, build_tokenizer(LONG)), []
        free = await engine.generate(
            PROMPTS[0], Sampling(max_tokens=40, stop=(), seed=7), lambda ids: seen.append(tuple(ids))
        )
        text, closing = engine.tokenizer.decode(free.token_ids), free.token_ids[20]
        told = []
        by_id = Sampling(max_tokens=40, stop=("</think>", "\0"), stop_token_ids=(closing,), seed=7)
        closed = await engine.generate(PROMPTS[0], by_id, lambda ids: told.append(tuple(ids)))
        string = await engine.generate(
            PROMPTS[0], Sampling(max_tokens=40, stop=("</think>", "last digit"), stop_token_ids=(0,), seed=7)
        )
        gone = asyncio.create_task(engine.generate(PROMPTS[0], Sampling(max_tokens=200, stop=(), seed=7)))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        while engine.loop.core.busy:
            await asyncio.sleep(0.01)
        return free, seen, text, closing, closed, told, string

    free, seen, text, closing, closed, told, string = asyncio.run(go())
    assert (
        seen
        and all(ids == free.token_ids[: len(ids)] for ids in seen)
        and [*map(len, seen)] == sorted({*map(len, seen)})
    )
    end = free.token_ids.index(closing)
    assert closed.stop == "</think>" and closed.token_ids == free.token_ids[: end + 1]
    assert all(ids == free.token_ids[: min(len(ids), end)] for ids in told), "the tag that ends a turn is no part of it"
    assert string.stop == "last digit" and string.text == text[: text.find("last digit")]


def test_a_missing_model_folder_has_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LongShortError, match="holds no"):
        expected_weights(str(tmp_path))
