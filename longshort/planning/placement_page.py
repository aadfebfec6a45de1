"""`longshort plan --gpus N` as text: every kind of layout with its numbers, the chosen one in full, and why not the others."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from longshort.planning import step_time
from longshort.planning.placement import Placement, Setup, best, chosen, engine_parts, host_gib, peak
from longshort.preflight.memory import model_facts
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

ASSUMED = (
    "assumed: both engines are busy throughout the rollout; on an H100 SXM decoding reads "
    f"{step_time.BANDWIDTH / 1e12:g} TB/s at {step_time.BANDWIDTH_SHARE:.0%}, arithmetic reaches {step_time.PEAK_SHARE:.0%} of "
    f"{step_time.PEAK['bfloat16'] / 1e12:g} TFLOP/s in bfloat16, new weights travel at {step_time.SYNC_BYTES_S / 1e9:g} GB/s; a role "
    f"writes {step_time.FILL:.0%} of its turn_tokens. --rates replaces what is assumed."
)


def setup_of(config: LongShortConfig, options: argparse.Namespace) -> Setup:
    """The question as the command line asks it (longshort/cli.py, `plan`); what it leaves open the recipe's `learner:` answers."""
    from longshort.preflight.checks import check_contexts

    facts = model_facts(config, published=True)
    check_contexts(config, facts)
    given = {"nodes": options.nodes, "gib": options.gpu_memory, "kinds": options.kind and (options.kind,)}
    if options.rates:
        given |= {"rates": step_time.read_rates(Path(options.rates), config), "rates_from": f"from {options.rates}"}
    learner, roles = config.learner, list(facts)
    stages, ranks = (
        (dict.fromkeys(roles, learner.zero_stage), learner.ranks) if learner.backend == "deepspeed" else (None, None)
    )
    if options.zero is not None:
        stages = zero_stages(options.zero, roles)
    if options.ranks is not None:
        ranks = options.ranks
    return Setup(
        config=config,
        facts=facts,
        gpus=options.gpus,
        stages=stages,
        ranks=ranks or None,
        offload=learner.offload if options.offload is None else options.offload,
        checkpointing=learner.gradient_checkpointing
        if options.gradient_checkpointing is None
        else options.gradient_checkpointing,
        fill_kv=options.fill_kv,
        **{name: value for name, value in given.items() if value is not None},
    )


def zero_stages(text: str, roles: Sequence[str]) -> dict[str, int]:
    """`--zero`: "3" for every role, "3,2" for long and short."""
    stages = text.split(",") if "," in text else [text] * len(roles)
    if len(stages) != len(roles) or not all(stage in ("0", "1", "2", "3") for stage in stages):
        raise LongShortError(
            f"--zero is {text!r}; give a stage from 0 to 3, or one per role ({','.join(roles)}), e.g. --zero 3,2"
        )
    return dict(zip(roles, map(int, stages), strict=True))


def report(setup: Setup) -> str:
    """The plan as text; LongShortError, with the number and the smallest change that helps, where nothing fits."""
    found = best(setup)
    taken = chosen(found)
    if taken is None:
        raise LongShortError(refusal(setup, found))
    head = [f"placement on {gpus(setup)} of {setup.gib:g} GiB ({setup.usable:.1f} usable)", *models(setup), ""]
    return "\n".join(
        [
            *head,
            *overview(setup, found, taken),
            "",
            *detail(setup, taken),
            "",
            *timing(setup, found, taken),
            "",
            *realise(setup, taken),
        ]
    )


def gpus(setup: Setup) -> str:
    count = f"{setup.gpus} GPU" + ("s" if setup.gpus > 1 else "")
    return count if setup.nodes == 1 else f"{setup.nodes} nodes with {count} each"


def models(setup: Setup) -> list[str]:
    """A line per role: model and precision, and how its learner is sharded."""
    lines = []
    for role, model in setup.facts.items():
        sharding = "torch learner" if setup.stages is None else f"ZeRO-{setup.stages[role]} learner"
        extras = (", optimizer on the CPU" if setup.offload else "") + (
            ", gradient checkpointing" if setup.checkpointing else ""
        )
        dtypes = f"engine in {setup.config.role(role).engine.dtype}, {sharding} in {setup.config.dtype}{extras}"
        lines.append(f"  {role:<6} {model.name}: {model.parameters / 1e9:.2f}B parameters, {dtypes}")
    return lines


def overview(setup: Setup, found: Mapping[str, Placement | None], taken: Placement) -> list[str]:
    """A line per kind: time, memory, layout, and the verdict with its number."""
    lines = [f"  {'kind':<12} {'s/step':>7} {'GiB':>6}   verdict"]
    for kind, placement in found.items():
        if placement is None:
            lines.append(f"  {kind:<12} {'-':>7} {'-':>6}   these GPUs allow no such layout")
            continue
        if placement is taken:
            verdict = "chosen: the fastest that fits"
        elif placement.fits:
            verdict = f"not faster than {taken.kind}"
        else:
            verdict = lack(setup, placement)
        lines.append(f"  {kind:<12} {placement.step_s:>7.1f} {placement.needed:>6.1f}   {verdict}: {layout(placement)}")
    return lines


