"""SIGTERM while `longshort train` runs: it saves, says how to go on, and leaves no process behind."""

import signal
from types import SimpleNamespace

import psutil
import pytest

from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.types import ROLES
from tests.support import tiny_models
from tests.support.commands import started_until_a_step, still_running


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A training that got SIGTERM after its first step."""
    folder = tmp_path_factory.mktemp("signals")
    models = tiny_models.make(folder / "models")
    roles = {role: tiny_models.role(models[role], backend="transformers") for role in ROLES}
    (folder / "recipe.yaml").write_text(dump(tiny_models.config(folder, models, max_steps=100_000, **roles)))
    process = started_until_a_step("train", folder / "recipe.yaml")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return SimpleNamespace(folder=folder, status=process.returncode, errors=errors, children=children)


def test_the_exit_status_names_the_signal(ended):
    assert ended.status == 128 + signal.SIGTERM


def test_the_message_says_how_to_go_on(ended):
    assert "continue with --resume" in ended.errors


def test_the_last_finished_step_is_saved_whole(ended):
    assert checkpoint.verify(checkpoint.latest(ended.folder / "run"))["step"] >= 1


def test_no_process_is_left(ended):
    assert ended.children
    assert still_running(ended.children) == []
