"""`longshort run`: the stages that a recipe configures, one after the other; a stage that is done is skipped.

A stage is a coroutine plus one line in `STAGES`. What it made is recorded in `runs/<name>/stages/<stage>.json` with a hash of the
recipe, so that an interrupted run continues where it stopped and a changed recipe is not mixed with old results.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort import console, interruption
from longshort.backends import ray_cluster
from longshort.backends.jobs import side_by_side
from longshort.data import load_problems
from longshort.dialogue.solo import Solo
from longshort.evaluation.benchmarks import evaluation_problems
from longshort.evaluation.command import measure, measured_before
from longshort.evaluation.tables import results_table
from longshort.pair import Pair
from longshort.preflight.checks import check
from longshort.recipe.schema import LongShortConfig, with_models
from longshort.recipe.strict_yaml import leaves
from longshort.runs import checkpoint
from longshort.runs.layout import RunFolder, cold_model
from longshort.trainer import LongShortTrainer, may_change
from longshort.types import LONG, ROLES, LongShortError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run: what it says it does, roughly how long it takes on the miniature, and the coroutine that does it."""

    title: str
    seconds: int
    run: Callable[[LongShortConfig], Awaitable[dict[str, Any]]]
    knows_itself: bool = False
    """It is run every time, because it keeps a record of its own and skips what is done."""


def run(config: LongShortConfig) -> dict[str, Any]:
    """Do all stages of the recipe; returns and writes the summary."""
    return interruption.run(_run(config))


async def _run(config: LongShortConfig) -> dict[str, Any]:
    names, began = stage_names(config), time.monotonic()
    console.say(f"longshort run -> {config.output_dir}")
    for number, name in enumerate(names, 1):
        console.say(f"  {number}. {name:<10} {STAGES[name].title} (about {console.duration(STAGES[name].seconds)})")
    console.say("checking the recipe, then starting Ray")
    async with console.heartbeat(lambda: "checking and starting"):
        training = load_problems(config.dataset) if config.dataset else []
        await asyncio.to_thread(check, config, training=training, held_out=evaluation_problems(config))
        undo = ray_cluster.start(config)
    try:
        for number, name in enumerate(names, 1):
            await _stage(config, name, f"[{number}/{len(names)}] {name}")
    finally:
        undo()
    summary = write_summary(config, names)
    if table := final_table(summary):
        console.say(table)
    if "train" in names:
        from longshort.report.report_page import write_report

        await asyncio.to_thread(write_report, [Path(config.output_dir)])
        from longshort.team.folder import save_team

        await asyncio.to_thread(
            save_team, RunFolder.of(config).team, config, checkpoint.latest(Path(config.output_dir))
        )
    console.say(
        f"\nwritten to {config.output_dir}: report.html, summary.json, metrics.jsonl, episodes/, checkpoint-*/, eval/, team/   "
        f"({console.duration(time.monotonic() - began)})"
    )
    return summary


def stage_names(config: LongShortConfig) -> list[str]:
    """The stages to run: the recipe's list, else all that apply to it. Raises LongShortError for an unknown one."""
    wanted = {
        "base": config.miniature,
        "baseline": config.miniature,
        "coldstart": config.coldstart,
        "mixture": config.mixture,
        "train": config.dataset,
    }
    names = config.stages or [name for name in STAGES if wanted[name]]
    for name in names:
        if name not in STAGES:
            raise LongShortError(f"stages: {name!r} is not a stage; known: {', '.join(STAGES)}")
    return names


async def _stage(config: LongShortConfig, name: str, label: str) -> None:
    record = RunFolder.of(config).stage(name)
    settings = {key: value for key, value in leaves(config.model_dump(mode="json")) if not may_change(key)}
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if record.is_file():
        done = json.loads(record.read_text())
        if done["recipe"] != fingerprint:
            raise LongShortError(
                f"{record} was made with other settings than this recipe's; remove {config.output_dir} or choose another output_dir"
            )
        if not STAGES[name].knows_itself:
            console.say(f"{label}: done before ({console.duration(done['seconds'])}), skipped")
            return
    console.say(f"{label}: {STAGES[name].title}")
    began = time.monotonic()
    result = await STAGES[name].run(config)
    seconds = time.monotonic() - began if not record.is_file() else json.loads(record.read_text())["seconds"]
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(".tmp")
    partial.write_text(json.dumps({"recipe": fingerprint, "seconds": seconds, "result": result}, indent=1))
    partial.replace(record)
    console.say(f"{label}: {console.duration(time.monotonic() - began)}")


