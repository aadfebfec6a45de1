"""Prompts for an engine core, its turns, and what a plain forward pass says of them."""

import pytest

from longshort.types import Sampling

PROMPTS = [tuple(range(40, 60)), tuple(range(41, 75)), (270, 65, 66)]


def reference(model, prompt, ids, temperature):
    """Log-probs by a plain forward pass."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0].float()
    logprobs = (logits / temperature).log_softmax(-1)
    return [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)]


def load(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval()


def sample(core, prompts, **settings):
    for i, prompt in enumerate(prompts):
        core.add(str(i), prompt, Sampling(**{"max_tokens": 20, "stop": (), "seed": i} | settings))
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    return [finished[str(i)] for i in range(len(prompts))]


def written_across_an_update(core, weights):
    """Return four turns: one ends before the new weights, two have ten tokens by then, one is asked for afterwards."""
    for i, prompt in enumerate(PROMPTS):
        core.add(str(i), prompt, Sampling(max_tokens=24 if i else 6, stop=(), seed=i))
    finished = {}
    for _ in range(10):
        finished |= dict(core.step())
    core.load_weights(weights, 1)
    core.add("late", PROMPTS[1], Sampling(max_tokens=24, stop=(), seed=1))
    while core.busy:
        finished |= dict(core.step())
    return finished


def check_authors(finished, model):
    """Each token has the log-prob that its author's weights give it: no key or value of older weights is left."""
    old, new = load(model), load(model)
    new.load_state_dict(inflated(old))
    assert (finished["0"].versions, finished["late"].versions) == ((0,) * 6, (1,) * 24)
    assert finished["1"].updates == finished["2"].updates == (10,)
    assert finished["2"].versions == (0,) * 10 + (1,) * 14 and finished["2"].version == 0
    for name, prompt in zip(("0", "1", "2", "late"), [*PROMPTS, PROMPTS[1]], strict=True):
        ids, versions, logprobs = finished[name].token_ids, finished[name].versions, finished[name].logprobs
        scores = [reference(old, prompt, ids, 1.0), reference(new, prompt, ids, 1.0)]
        assert logprobs == pytest.approx([scores[version][i] for i, version in enumerate(versions)], abs=1e-4)
        assert max(abs(scores[0][i] - scores[1][i]) for i in range(len(ids))) > 0.1, "the two are far apart"


def inflated(model):
    return {name: tensor * 1.2 for name, tensor in model.state_dict().items()}