def layout(placement: Placement) -> str:
    """Who is with whom, on how many GPUs: "long engine on 1, long and short learner on 3"."""
    parts = []
    for group in placement.groups:
        engines, learners = " and ".join(group.engines), " and ".join(group.learners)
        names = [f"{names} {what}" for names, what in ((engines, "engine"), (learners, "learner")) if names]
        parts.append(f"{' + '.join(names)} on {group.size}")
    return ", ".join(parts)


def lack(setup: Setup, placement: Placement) -> str:
    return f"needs {placement.needed:.1f} GiB where {setup.usable:.1f} of {setup.gib:g} are usable"


def detail(setup: Setup, placement: Placement) -> list[str]:
    """The chosen layout: per group of GPUs and phase what each GPU holds."""
    lines = [f"  {placement.kind}: GiB on each GPU"]
    for where, phases in zip(labels(setup, placement), placement.phases, strict=True):
        for phase, held in phases.items():
            total = sum(sum(parts.values()) for parts in held.values())
            when = "" if phase == "always" else f", {phase}"
            lines.append(f"  {where + when}: {total:.1f}, {placement.usable - total:.1f} left")
            for process, parts in held.items():
                listed = ", ".join(f"{part} {gib:.1f}" for part, gib in parts.items() if gib >= 0.05)
                lines.append(f"    {process:<14} {sum(parts.values()):>5.1f}   {listed}")
    return lines


def labels(setup: Setup, placement: Placement) -> list[str]:
    """Which GPUs each group has: "gpu 0-3", "node 1 gpu 4", "nodes 0-1"."""
    found = []
    for group, (node, first) in zip(placement.groups, placement.where, strict=True):
        if group.size > setup.gpus:
            found.append(f"nodes {node}-{node + group.size // setup.gpus - 1}")
            continue
        span = f"gpu {first}" if group.size == 1 else f"gpu {first}-{first + group.size - 1}"
        found.append(span if setup.nodes == 1 else f"node {node} {span}")
    return found


def timing(setup: Setup, found: Mapping[str, Placement | None], taken: Placement) -> list[str]:
    """What a step's seconds are made of, and from where each rate is known."""
    parts = " + ".join(f"{name} {seconds:.1f}" for name, seconds in taken.seconds.items())
    lines = [f"  a step: {taken.step_s:.1f} s = {parts} (the way of the new weights included)"]
    works = step_time.works(setup.config, setup.facts, setup.rates, checkpointing=setup.checkpointing)
    caches = kv_caches(taken)
    for role, work in works.items():
        rates = setup.rates.of(role)
        sizes = {
            name: group.size
            for group in taken.groups
            for name in ("engine", "learner")
            if role in getattr(group, name + "s")
        }
        seconds = {
            "engine": step_time.rollout_s(work, rates, sizes["engine"], caches[role]),
            "learner": step_time.learn_s(work, rates, sizes["learner"], offload=setup.offload),
        }
        for name, tokens in (("engine", work.own), ("learner", work.text)):
            source = setup.rates_from if getattr(rates, name) else "assumed"
            total = work.episodes * tokens
            lines.append(
                f"    {role} {name}: {total:,.0f} tokens at {total / seconds[name]:,.0f} tokens/s ({source}): {seconds[name]:.1f} s"
            )
    if (split := found.get("split")) and split.fits:
        lines.append(
            f"  the split layout, with its rollout one step ahead of its update: {split.overlapped_s:.1f} s a step"
        )
    lines.append(f"  host memory: {host_gib(setup, taken):.1f} GiB over all nodes")
    return [*lines, *textwrap.wrap(ASSUMED, width=118, initial_indent="  ", subsequent_indent="  ")]


def kv_caches(placement: Placement) -> dict[str, float]:
    """GiB of KV cache on each GPU of each role's engine."""
    awake = [next(iter(phases.values())) for phases in placement.phases]
    return {name.split()[0]: parts["kv cache"] for held in awake for name, parts in held.items() if "kv cache" in parts}


