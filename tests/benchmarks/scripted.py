"""Work of a known size for rollouts: models that never end a turn, and a protocol that ends each where the script says.

Everything else is the product's own: `run_episode`, the prompts of the long-short protocol, engines in processes of
their own.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshort.dialogue.encoding import END_ANSWER, END_THINK, RETHINK
from longshort.dialogue.protocols import LongShort
from longshort.recipe.miniature import LongShape, ModelShape
from longshort.recipe.schema import LongShortConfig, parse
from longshort.types import LONG, ROLES, Problem

if TYPE_CHECKING:
    from longshort.pair import Pair

SHAPE = LongShape(hidden_size=256, num_layers=4, intermediate_size=704)
"""3.3M parameters: an engine's step takes some ten milliseconds on one core, so that sending a turn to it and back
counts for little.
"""


def make_models(folder: Path, shape: ModelShape = SHAPE, context: int = 2048) -> dict[str, str]:
    """Two models with random weights and the miniature's two vocabularies, by role. All they ever say is digits.

    So nothing ends a turn but its length, and each word is one token for the partner too. What bars the other tokens
    is a number that every position carries in its first channel, and that their rows of the head turn into some -150.
    """
    import torch

    from longshort.miniature.models import build_model, save
    from longshort.miniature.tokenizer import build_tokenizer

    folders = {}
    for seed, role in enumerate(ROLES):
        tokenizer = build_tokenizer(role)
        model = build_model(tokenizer, shape, seed, max_position_embeddings=context)
        barred = torch.ones(len(tokenizer), dtype=torch.bool)
        barred[tokenizer.convert_tokens_to_ids(list("0123456789"))] = False
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight[barred, 0] = -10.0
        folders[role] = str(folder / role)
        save(model, tokenizer, folders[role])
    return folders


def config(models: Mapping[str, str], *, max_num_seqs: int, context: int = 2048, **changes: Any) -> LongShortConfig:
    """A recipe for these models; `changes` are top-level settings."""
    engine = {"max_model_len": context, "max_num_seqs": max_num_seqs, "kv_cache_gib": 0.5}
    roles = {role: {"model": model, "instructions": "", "engine": engine} for role, model in models.items()}
    return parse({"protocol": {"tags": "special"}, **roles} | changes)


class Scripted(LongShort):
    """The long-short dialogue with turns of so many tokens; long and short alternate, and the last turn answers."""

    def __init__(self, lengths: Sequence[int]):
        super().__init__(
            max_exchanges=len(lengths),
            turn_tokens={},
            episode_tokens=sum(lengths),
            tags="special",
            instructions=dict.fromkeys(ROLES, ""),
        )
        self.lengths = tuple(lengths)

    def budget(self, turns, speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        """The script's length; running out of it is how every turn ends, and what it then counts as."""
        if speaker == LONG:
            return self.lengths[len(turns)], END_THINK
        return self.lengths[len(turns)], END_ANSWER if len(turns) + 1 == len(self.lengths) else RETHINK

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return (), ()


def draw_lengths(episodes: int, exchanges: int, shortest: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    """Tokens of each turn of each episode, uniform from `shortest` to `longest`."""
    dice = random.Random(f"lengths/{seed}")
    return [tuple(dice.randint(shortest, longest) for _ in range(2 * exchanges)) for _ in range(episodes)]


@functools.cache
def problems(count: int) -> list[Problem]:
    """Miniature problems, different ones."""
    from longshort.miniature.world import make_problems

    return make_problems("train", count, 0)


@contextlib.asynccontextmanager
async def engines(settings: LongShortConfig) -> AsyncIterator[tuple[Pair, Callable[[], Awaitable[None]]]]:
    """The pair's engines, warm, and a coroutine that empties their prefix caches (by giving them the weights that
    they have).
    """
    import ray
    from transformers import AutoModelForCausalLM

    from longshort.pair import Pair

    models = {role: settings.role(role).model for role in ROLES}
    async with Pair(settings, models) as pair:
        weights = {
            role: ray.put(dict(AutoModelForCausalLM.from_pretrained(model).state_dict()))
            for role, model in models.items()
        }

        async def forget() -> None:
            for role, policy in pair.policies.items():
                policy.version += 1
                load = ("load_weights", weights[role], policy.version)
                await policy.engine.receive(lambda actor, load=load: actor.between_steps.remote(*load))

        yield pair, forget
