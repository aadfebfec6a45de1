"""How long a training step takes on a placement: from rates that were measured or given, else from what an H100 is assumed to do.

Rollout, update and publishing only; prompts, the first turn, when one engine still waits for the other, and the last long episodes are
not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from longshort.preflight.memory_formulas import BYTES, GIB
from longshort.recipe.schema import LongShortConfig, load
from longshort.recipe.sections import Amount, EngineConfig, Rate, Section
from longshort.recipe.strict_yaml import explain, read_yaml
from longshort.runs.model_files import ModelFacts
from longshort.types import LONG, LongShortError

BANDWIDTH, BANDWIDTH_SHARE = 3.35e12, 0.6
"""Bytes per second of an H100 SXM's memory (its data sheet), and the share that decoding is assumed to reach."""
PEAK, PEAK_SHARE = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}, 0.4
"""FLOP per second of an H100 SXM without sparsity (its data sheet), and the share assumed of it: decoding and learning alike."""
DECODE_S = 0.005
"""Assumed of an engine's step beside its arithmetic: launches, sampling, scheduling."""
SYNC_BYTES_S, NETWORK_BYTES_S, PCIE_BYTES_S = 2e9, 1e9, 25e9
"""Assumed bytes per second of new weights, by way of the CPU: within a node, between nodes; and of a copy between CPU and GPU."""
SLEEP_S = 1.0
"""Assumed for an engine to fall asleep and wake."""
OFFLOAD_PARAMETERS_S = 2e9
"""Assumed parameters per second that AdamW updates on a node's CPUs."""
FILL = 0.5
"""Assumed share of `turn_tokens` that a role writes in an episode, in one turn."""


class RoleRates(Section):
    """Of one role; what is None is assumed."""

    engine: Rate | None = None
    """Tokens it samples per second and GPU."""
    learner: Rate | None = None
    """Tokens of both roles' text that it learns from, per second and GPU."""
    tokens: Rate | None = None
    """Tokens it samples per episode."""
    sync_s: Amount | None = None
    """Seconds from the learner's new weights to an engine that holds them."""


class Rates(Section):
    """What `--rates` holds: {long: {engine: 9000, learner: 12000, tokens: 700, sync_s: 6}, short: {…}}."""

    long: RoleRates = RoleRates()
    short: RoleRates = RoleRates()

    def of(self, role: str) -> RoleRates:
        return self.long if role == LONG else self.short


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one role does in a step: episodes, tokens it samples per episode, tokens of both roles per episode, and its sizes."""

    model: ModelFacts
    engine: EngineConfig
    dtype: str
    episodes: int
    own: float
    text: float
    passes: float
    """FLOP per parameter and token of an update: 6 forward and backward, 2 more for each extra forward pass."""


def works(
    config: LongShortConfig, facts: Mapping[str, ModelFacts], rates: Rates, *, checkpointing: bool
) -> dict[str, Work]:
    """Each role's work in a step of this recipe."""
    own = {
        role: rates.of(role).tokens or min(FILL * config.role(role).turn_tokens, config.protocol.episode_tokens)
        for role in facts
    }
    mu = config.num_iterations
    passes = mu * (6 + 2 * checkpointing + 2 * bool(config.loss.beta)) + 2 * (mu > 1)
    episodes = config.num_problems * config.num_generations
    common = dict(dtype=config.dtype, episodes=episodes, text=sum(own.values()), passes=passes)
    return {
        role: Work(model=model, engine=config.role(role).engine, own=own[role], **common)
        for role, model in facts.items()
    }


def engine_rate(work: Work, gpus: int, kv_gib: float) -> float:
    """Assumed tokens per second of one engine over so many GPUs with `kv_gib` of KV cache on each.

    A step reads all weights and the KV cache of the episodes in it, half grown; or computes 2 FLOP per parameter and token, whatever
    takes longer. As many episodes decode at once as there are, as `max_num_seqs` allows and as the KV cache holds in full length.
    """
    size = BYTES[work.engine.dtype]
    room = kv_gib * GIB * gpus / (work.text * work.model.kv_numbers * size)
    at_once = max(1, int(min(work.engine.max_num_seqs, work.episodes, room)))
    read = (work.model.parameters + at_once * work.text / 2 * work.model.kv_numbers) * size
    reading = read / gpus / (BANDWIDTH * BANDWIDTH_SHARE)
    computing = 2 * work.model.parameters * at_once / gpus / (PEAK[work.engine.dtype] * PEAK_SHARE)
    return at_once / (DECODE_S + max(reading, computing))


