"""A recipe of a cold start on tiny models, with engines of transformers."""

from longshort.types import ROLES
from tests.support import tiny_models

SFT = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "max_length": 256}


def cold_start_recipe(folder, models, **coldstart):
    """The recipe of a cold start from `folder`/traces.jsonl."""
    roles = {
        role: tiny_models.role(models[role], backend="transformers") | {"turn_tokens": 160, "sft": SFT}
        for role in ROLES
    }
    return tiny_models.config(
        folder,
        models,
        **roles,
        protocol={"tags": "special", "max_exchanges": 3, "episode_tokens": 400},
        coldstart={
            "traces": str(folder / "traces.jsonl"),
            "importance": {"num_rollouts": 2, "max_tokens": 8, "instructions": ""},
            "rewrite": {"rewriter": "verbatim"},
        }
        | coldstart,
    )
