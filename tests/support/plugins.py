"""A plug-in with a loss, a reward and a data set of its own, in a working folder that holds it."""

import sys

import pytest

from longshort.types import ROLES

SEVEN = """
from longshort.data import GENERATORS
from longshort.dialogue.rewards import REWARDS
from longshort.learning.losses import LOSSES, Loss, per_token, token_ratio, up_to
from longshort.types import Reward

def seven(ratio, logp, advantage, low, high):
    return 7.0 + 0.0 * logp

def by_length(problem, episodes, progress):
    return [Reward(totals=dict.fromkeys(("long", "short"), float(i)), terms={}) for i, _ in enumerate(episodes)]

def sums(part, limit):
    for number in range(8):
        yield f"sums:{part}, {number}", {"problem": f"{number}+1?", "answer": str(number + 1)}

LOSSES["seven"] = Loss(token_ratio, up_to, seven, per_token)
REWARDS["by_length"] = lambda config, prices, protocol, pool: by_length
GENERATORS["sums"] = sums
"""


@pytest.fixture
def seven_plugin(tmp_path, monkeypatch):
    """A working folder that holds the plug-in; this process forgets it afterwards."""
    from longshort.learning.losses import LOSSES

    (tmp_path / "seven_plugin.py").write_text(SEVEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(LOSSES, "seven", raising=False)
    yield tmp_path
    sys.modules.pop("seven_plugin", None)


def tiny_recipe(folder, models, **changes):
    """One step of both roles with the plug-in's loss, in engines of transformers."""
    from tests.support import tiny_models

    roles = {role: tiny_models.role(models[role], backend="transformers") for role in ROLES}
    loss = {"name": "seven", "importance_correction": "none"}
    return tiny_models.config(
        folder, models, **roles, plugins=["seven_plugin"], loss=loss, max_steps=1, eval={}, **changes
    )