async def base(config: LongShortConfig) -> dict[str, Any]:
    from longshort.miniature.training import train_base

    folders = {role: RunFolder.of(config).base(role) for role in ROLES}
    await side_by_side({role: (train_base, config, role, str(folder)) for role, folder in folders.items()}, folders)
    return {role: str(folder) for role, folder in folders.items()}


async def coldstart(config: LongShortConfig) -> dict[str, Any]:
    from longshort.coldstart.command import cold_start
    from longshort.report.thoughts_page import write_page

    models = await cold_start(config)
    console.say(f"  page       {write_page(RunFolder.of(config).thoughts)}")
    return models


async def mixture(config: LongShortConfig) -> dict[str, Any]:
    from longshort.mixture.run import run_mixture

    return await run_mixture(config)


async def baseline(config: LongShortConfig) -> dict[str, Any]:
    """The single long model, alone, on the held-out problems."""
    protocol = Solo(turn_tokens=config.long.engine.max_model_len)
    async with Pair(config, {LONG: str(RunFolder.of(config).base(LONG))}, protocol=protocol) as pair:
        return _show(await measure(config, pair, "long_baseline", title="single long model"))


async def train(config: LongShortConfig) -> dict[str, Any]:
    """RL of both roles, with the same evaluation before and after; continues from the newest checkpoint of an interrupted run."""
    config = after_cold_start(config)
    trainer = LongShortTrainer(args=config)
    folder = trainer.checkpoint_to_resume(bool(checkpoint.steps(Path(config.output_dir))))
    trainer.check()
    async with trainer.pair(folder) as pair:
        cold = measured_before(config, "cold_start") or _show(
            await measure(config, pair, "cold_start", title="pair, after cold start")
        )
        await trainer.run(pair, folder)
        return {"cold_start": cold, "trained": _show(await measure(config, pair, "trained", title="pair, after RL"))}


def _show(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("accuracy", "accuracy_greedy", "tokens", "cost", "hand_back_rate", "format")
    console.say("  " + "  ".join(f"{key} {result[key]:.3f}" for key in keys if key in result))
    return result


def after_cold_start(config: LongShortConfig) -> LongShortConfig:
    """The recipe with the models that its cold start made, where it has one; LongShortError when they are not there yet."""
    if not config.coldstart:
        return config
    folders = {role: cold_model(config, role) for role in ROLES}
    console.say(f"models of the cold start: {', '.join(folders.values())}")
    return with_models(config, folders)


def write_summary(config: LongShortConfig, names: list[str]) -> dict[str, Any]:
    """runs/<name>/summary.json: one block per system, seconds per stage, the seed."""
    records = {name: json.loads(RunFolder.of(config).stage(name).read_text()) for name in names}
    summary: dict[str, Any] = {}
    if "baseline" in records:
        summary["long_baseline"] = records["baseline"]["result"]
    if "train" in records:
        summary |= records["train"]["result"]
    if "mixture" in records:
        summary["mixture"] = records["mixture"]["result"]
    summary |= {"seconds": {name: round(record["seconds"], 1) for name, record in records.items()}, "seed": config.seed}
    RunFolder.of(config).summary.write_text(json.dumps(summary, indent=1))
    return summary


def final_table(summary: dict[str, Any]) -> str:
    """Single long model · after cold start · after RL; empty where the run had none of them."""
    titles = {"long_baseline": "single long model", "cold_start": "pair, after cold start", "trained": "pair, after RL"}
    found = {title: summary[name] for name, title in titles.items() if name in summary}
    return results_table("held-out problems", found) if found else ""


STAGES = {
    "base": Stage(title="train both base models from random weights on the teacher's traces", seconds=230, run=base),
    "baseline": Stage(title="evaluate the single long model", seconds=20, run=baseline),
    "coldstart": Stage(
        title="from long traces to two models that speak the dialogue", seconds=200, run=coldstart, knows_itself=True
    ),
    "mixture": Stage(
        title="fine-tune one role on a mixture of short and long traces", seconds=90, run=mixture, knows_itself=True
    ),
    "train": Stage(title="reinforcement learning of both models, evaluated before and after", seconds=250, run=train),
}
