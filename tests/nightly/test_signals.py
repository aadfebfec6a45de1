"""Signals to long commands beside the SIGTERM of `make test`: Ctrl-C one step off policy, SIGTERM to a mixture run."""

import asyncio
import json
import signal

import psutil
import pytest

from longshort.backends import ray_cluster
from longshort.mixture.run import run_mixture
from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.types import ROLES
from tests.support import tiny_models
from tests.support.commands import started_until_a_step, still_running
from tests.support.mixture_world import make_world, mixture_config

pytestmark = pytest.mark.usefixtures("as_in_a_terminal")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_training_one_step_off_saves_and_leaves_no_process_behind(tmp_path, number):
    models = tiny_models.make(tmp_path / "models")
    roles = {role: tiny_models.role(models[role], backend="transformers") for role in ROLES}
    config = tiny_models.config(tmp_path, models, max_steps=100_000, staleness=1, **roles)
    (tmp_path / "recipe.yaml").write_text(dump(config))
    process = started_until_a_step("train", tmp_path / "recipe.yaml")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "continue with --resume" in errors
    assert checkpoint.verify(checkpoint.latest(tmp_path / "run"))["step"] >= 1
    assert still_running(children) == []


@pytest.fixture
def measured(tmp_path):
    """The recipe of a mixture run without end, in a folder that holds the bounds of a short one."""
    world, endless = make_world(tmp_path / "world"), {"max_steps": 100_000}
    short = mixture_config(world, tmp_path / "short")
    stop = ray_cluster.start(short)
    asyncio.run(run_mixture(short))
    stop()
    bounds = json.loads((tmp_path / "short" / "mixture" / "bounds.json").read_text())
    bounds["setup"]["mixture.max_steps"] = endless["max_steps"]
    (tmp_path / "run" / "mixture").mkdir(parents=True)
    (tmp_path / "run" / "mixture" / "bounds.json").write_text(json.dumps(bounds))
    (tmp_path / "recipe.yaml").write_text(dump(mixture_config(world, tmp_path / "run", endless)))
    return tmp_path / "recipe.yaml"


def test_a_mixture_run_saves_and_can_go_on(measured):
    process = started_until_a_step("mixture", measured)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "start the same command again to continue" in errors
    facts = checkpoint.verify(checkpoint.latest(measured.with_name("run") / "mixture"))
    assert facts["step"] >= 2
    assert facts["step"] == facts["trajectory"][-1]["step"]
