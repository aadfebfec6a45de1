"""Where engines and learners go on N GPUs: every layout of three kinds, its memory and time; the fastest that fits, and why not the others.

    split         engines and learners on different GPUs
    colocated     an engine and its learner share GPUs, both resident
    time-shared   the same, and the engine sleeps while its learner works (vLLM's sleep mode frees its weights and KV cache)

An engine on k GPUs is tensor-parallel; a learner on k GPUs is k ranks, each with micro-batches of its own. Nothing here touches a device.
Sources: ZeRO (arXiv 1910.02054, section 5) for what each stage shards; estimates of ours say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from longshort.planning import step_time
from longshort.planning.step_time import Rates
from longshort.preflight.memory_formulas import (
    BYTES,
    GIB,
    activations_gib,
    logits_gib,
    optimizer_bytes,
    torch_state,
    zero_state,
)
from longshort.recipe.schema import LongShortConfig
from longshort.runs.model_files import ModelFacts
from longshort.types import LongShortError

KINDS = ("split", "colocated", "time-shared")
USABLE = 0.95
"""Of a GPU's memory; the rest is the driver's and lost between blocks (assumed)."""
ENGINE_GIB, LEARNER_GIB = 2.0, 1.0
"""A process on a GPU before it holds a model: CUDA context, workspace, the engine's graphs (assumed)."""
BATCH_ONLY = ("activations", "logits", "bfloat16 copy")
"""What a learner holds only while it updates."""

Parts = Mapping[str, Mapping[str, float]]
"""GiB per GPU by process and part: {"long engine": {"weights": 14.2, "kv cache": 8.0}}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The question: a recipe, its models, the GPUs, and how the learners are sharded. `stages` None: torch, one process, unsharded."""

    config: LongShortConfig
    facts: Mapping[str, ModelFacts]
    gpus: int
    nodes: int = 1
    gib: float = 80.0
    stages: Mapping[str, int] | None = None
    ranks: int | None = None
    offload: bool = False
    checkpointing: bool = False
    kinds: Sequence[str] = KINDS
    fill_kv: bool = False
    """The KV caches take what is left, in place of the recipe's kv_cache_gib."""
    rates: Rates = field(default_factory=Rates)
    rates_from: str = "assumed"

    @property
    def total(self) -> int:
        return self.gpus * self.nodes

    @property
    def usable(self) -> float:
        return self.gib * USABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Engines and learners (by role) that share the same `size` GPUs."""

    engines: tuple[str, ...]
    learners: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One layout: for each group its GPUs as (node, first GPU) and its memory by phase; seconds by what they are spent on."""

    kind: str
    groups: tuple[Group, ...]
    where: tuple[tuple[int, int], ...]
    phases: tuple[Mapping[str, Parts], ...]
    seconds: Mapping[str, float]
    usable: float

    @property
    def needed(self) -> float:
        """GiB on the fullest GPU."""
        return max(peak(phases)[1] for phases in self.phases)

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def overlapped_s(self) -> float:
        """A step whose rollout goes on beside the update of the step before (split layouts only)."""
        return max(self.seconds["rollout"], self.seconds["update"])


def peak(phases: Mapping[str, Parts]) -> tuple[str, float]:
    """The phase that needs most, and how many GiB."""
    return max(
        ((name, sum(sum(parts.values()) for parts in held.values())) for name, held in phases.items()),
        key=lambda item: item[1],
    )


def best(setup: Setup) -> dict[str, Placement | None]:
    """Of each kind the fastest layout that fits, else the one that lacks least; None where these GPUs allow no layout of the kind.

    LongShortError for numbers that mean nothing and for more ranks than there are GPUs.
    """
    _check(setup)
    found: dict[str, Placement | None] = {}
    for kind in setup.kinds:
        placements = [placement for groups in _layouts(setup, kind) if (placement := place(setup, kind, groups))]
        fitting = [placement for placement in placements if placement.fits]
        if fitting:
            found[kind] = min(
                fitting, key=lambda placement: (placement.step_s, sum(group.size for group in placement.groups))
            )
        else:
            found[kind] = min(placements, key=lambda placement: placement.needed, default=None)
    return found


def chosen(found: Mapping[str, Placement | None]) -> Placement | None:
    """The fastest that fits."""
    fitting = [placement for placement in found.values() if placement and placement.fits]
    return min(fitting, key=lambda placement: placement.step_s, default=None)