def learner_rate(work: Work, gpus: int) -> float:
    """Assumed tokens per second that a learner over so many GPUs takes in."""
    return gpus * PEAK[work.dtype] * PEAK_SHARE / (work.passes * work.model.parameters)


def rollout_s(work: Work, rates: RoleRates, gpus: int, kv_gib: float) -> float:
    """Seconds in which one engine samples its role's tokens of a step."""
    return work.episodes * work.own / (rates.engine * gpus if rates.engine else engine_rate(work, gpus, kv_gib))


def learn_s(work: Work, rates: RoleRates, gpus: int, *, offload: bool) -> float:
    """Seconds in which one learner updates; with the optimizer on the CPU also gradients and weights over PCIe, and AdamW there."""
    seconds = work.episodes * work.text / (rates.learner * gpus if rates.learner else learner_rate(work, gpus))
    moved = 2 * work.model.parameters * BYTES[work.dtype] / gpus / PCIE_BYTES_S
    return seconds + (moved + work.model.parameters / OFFLOAD_PARAMETERS_S if offload else 0)


def sync_s(work: Work, rates: RoleRates, *, same_node: bool) -> float:
    """Seconds in which new weights reach the engine."""
    if rates.sync_s is not None:
        return rates.sync_s
    return work.model.parameters * BYTES[work.dtype] / (SYNC_BYTES_S if same_node else NETWORK_BYTES_S)


def sleep_s(work: Work, level: int) -> float:
    """Seconds in which an engine falls asleep and wakes: level 1 keeps its weights in the CPU's memory, level 2 is sent new ones anyway."""
    moved = 2 * work.model.parameters * BYTES[work.engine.dtype] / PCIE_BYTES_S
    return SLEEP_S + (moved if level == 1 else 0)


def read_rates(path: Path, config: LongShortConfig) -> Rates:
    """Rates from a YAML file, or from the metrics.jsonl of a former run with the same models on GPUs (its recipe.yaml beside it).

    LongShortError for a file that is missing or is no such thing, and for a run of other models or on CPUs.
    """
    if not path.is_file():
        raise LongShortError(
            f"--rates: no file {path}; give a YAML file {{long: {{engine: 9000, …}}, …}} or a run's metrics.jsonl"
        )
    if path.suffix == ".jsonl":
        return _measured(path, config)
    try:
        return Rates.model_validate(read_yaml(path.read_bytes(), str(path)) or {})
    except ValidationError as error:
        raise LongShortError(explain(error, Rates, str(path))) from None


def _measured(path: Path, config: LongShortConfig) -> Rates:
    """Medians over the run's steps but the first, when engines warm up."""
    ran = load(path.parent / "recipe.yaml")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {
            role: _of_role(rows[1:] or rows, role, ran)
            for role in ("long", "short")
            if rows and f"team/tokens/{role}" in rows[0]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LongShortError(
            f"--rates: {path} is no metrics.jsonl of a training run ({error!r}); give another"
        ) from error
    if not found:
        raise LongShortError(f"--rates: {path} holds no training step; give the metrics.jsonl of a run that took some")
    for role in found:
        planned, was = config.role(role), ran.role(role)
        if planned.model != was.model:
            raise LongShortError(
                f"--rates: {path} was measured with {role}.model {was.model!r}, the recipe has {planned.model!r}"
            )
        if not (was.engine.num_gpus and ran.learner_gpus):
            raise LongShortError(
                f"--rates: {path} was measured on CPUs ({role}.engine.num_gpus {was.engine.num_gpus:g}, learner_gpus "
                f"{ran.learner_gpus:g}), which says nothing about GPUs; give rates of a run on GPUs"
            )
    return Rates(**found)


def _of_role(rows: list[dict], role: str, ran: LongShortConfig) -> RoleRates:
    episodes = ran.num_problems * ran.num_generations
    busy = [row["perf/rollout_s"] * (1 - row[f"rollout/idle_frac/{role}"]) for row in rows]
    sampled = [
        row[f"team/tokens/{role}"] * episodes / seconds for row, seconds in zip(rows, busy, strict=True) if seconds
    ]
    learned = [
        row["team/tokens"] * episodes / row[f"{role}/perf/learn_s"] for row in rows if row.get(f"{role}/perf/learn_s")
    ]
    synced = [row[f"{role}/perf/weight_sync_s"] for row in rows if f"{role}/perf/weight_sync_s" in row]
    return RoleRates(
        engine=median(sampled) / max(1, ran.role(role).engine.num_gpus),
        learner=median(learned) / max(1, ran.learner_gpus) if learned else None,
        tokens=median(row[f"team/tokens/{role}"] for row in rows),
        sync_s=median(synced) if synced else None,
    )
