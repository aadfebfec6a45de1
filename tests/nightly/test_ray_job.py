"""A Ray job on a head of its own: it trains with a token, and leaves nothing running."""

import os
import re
import socket
import subprocess

import pytest

from tests.support import ROOT


def test_a_ray_job_trains_on_a_head_with_a_token_and_leaves_nothing_running(tmp_path):
    from longshort.recipe.schema import dump
    from tests.support import tiny_models

    recipe = tmp_path / "x.yaml"
    recipe.write_text(dump(tiny_models.config(tmp_path, tiny_models.make(tmp_path), max_steps=1)))
    engines = [f"{role}.engine.backend=transformers" for role in ("long", "short")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = ["bash", ROOT / "launch" / "ray_job.sh", recipe, *engines]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "step 1/1" in result.stdout
    assert "succeeded" in result.stdout + result.stderr
    assert (tmp_path / "run" / "checkpoint-1" / "long" / "config.json").is_file()
    port = int(re.search(r"at http://127\.0\.0\.1:(\d+):", result.stdout)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
