"""Two tiny random models with two different vocabularies; weights large enough that their distributions are far from
uniform.
"""

import json
import random
from pathlib import Path

from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import FINAL_NOTICE, build_tokenizer
from longshort.recipe.miniature import LongShape, ShortShape
from longshort.recipe.schema import LongShortConfig, parse
from longshort.types import LONG, SHORT

ENGINE = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.125}


def make_speaking(folder: Path) -> dict[str, str]:
    """Make both models, trained for a few steps on dialogues: they close most turns with a tag, no more."""
    from longshort.dialogue.protocols import demonstration, make_protocol
    from longshort.learning.samples import sample_of
    from longshort.miniature.fitting import fit
    from longshort.miniature.world import dialogue, make_problems

    protocol = make_protocol(config(folder, {LONG: "", SHORT: ""}))
    tokenizers = {LONG: build_tokenizer(LONG), SHORT: build_tokenizer(SHORT)}
    problems = make_problems("train", 64, 0)
    episodes = [
        demonstration(problem, dialogue(problem, random.Random(0), 0.0), protocol, tokenizers) for problem in problems
    ]
    paths = {}
    for speaker, shape in ((LONG, LongShape()), (SHORT, ShortShape())):
        model = build_model(tokenizers[speaker], shape, seed=3, max_position_embeddings=256)
        fit(
            model,
            [sample_of(episode, speaker, 0.0) for episode in episodes],
            steps=40,
            batch_size=16,
            learning_rate=5e-3,
        )
        paths[speaker] = str(folder / speaker)
        save(model, tokenizers[speaker], paths[speaker])
    return paths


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


def role(model: str, **engine) -> dict:
    """The recipe section of a role; `engine` changes the engine's settings."""
    return {"model": model, "turn_tokens": 32, "instructions": "", "engine": ENGINE | engine}


def problems(folder: Path) -> Path:
    """A data set of 64 problems (generating the whole miniature takes seconds)."""
    from longshort.miniature.world import make_problems

    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": p.id, "problem": p.question, "answer": p.answer} for p in make_problems("train", 64, 0)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, models: dict[str, str], **changes) -> LongShortConfig:
    """A recipe small enough for a test: 4 problems times 4 generations, turns of 32 tokens."""
    roles = {name: role(models[name]) for name in (LONG, SHORT)}
    settings = {
        "output_dir": str(folder / "run"),
        "dataset": str(problems(folder)),
        "eval": {"benchmarks": ["miniature:dev"], "num_problems": 8},
        "protocol": {"tags": "special", "max_exchanges": 3, "episode_tokens": 120, "final_notice": FINAL_NOTICE},
        "max_steps": 2,
        "num_problems": 4,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "scale_rewards": "none",
        **roles,
    }
    return parse(settings | changes)
