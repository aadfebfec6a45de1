"""An engine's process id, which the driver may use to kill it, is given on the driver's own node only."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from longshort.backends import ray_cluster


@pytest.mark.parametrize(("node", "own"), [("here", True), ("elsewhere", False)])
def test_the_process_id_of_an_engine_on_another_node_is_not_given(monkeypatch, node, own):
    monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))
    engine: Any = SimpleNamespace(_driver_node="here")
    assert ray_cluster.EngineActor.ready(engine) == (os.getpid() if own else None)