def _check(setup: Setup) -> None:
    for option, value in (("--gpus", setup.gpus), ("--nodes", setup.nodes), ("--gpu-memory", setup.gib)):
        if not value > 0:
            raise LongShortError(f"{option} is {value:g}; it must be more than 0")
    if adapted := [role for role in setup.facts if setup.config.role(role).lora]:
        raise LongShortError(
            f"--gpus lays out learners that train whole models, but {adapted[0]}.lora is set; `longshort plan` alone knows adapters"
        )
    if setup.ranks is not None and not 0 < setup.ranks <= setup.total:
        raise LongShortError(
            f"--ranks (or learner.ranks) is {setup.ranks} but there are {setup.total} GPUs; a learner has from 1 rank to one per GPU"
        )
    if setup.stages is None and ((setup.ranks or 1) > 1 or setup.offload):
        raise LongShortError(
            "--ranks above 1 and --offload are DeepSpeed's: say which --zero stage (0 to 3); the torch learner has one rank"
        )


def _layouts(setup: Setup, kind: str) -> Iterator[tuple[Group, ...]]:
    """Both roles apart or together, on every number of GPUs that an engine or a learner can take."""
    roles = tuple(setup.facts)
    ways = [[(role,) for role in roles], [roles]][: len(roles)]
    if kind == "split":
        bundles = [
            [*((names, ()) for names in engines), *(((), names) for names in learners)]
            for engines in ways
            for learners in ways
        ]
    else:
        bundles = [[(names, names) for names in way] for way in ways]
    for bundle in bundles:
        for sizes in product(*(_sizes(setup, *names) for names in bundle)):
            if sum(sizes) <= setup.total:
                yield tuple(
                    Group(engines=names[0], learners=names[1], size=size)
                    for names, size in zip(bundle, sizes, strict=True)
                )


def _sizes(setup: Setup, engines: Sequence[str], learners: Sequence[str]) -> list[int]:
    """Engines: a power of two that divides their key-value heads, in one node. Learners: their ranks, in one node or in whole nodes."""
    sizes = [*range(1, setup.gpus + 1), *(setup.gpus * nodes for nodes in range(2, setup.nodes + 1))]
    for role in engines:
        sizes = [n for n in sizes if n <= setup.gpus and n & (n - 1) == 0 and setup.facts[role].kv_heads % n == 0]
    if learners and (setup.ranks or setup.stages is None):
        sizes = [n for n in sizes if n == (setup.ranks or 1)]
    return sizes


def place(setup: Setup, kind: str, groups: tuple[Group, ...]) -> Placement | None:
    """The layout with its memory and time; None where its groups cannot be put into the nodes."""
    where = _assign(groups, setup)
    if where is None:
        return None
    phases = tuple(_phases(setup, kind, group) for group in groups)
    return Placement(
        kind=kind,
        groups=groups,
        where=where,
        phases=phases,
        seconds=_seconds(setup, kind, groups, where, phases),
        usable=setup.usable,
    )


