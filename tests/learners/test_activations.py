"""The plan's memory of activations against what autograd keeps."""

import contextlib

import pytest

from longshort.planning import plan as planning
from longshort.preflight.memory_formulas import GIB, activations_gib
from longshort.preflight.processes import KnownModels
from longshort.recipe.schema import parse
from longshort.runs.model_files import ModelFacts

SIZES = dict(layers=8, hidden=1024, intermediate=4096, kv_heads=4, kv_width=256, vocabulary=2**16, context=4096)
MODEL = ModelFacts(name="one-gibi", parameters=2**30, **SIZES)
"""With 2**30 parameters a byte per parameter is a GiB."""
STAGES = [("train", "reinforcement learning", None)]


@pytest.fixture
def plan(monkeypatch):
    """Plan two models of 2**30 parameters, engines on whole GPUs in bfloat16, learners in float32."""
    monkeypatch.setattr(planning, "PUBLISHED", KnownModels({"one-gibi": MODEL}))

    def report(gpus, gib, num_gpus=1.0, kv_cache_gib=0.5, **recipe):
        engine = {"dtype": "bfloat16", "max_model_len": 2048, "kv_cache_gib": kv_cache_gib, "num_gpus": num_gpus}
        roles = {role: {"model": "one-gibi", "engine": engine} for role in ("long", "short")}
        config = parse({"batch_tokens": 8192, "learner_gpus": num_gpus, **roles} | recipe)
        return planning.report(config, STAGES, gpus, gib)

    return report


@pytest.mark.parametrize(("autocast", "ratio"), [(False, 0.95), (True, 1.01)])
def test_activations_are_what_autograd_keeps(autocast, ratio):
    """Bytes per block saved for the backward pass, against the estimate: a Qwen2.5-7B an eighth as wide."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = dict(vocab_size=128, hidden_size=448, intermediate_size=2368, num_attention_heads=7, num_key_value_heads=1)

    def kept(layers):
        config = Qwen2Config(**sizes, num_hidden_layers=layers, max_position_embeddings=512)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        weights = {*shapes, *(shape[::-1] for shape in shapes)}
        saved, alive = {}, []

        def pack(tensor):
            if tuple(tensor.shape) not in weights:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
            return tensor

        arithmetic = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
            model.get_decoder()(input_ids=torch.zeros((1, 256), dtype=torch.long), use_cache=False)
        return sum(saved.values())

    shape = dict(layers=2, hidden=448, intermediate=2368, kv_heads=1, kv_width=64, vocabulary=128, context=512)
    facts = ModelFacts(name="x", parameters=1, **shape)
    estimate = activations_gib(facts, 256, 2 if autocast else 4) * GIB
    assert (kept(4) - kept(2)) / estimate == pytest.approx(ratio, abs=0.015)
