"""Plug-ins in a run: every process of it knows the loss, the reward and the data that only the plug-in has."""

import json
import os
import subprocess
import sys

import pytest

from longshort import LongShortTrainer
from longshort.learning.losses import LOSSES
from longshort.recipe.schema import dump
from longshort.types import LONG, ROLES, Reward
from tests.support import tiny_models

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
def folder(tmp_path, monkeypatch):
    """A working directory that holds the plug-in; nothing of it is left in this process afterwards."""
    (tmp_path / "seven_plugin.py").write_text(SEVEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(LOSSES, "seven", raising=False)
    yield tmp_path
    sys.modules.pop("seven_plugin", None)


def tiny_recipe(folder, **changes):
    """One step on two roles, in engines of transformers."""
    models = tiny_models.make(folder / "models")
    roles = {role: tiny_models.role(models[role], backend="transformers") for role in ROLES}
    loss = {"name": "seven", "importance_correction": "none"}
    return tiny_models.config(
        folder, models, **roles, plugins=["seven_plugin"], loss=loss, max_steps=1, eval={}, **changes
    )


def test_the_command_trains_a_step_with_a_loss_a_reward_and_data_that_only_the_plug_in_has(folder):
    config = tiny_recipe(folder, dataset="sums:train", reward={"name": "by_length"})
    (folder / "recipe.yaml").write_text(dump(config))
    command = [sys.executable, "-m", "longshort.cli", "train", "recipe.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    (metrics,) = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    assert metrics[f"{LONG}/loss"] == pytest.approx(7.0)


def test_the_trainer_class_trains_a_step_with_a_loss_that_only_the_plug_in_knows(folder):
    def by_number(problem, episodes, progress):
        return [Reward(totals=dict.fromkeys(ROLES, float(i)), terms={}) for i, _ in enumerate(episodes)]

    metrics = LongShortTrainer(args=tiny_recipe(folder), reward=by_number).train()
    assert metrics[f"{LONG}/loss"] == pytest.approx(7.0)
