"""A tiny Qwen2 and made-up samples for the tests of learning/."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from longshort.backends.learners.torch_learner import TorchLearner
from longshort.types import Sample

VOCABULARY = 24


def tiny_model(seed: int = 0, tied: bool = False) -> Qwen2ForCausalLM:
    """Qwen2 with 2 layers of width 16. Weights are drawn large, so that no two tokens are equally likely."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen2ForCausalLM(config).eval()


def sample_like(seed: int, prompt: int = 3, sampled: int = 6, advantage: float = 1.0, role: str = "long") -> Sample:
    """Random ids: a prompt, sampled tokens, two ids of partner text, one more sampled token."""
    rng = random.Random(seed)
    mask = (0,) * prompt + (1,) * sampled + (0, 0, 1)
    return Sample(
        role=role,
        token_ids=tuple(rng.randrange(VOCABULARY) for _ in mask),
        mask=mask,
        logprobs=tuple(-m * rng.uniform(1, 5) for m in mask),
        advantages=tuple(advantage * m for m in mask),
    )


def save_tiny(folder: Path, seed: int = 0, tied: bool = False) -> str:
    """A folder that loads with `from_pretrained`: the tiny model and a tokenizer of one word per id."""
    tiny_model(seed, tied).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1"
    ).save_pretrained(folder)
    return str(folder)


def samples(step: int) -> list[Sample]:
    return [sample_like(10 * step + i, sampled=2 + i, advantage=(-1.0) ** i) for i in range(5)]


def bits(learner: TorchLearner) -> dict[str, torch.Tensor]:
    return learner.weights()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
