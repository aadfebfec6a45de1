"""The scripts of launch/ as processes: they parse, set-up refuses clearly, an image holds what it needs."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert os.access(script, os.X_OK)


def run_setup(folder, **environment):
    """launch/setup.sh in a copy of its folder, with that environment."""
    shutil.copytree(ROOT / "launch", folder / "launch", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    result = subprocess.run(
        ["bash", "launch/setup.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
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


SERVICE, COMPOSE, CONTAINER = (
    ROOT / "launch" / name for name in ("longshort-serve.service", "compose.yaml", "Containerfile")
)


def test_an_image_is_made_of_what_the_package_needs(tmp_path):
    """The folders that the image copies are enough to install longshort, and its pages' files come along."""
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.*)$", CONTAINER.read_text(), re.M)]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == allowed
    (tmp_path / "context").mkdir()
    for name in allowed:
        source, target = ROOT / name, tmp_path / "context" / name
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("__pycache__")
        ) if source.is_dir() else shutil.copy(source, target)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*install, "--target", tmp_path / "installed", tmp_path / "context"], check=True, timeout=120)
    missing = [path for path in (ROOT / "longshort").rglob("*.*") if "__pycache__" not in path.parts]
    assert (
        missing and [path for path in missing if not (tmp_path / "installed" / path.relative_to(ROOT)).exists()] == []
    )


def test_the_system_service_is_one_and_exposes_little(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here (apt-get install systemd)")
    unit = tmp_path / SERVICE.name
    unit.write_text(SERVICE.read_text().replace("/opt/longshort/.venv/bin/longshort", shutil.which("true")))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    rating = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert rating.returncode == 0, rating.stdout[-300:]  # 2.0 of 10, 10 being the worst
