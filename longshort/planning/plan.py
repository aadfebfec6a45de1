"""`longshort plan`: what a recipe would run, where, in how much memory; and the checks made before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from longshort import console
from longshort.preflight.memory import COLD_START, Actor, Plan


def render(planned: Plan, stages: Sequence[tuple[str, str, int | None]]) -> str:
    """Render the plan as text; `stages` are (name, title, seconds or None where unknown)."""
    lines = ["stages"]
    for number, (name, title, seconds) in enumerate(stages, 1):
        lines.append(f"  {number}. {name:<10} {title}" + (f" (about {console.duration(seconds)})" if seconds else ""))
    lines += ["", f"  {'process':<34} {'runs on':<14} {'GiB':>7}   of which", "  " + "─" * 110]
    cold_start = [actor for actor in planned.actors if actor.when == COLD_START]
    for actor in planned.actors:
        if cold_start and actor is cold_start[0]:
            lines.append("  before it, in the cold start:")
        lines.append(
            f"  {actor.name:<34} {_where(actor, planned.places[actor.name]):<14} {actor.gib:>7.2f}   {_parts(actor)}"
        )
    lines.append("")
    for device, free in planned.free.items():
        known = "the cluster's memory is not known here" if free is None else f"{free:.1f} GiB free"
        verdict = " - DOES NOT FIT" if device in planned.too_small else ""
        lines.append(f"{device} memory: {planned.needed(device):.1f} GiB needed (estimate), {known}{verdict}")
    lines += [f"new weights of the {role} role travel by {way}: {why}" for role, (way, why) in planned.ways.items()]
    if planned.time_share:
        lines.append(
            "engines and learners take turns (time_share): on a GPU only the larger of what they need counts; on a CPU nothing is freed"
        )
    return "\n".join([*lines, f"episodes per step: {planned.episodes_per_step}"])


def _where(actor: Actor, devices: Sequence[str]) -> str:
    """ "cpu × 1", "gpu 0 × 0.25", "gpu 0, gpu 1"; each of several processes named once."""
    if not actor.gpus:
        return f"cpu × {actor.cores * actor.count:g}"
    names = ", ".join(dict.fromkeys(devices))
    return f"{names} × {actor.gpus:g}" if actor.gpus < 1 or names == "gpu" else names


def _parts(actor: Actor) -> str:
    each = f"; {actor.count} such processes" if actor.count > 1 else ""
    return ", ".join(f"{name} {gib:.2f}" for name, gib in actor.parts.items() if gib >= 0.005) + each
