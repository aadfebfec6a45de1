"""Whether the processes of a run fit the machine: where each runs, and what every device holds at its peak."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longshort.backends.devices import another_cluster, check_time_share, engine_backend
from longshort.backends.weight_transfer import choose
from longshort.preflight.memory_formulas import GIB, free_memory
from longshort.preflight.processes import PHASES, KnownModels, Phase, PlannedProcess, model_facts, processes_of
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

CLUSTER_GPU = "gpu"
"""Stands for all GPUs of a Ray cluster, of which nothing is known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes of a run, the devices that each is on (by its name), and the free GiB of each device."""

    processes: Sequence[PlannedProcess]
    places: Mapping[str, Sequence[str]]
    free: Mapping[str, float | None]
    """None where it is not known."""
    routes: Mapping[str, tuple[str, str]]
    """For each role how its new weights travel, and why."""
    time_share: bool
    episodes_per_step: int

    def on(self, device: str, phase: Phase) -> list[PlannedProcess]:
        """List the processes on a device in a phase; one that runs there several times stands several times."""
        mine = [process for process in self.processes if process.phase == phase]
        return [process for process in mine for place in self.places[process.name] if place == device]

    def needed(self, device: str) -> float:
        """Return the GiB that a device must have: the largest of its phases."""
        return max(self.needed_in(device, phase) for phase in PHASES)

    def needed_in(self, device: str, phase: Phase) -> float:
        """Return the GiB that a device must have in a phase; with `time_share` for the larger of the two turns."""
        processes = self.on(device, phase)
        whole, least = sum(process.gib for process in processes), sum(process.least_gib for process in processes)
        if not self.time_share:
            return whole
        learning = sum(process.gib - process.least_gib for process in processes if process.kind == "learner")
        return least + max(learning, whole - least - learning)

    @property
    def too_small(self) -> list[str]:
        """The devices whose free memory does not suffice."""
        return [device for device, free in self.free.items() if free is not None and self.needed(device) > free]


def plan(
    config: LongShortConfig,
    *,
    free: Mapping[str, float | None] | None = None,
    known: KnownModels | None = None,
    training: bool = True,
) -> Plan:
    """Work out the plan of a run.

    `free` describes devices that need not be here and `known` models that need not; `training` is False for a run
    that ends with the cold start. Raises LongShortError where a model cannot be read or the GPUs do not suffice.
    """
    known = known or KnownModels()
    facts = model_facts(config, known)
    processes = processes_of(config, facts, known, training=training)
    free = _free_here(processes) if free is None else free
    for role in facts:
        check_time_share(config, role)
    return Plan(
        processes=processes,
        places=_places(processes, [device for device in free if device != "cpu"]),
        free=free,
        routes={role: choose(config, role, engine_backend(config.role(role).engine)) for role in facts},
        time_share=config.time_share,
        episodes_per_step=config.num_problems * config.num_generations,
    )


def check_memory(planned: Plan) -> None:
    """Refuse a plan in which the processes on some device do not fit into its free memory."""
    for device in planned.too_small:
        present = [process for process in planned.processes if device in planned.places[process.name]]
        totals = {process.name: process.gib * planned.places[process.name].count(device) for process in present}
        listed = ", ".join(f"{name} {totals[name]:.1f}" for name in sorted(totals, key=lambda name: -totals[name]))
        raise LongShortError(
            f"this recipe needs {planned.needed(device):.1f} GiB of {device} memory but {planned.free[device]:.1f} GiB "
            f"are free ({listed}); lower engine.kv_cache_gib or batch_tokens, take smaller models, or free memory"
        )


def _free_here(processes: Sequence[PlannedProcess]) -> Mapping[str, float | None]:
    """Return the free GiB of the devices that the processes use; raise LongShortError where there are no GPUs."""
    gpus = max(sum(process.gpus * process.count for process in processes if process.phase == phase) for phase in PHASES)
    if another_cluster():
        return dict.fromkeys(["cpu", CLUSTER_GPU] if gpus else ["cpu"])
    free: dict[str, float | None] = {"cpu": free_memory() / GIB}
    if gpus:
        import torch

        if not torch.cuda.is_available():
            raise LongShortError(
                f"the recipe asks for {gpus:g} GPUs but torch sees none here; set num_gpus and learner_gpus to 0, "
                "install a CUDA build of torch (longshort doctor), or set RAY_ADDRESS to a cluster that has GPUs"
            )
        free |= {f"gpu {i}": torch.cuda.mem_get_info(i)[0] / GIB for i in range(torch.cuda.device_count())}
    return free


def _places(processes: Sequence[PlannedProcess], gpus: Sequence[str]) -> dict[str, list[str]]:
    """Put every process on the first GPUs with room: a whole one each, or a share of one beside others.

    Raises LongShortError where there is no room, because Ray would wait forever.
    """
    places = {process.name: ["cpu"] * process.count for process in processes if not process.gpus}
    for phase in PHASES:
        room = {gpu: math.inf if gpu == CLUSTER_GPU else 1.0 for gpu in gpus}
        mine = [process for process in processes if process.gpus and process.phase == phase]
        for process in mine:
            if process.name in places:  # came with its group
                continue
            group = [other for other in mine if other is process or (other.group and other.group == process.group)]
            whole = process.gpus > 1
            shares = [1.0] * round(process.gpus) if whole else [sum(other.gpus for other in group)]
            devices = [_take(share, room, mine) for share in shares * process.count]
            places |= {other.name: devices for other in group}
    return places


def _take(share: float, room: dict[str, float], asking: Sequence[PlannedProcess]) -> str:
    """Take a share of the first GPU that has it left."""
    device = next((gpu for gpu, left in room.items() if left > share - 1e-6), None)
    if device is None:
        listed = ", ".join(f"{process.name} {process.count} × {process.gpus:g}" for process in asking)
        raise LongShortError(
            f"the recipe asks for {sum(process.gpus * process.count for process in asking):g} GPUs at once ({listed}) "
            f"but there are {len(room)}; lower engine.num_gpus, learner_gpus or learner.ranks"
        )
    room[device] -= share
    return device
