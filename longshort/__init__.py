"""Two language models, one thinking long and one thinking short, learn to solve problems together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longshort.version import __version__

if TYPE_CHECKING:
    from longshort.evaluation.command import evaluate_recipe
    from longshort.recipe.schema import LongShortConfig
    from longshort.team.team import Team
    from longshort.trainer import LongShortTrainer
    from longshort.types import LongShortError, Problem

__all__ = ["LongShortConfig", "LongShortError", "LongShortTrainer", "Problem", "Team", "__version__", "evaluate_recipe"]
_HOMES = {
    "LongShortConfig": "recipe.schema",
    "LongShortError": "types",
    "LongShortTrainer": "trainer",
    "Problem": "types",
    "Team": "team.team",
    "evaluate_recipe": "evaluation.command",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `longshort --help` does not wait for them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'longshort' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"longshort.{_HOMES[name]}"), name)
