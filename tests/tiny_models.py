"""Two tiny random models with two different vocabularies; weights large enough that their distributions are far from uniform."""

from pathlib import Path

from longshort.config import LongShape, LongShortConfig, ShortShape, parse
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import FINAL_NOTICE, build_tokenizer
from longshort.types import LONG, SHORT

ENGINE = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.125}


def make(folder: Path, tied_short: bool = False) -> dict[str, str]:
    """Save both models under `folder`; returns their paths by role."""
    import torch

    paths = {}
    for role, shape in ((LONG, LongShape()), (SHORT, ShortShape())):
        tokenizer = build_tokenizer(role)
        model = build_model(tokenizer, shape, seed=3, max_position_embeddings=256)
        with torch.no_grad():
            model.lm_head.weight.mul_(8)
        if tied_short and role == SHORT:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        paths[role] = str(folder / role)
        save(model, tokenizer, paths[role])
    return paths


def config(folder: Path, models: dict[str, str], **changes) -> LongShortConfig:
    """A recipe small enough for a test: 4 problems times 4 generations, turns of 12 tokens."""
    roles = {role: {"model": models[role], "turn_tokens": 12, "instructions": "", "engine": ENGINE} for role in (LONG, SHORT)}
    settings = {
        "output_dir": str(folder / "run"),
        "dataset": "miniature:train",
        "eval": {"dataset": "miniature:dev", "num_problems": 8},
        "protocol": {"tags": "special", "max_exchanges": 2, "episode_tokens": 60, "final_notice": FINAL_NOTICE},
        "max_steps": 2,
        "num_problems": 4,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "scale_rewards": "none",
        **roles,
    }
    return parse(settings | changes)
