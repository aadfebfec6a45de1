"""Two adapters in one engine core, and the checks of their turns."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from longshort.backends.weights.adapters import Adapter
from longshort.types import LONG, ROLES, SHORT, LongShortError, Sampling
from tests.support.engine_cases import PROMPTS


def adapted(path, role, r, seed):
    """A model with a random adapter, and the adapter as it travels."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=r, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    tensors = {name.replace(".default.", "."): p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return model, Adapter(role=role, r=r, alpha=16.0, tensors=tensors)


def gap(model, prompt, completion, start=0, stop=None):
    """The largest difference in nats between a completion's log-probs and the model's, over its tokens from `start` to
    `stop`.
    """
    with torch.no_grad():
        logp = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0].float().log_softmax(-1)
    found = [
        abs(logp[len(prompt) - 1 + i, t].item() - completion.logprobs[i]) for i, t in enumerate(completion.token_ids)
    ]
    return max(found[start:stop])


def check_one_engine_for_two(core, path):
    """Turns of both roles in one engine have their own adapter's log-probs, before and after one adapter is replaced
    in mid-turn.
    """
    (long, first), (short, other), (newer, second) = (
        adapted(path, *case) for case in ((LONG, 4, 1), (SHORT, 8, 2), (LONG, 4, 3))
    )
    core.load_weights(first, 0)
    core.load_weights(other, 0)
    for i in range(6):
        core.add(str(i), PROMPTS[i // 2], Sampling(max_tokens=20, stop=(), seed=i, adapter=ROLES[i % 2]))
    finished = {}
    while not finished.get("0"):
        finished |= dict(core.step())
    while core.busy:
        finished |= dict(core.step())
    for i in range(6):
        own, others = (long, short) if i % 2 == 0 else (short, long)
        assert (
            gap(own, PROMPTS[i // 2], finished[str(i)]) < 1e-4 and gap(others, PROMPTS[i // 2], finished[str(i)]) > 0.1
        )
    for i in range(4):
        core.add(str(i), PROMPTS[1], Sampling(max_tokens=24, stop=(), seed=i, adapter=ROLES[i % 2]))
    for _ in range(10):
        core.step()
    with pytest.raises(LongShortError, match="adapter of long refused"):
        core.load_weights(Adapter(role=LONG, r=8, alpha=16.0, tensors=second.tensors), 1)
    core.load_weights(second, 1)
    core.add("late", PROMPTS[1], Sampling(max_tokens=24, stop=(), seed=0, adapter=LONG))
    core.add("as before", PROMPTS[1], Sampling(max_tokens=24, stop=(), seed=1, adapter=SHORT))
    finished = {}
    while core.busy:
        finished |= dict(core.step())
    for name in ("0", "2"):
        turn = finished[name]
        (at,) = turn.updates
        assert (turn.version, at) == (0, 10)
        assert gap(long, PROMPTS[1], turn, stop=at) < 1e-4 and gap(newer, PROMPTS[1], turn, start=at) < 1e-4
        assert gap(newer, PROMPTS[1], turn, stop=at) > 0.1
    for name in ("1", "3", "as before"):
        assert finished[name].versions == (0,) * 24 and gap(short, PROMPTS[1], finished[name]) < 1e-4
    assert finished["as before"].token_ids == finished["1"].token_ids
    assert finished["late"].version == 1 and gap(newer, PROMPTS[1], finished["late"]) < 1e-4
