"""Plug-ins in a run: every process of it knows the loss, the reward and the data that only the plug-in has."""

import json
import os
import subprocess
import sys

import pytest

from longshort.recipe.schema import dump
from longshort.types import LONG
from tests.support import tiny_models
from tests.support.plugins import tiny_recipe


def test_the_command_trains_a_step_with_a_loss_a_reward_and_data_that_only_the_plug_in_has(seven_plugin):
    models = tiny_models.make(seven_plugin / "models")
    config = tiny_recipe(seven_plugin, models, dataset="sums:train", reward={"name": "by_length"})
    (seven_plugin / "recipe.yaml").write_text(dump(config))
    command = [sys.executable, "-m", "longshort.cli", "train", "recipe.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=seven_plugin, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    (metrics,) = map(json.loads, (seven_plugin / "run/metrics.jsonl").read_text().splitlines())
    assert metrics[f"{LONG}/loss"] == pytest.approx(7.0)
