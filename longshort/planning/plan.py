"""`longshort plan`: what a recipe as written runs, on which devices, in how much memory, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from longshort import console
from longshort.planning.published import PUBLISHED
from longshort.planning.remedies import smallest_change
from longshort.preflight.checks import check_contexts
from longshort.preflight.memory import CLUSTER_GPU, Plan, plan
from longshort.preflight.processes import PlannedProcess, model_facts
from longshort.recipe.schema import LongShortConfig, parse
from longshort.types import LongShortError

USABLE = 0.95
"""Share of a planned GPU's memory; the driver and the gaps between blocks take the rest (assumed)."""

Stages = Sequence[tuple[str, str, int | None]]
"""Name, title, and seconds where they are known."""


def report(
    config: LongShortConfig, stages: Stages, gpus: int | None = None, gpu_memory: float = 80.0
) -> tuple[str, bool]:
    """Plan a run on this machine, or on `gpus` GPUs of `gpu_memory` GiB that need not be here.

    Returns the text and whether the recipe fits. Raises LongShortError for numbers that mean nothing, a model that
    cannot be read, and more GPUs than there are.
    """
    free: dict[str, float | None] | None = None
    if gpus is not None:
        for option, value in (("--gpus", gpus), ("--gpu-memory", gpu_memory)):
            if not value > 0:
                raise LongShortError(f"{option} is {value:g}; it must be more than 0")
        free = {"cpu": None} | {f"gpu {i}": gpu_memory * USABLE for i in range(gpus)}
        config = _with_vllm(config)
    known = PUBLISHED if free else None
    training = [name for name, _, _ in stages] != ["coldstart"]

    def planned(config: LongShortConfig) -> Plan:
        check_contexts(config, model_facts(config, known))
        return plan(config, free=free, known=known, training=training)

    result = planned(config)
    fits = not result.too_small
    return render(result, stages) + ("" if fits else f"\n{smallest_change(config, result, planned)}"), fits


def render(planned: Plan, stages: Stages) -> str:
    """Render the plan as text."""
    lines = ["stages"]
    for number, (name, title, seconds) in enumerate(stages, 1):
        lines.append(f"  {number}. {name:<10} {title}" + (f" (about {console.duration(seconds)})" if seconds else ""))
    for phase, processes in groupby(planned.processes, lambda process: process.phase):
        rows = [(p.name, _where(p, planned.places[p.name]), f"{p.gib:.2f}", _parts(p)) for p in processes]
        lines += ["", console.table([phase, "runs on", "GiB", "of which"], rows, right=False)]
    lines.append("")
    for text, devices in groupby(planned.free, lambda device: _verdict(planned, device)):
        lines.append(f"{_names(list(devices))}: {text}")
    lines += [
        f"new weights of the {role} role travel by {route}: {why}" for role, (route, why) in planned.routes.items()
    ]
    if planned.time_share:
        lines.append(
            "engines and learners take turns (time_share): on a GPU only the larger of the two counts; "
            "on a CPU nothing is freed"
        )
    return "\n".join([*lines, f"episodes per step: {planned.episodes_per_step}"])


def _where(process: PlannedProcess, devices: Sequence[str]) -> str:
    """Name a process's devices: "cpu × 1", "gpu 0 × 0.25", "gpu 2 to gpu 7"."""
    if not process.gpus:
        return f"cpu × {process.cores * process.count:g}"
    names = list(dict.fromkeys(devices))
    share = f" × {process.gpus:g}" if process.gpus < 1 or names == [CLUSTER_GPU] else ""
    return _names(names) + share


def _names(devices: Sequence[str]) -> str:
    return f"{devices[0]} to {devices[-1].split()[-1]}" if len(devices) > 2 else ", ".join(devices)


def _verdict(planned: Plan, device: str) -> str:
    if not planned.needed(device):
        return "not used"
    free = planned.free[device]
    known = "its free memory is not known here" if free is None else f"{free:.1f} GiB free"
    lack = " - DOES NOT FIT" if device in planned.too_small else ""
    return f"{planned.needed(device):.1f} GiB needed (estimate), {known}{lack}"


def _parts(process: PlannedProcess) -> str:
    each = f"; {process.count} of these" if process.count > 1 else ""
    return ", ".join(f"{name} {gib:.2f}" for name, gib in process.parts.items() if gib >= 0.005) + each


def _with_vllm(config: LongShortConfig) -> LongShortConfig:
    """Let `backend: auto` mean vLLM, which the machine with the GPUs has, whatever is installed here."""

    def resolve(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {key: "vllm" if (key, value) == ("backend", "auto") else resolve(value) for key, value in tree.items()}

    return parse(resolve(config.model_dump(mode="json")))