def realise(setup: Setup, placement: Placement) -> list[str]:
    """The settings that ask for this layout, and what of it this code does not do yet."""
    shared = all(group.size == 1 and group.engines and group.learners for group in placement.groups)
    share = 1 / (2 * len(placement.groups[0].engines)) if shared else 1
    settings, missing = [], []
    for role in setup.facts:
        size = next(group.size for group in placement.groups if role in group.engines)
        settings.append(f"{role}.engine.num_gpus={size * share:g}")
        if size > 1:
            settings.append(f"{role}.engine.extra.tensor_parallel_size={size}")
        if setup.fill_kv:
            settings.append(f"{role}.engine.kv_cache_gib={int(kv_caches(placement)[role] * 10) / 10:g}")
    settings.append(f"learner_gpus={share:g}")
    if placement.kind == "time-shared":
        settings.append("time_share=true")
    if not shared and any(group.engines and group.learners for group in placement.groups):
        missing.append("an engine and its learner together on several GPUs")
    if any(len(names) > 1 for group in placement.groups for names in (group.engines, group.learners)) and not shared:
        missing.append("both roles on the same of several GPUs")
    lines = [f"  settings: {' '.join(settings)}"]
    if setup.stages is not None or setup.checkpointing:
        lines.append(
            "  ranks, ZeRO stage and gradient checkpointing of the learners go under `learner:` (docs/operations.md)"
        )
    return lines + ([f"  this version does not carry out: {'; '.join(missing)}"] if missing else [])


def refusal(setup: Setup, found: Mapping[str, Placement | None]) -> str:
    """One sentence: what the layout that lacks least needs, where, of what; and the smallest change that helps."""
    nearest = min(
        (placement for placement in found.values() if placement), key=lambda placement: placement.needed, default=None
    )
    if nearest is None:
        return f"no layout of engines and learners is possible on {gpus(setup)}; give more --gpus or fewer --ranks"
    fullest = max(range(len(nearest.groups)), key=lambda i: peak(nearest.phases[i])[1])
    phase, _ = peak(nearest.phases[fullest])
    parts = {
        f"{process} {part}": gib
        for process, held in nearest.phases[fullest][phase].items()
        for part, gib in held.items()
    }
    listed = ", ".join(f"{name} {gib:.1f}" for name, gib in sorted(parts.items(), key=lambda item: -item[1])[:4])
    change = remedy(setup)
    helps = (
        f"the smallest change that makes it fit: {change}"
        if change
        else "nothing tried makes it fit: take smaller models"
    )
    others = "".join(
        f"; {kind} {lack(setup, other)}" for kind, other in found.items() if other and other is not nearest
    )
    return (
        f"nothing fits on {gpus(setup)} of {setup.gib:g} GiB: {nearest.kind}, which lacks least, {lack(setup, nearest)}, on "
        f"{labels(setup, nearest)[fullest]} ({listed}){others}; {helps}"
    )


def remedy(setup: Setup) -> str:
    """The smallest change of those known under which something fits, as the user would write it; empty where none does."""
    for text, changed in _changes(setup):
        if placement := chosen(best(changed)):
            return f"{text} ({placement.kind}, {placement.needed:.1f} GiB)"
    return ""


def _changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """One change at a time, from what costs least to more GPUs; then with ZeRO-3, checkpointing and small caches together."""
    least = replace(setup, fill_kv=True)
    if placement := chosen(best(least)):
        there = {role: setup.config.role(role).engine.kv_cache_gib for role in setup.facts}
        fitting = {role: int(gib * 10) / 10 for role, gib in kv_caches(placement).items() if gib < there[role]}
        if all(gib >= engine_parts(least, role, 1)["kv cache"] for role, gib in fitting.items()):
            yield " ".join(f"{role}.engine.kv_cache_gib={gib:g}" for role, gib in fitting.items()), least
    longest = max(
        min(setup.config.role(role).engine.max_model_len, setup.config.protocol.episode_tokens) for role in setup.facts
    )
    if longest < setup.config.batch_tokens:
        yield (
            f"batch_tokens={longest}",
            replace(setup, config=setup.config.model_copy(update={"batch_tokens": longest})),
        )
    if not setup.checkpointing:
        yield "--gradient-checkpointing", replace(setup, checkpointing=True)
    smaller, checked = replace(setup, checkpointing=True), " --gradient-checkpointing"
    for stage in range(1 + (max(setup.stages.values()) if setup.stages else 0), 4):
        stages = dict.fromkeys(setup.facts, stage)
        yield f"--zero {stage}", replace(setup, stages=stages)
        yield f"--zero {stage}{checked}", replace(smaller, stages=stages)
    smallest = replace(smaller, stages=dict.fromkeys(setup.facts, 3))
    yield f"--zero 3 --offload{checked}", replace(smallest, offload=True)
    for gpus in (2, 3, 4, 6, 8):
        if gpus > setup.gpus:
            yield f"--gpus {gpus}", replace(setup, gpus=gpus)
            yield f"--gpus {gpus} --zero 3{checked}", replace(smallest, gpus=gpus)
    for nodes in (2, 4, 8):
        if nodes > setup.nodes:
            yield f"--gpus 8 --nodes {nodes} --zero 3{checked}", replace(smallest, gpus=8, nodes=nodes)