def _assign(groups: Sequence[Group], setup: Setup) -> tuple[tuple[int, int], ...] | None:
    """(node, first GPU) of each group, the largest first; a group beyond one node takes whole nodes in a row."""
    used, found = [0] * setup.nodes, {}
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].size):
        span = -(-groups[i].size // setup.gpus)
        size = groups[i].size // span
        starts = range(setup.nodes - span + 1)
        node = next((n for n in starts if all(taken + size <= setup.gpus for taken in used[n : n + span])), None)
        if node is None:
            return None
        found[i] = (node, used[node])
        used[node : node + span] = [taken + size for taken in used[node : node + span]]
    return tuple(found[i] for i in range(len(groups)))


def _phases(setup: Setup, kind: str, group: Group) -> dict[str, Parts]:
    """What each GPU of the group holds: all of it always, or, where engines sleep, in the rollout and in the update."""
    engines = {f"{role} engine": engine_parts(setup, role, group.size) for role in group.engines}
    learners = {f"{role} learner": learner_parts(setup, role, group.size) for role in group.learners}
    waiting = {
        name: {part: gib for part, gib in parts.items() if part not in BATCH_ONLY} for name, parts in learners.items()
    }
    awake = "rollout" if kind == "time-shared" else "always"
    beside = waiting if kind == "time-shared" else learners
    if setup.fill_kv and engines:
        left = setup.usable - peak({awake: engines | beside})[1] + sum(parts["kv cache"] for parts in engines.values())
        for parts in engines.values():
            parts["kv cache"] = max(parts["kv cache"], left / len(engines))
    if kind != "time-shared":
        return {awake: engines | beside}
    return {
        awake: engines | beside,
        "update": {name: {"process": parts["process"]} for name, parts in engines.items()} | learners,
    }


def engine_parts(setup: Setup, role: str, gpus: int) -> dict[str, float]:
    """GiB of an engine on each of its GPUs. `kv_cache_gib` is per GPU; where it shall take what is left: at least one full dialogue."""
    engine, model = setup.config.role(role).engine, setup.facts[role]
    size = BYTES[engine.dtype]
    cache = engine.max_model_len * model.kv_numbers * size / gpus / GIB if setup.fill_kv else engine.kv_cache_gib
    return {"process": ENGINE_GIB, "weights": model.parameters * size / gpus / GIB, "kv cache": cache}


def learner_parts(setup: Setup, role: str, ranks: int) -> dict[str, float]:
    """GiB of a learner on each of its GPUs; a sample longer than `batch_tokens` is a micro-batch by itself."""
    config, model = setup.config, setup.facts[role]
    size = BYTES[config.dtype]
    tokens = max(config.batch_tokens, min(config.role(role).engine.max_model_len, config.protocol.episode_tokens))
    if setup.stages is None:
        state, reference = torch_state(model.parameters, size), 4 * model.parameters
    else:
        stage = setup.stages[role]
        state = zero_state(model.parameters, stage, ranks, size, offload=setup.offload)
        reference = size * model.parameters / (ranks if stage >= 3 else 1)
    if config.loss.beta:
        state |= {"reference": reference}
    parts = {"process": LEARNER_GIB} | {name: amount / GIB for name, amount in state.items()}
    autocast = setup.stages is None and size == 2
    activations = activations_gib(model, tokens, size, autocast=autocast, checkpointing=setup.checkpointing)
    return parts | {"activations": activations, "logits": logits_gib(model, tokens)}


def host_gib(setup: Setup, placement: Placement) -> float:
    """GiB of the CPUs' memory, all nodes together: two copies of each learner's weights on their way to the engine, what is offloaded,
    and the weights of engines that sleep at level 1."""
    size = BYTES[setup.config.dtype]
    publishing = sum(2 * size * model.parameters for model in setup.facts.values())
    offloaded = sum(optimizer_bytes(size) * model.parameters for model in setup.facts.values()) if setup.offload else 0
    asleep = 0
    if placement.kind == "time-shared" and sleep_level(setup.config) == 1:
        asleep = sum(
            BYTES[setup.config.role(role).engine.dtype] * model.parameters for role, model in setup.facts.items()
        )
    return (publishing + offloaded + asleep) / GIB


def sleep_level(config: LongShortConfig) -> int:
    """2 (drop the weights) where every engine gets new ones each step, 1 (keep them in the CPU's memory) where one role is frozen."""
    return 2 if config.schedule == "joint" else 1


def _seconds(
    setup: Setup,
    kind: str,
    groups: Sequence[Group],
    where: Sequence[tuple[int, int]],
    phases: Sequence[Mapping[str, Parts]],
) -> dict[str, float]:
    """Groups work side by side, what shares a group one after the other; of a schedule of rounds the mean."""
    works = step_time.works(setup.config, setup.facts, setup.rates, checkpointing=setup.checkpointing)
    rollout, update, engine_node = [], {}, {}
    for group, (node, _), held in zip(groups, where, phases, strict=True):
        for role in group.engines:
            engine_node[role] = node
        awake = held.get("rollout") or held["always"]
        rollout.append(
            sum(
                step_time.rollout_s(works[role], setup.rates.of(role), group.size, awake[f"{role} engine"]["kv cache"])
                for role in group.engines
            )
        )
    for group, (node, _) in zip(groups, where, strict=True):
        for role in group.learners:
            learn = step_time.learn_s(works[role], setup.rates.of(role), group.size, offload=setup.offload)
            update[role] = learn + step_time.sync_s(
                works[role], setup.rates.of(role), same_node=engine_node[role] == node
            )
    rounds = [tuple(setup.facts)] if setup.config.schedule == "joint" else [(role,) for role in setup.config.schedule]
    slowest = [
        max(sum(update[role] for role in group.learners if role in active) for group in groups) for active in rounds
    ]
    seconds = {"rollout": max(rollout), "update": sum(slowest) / len(slowest)}
    if kind == "time-shared":
        seconds["sleep"] = max(step_time.sleep_s(work, sleep_level(setup.config)) for work in works.values())
    return seconds
