"""`longshort run`: the stages that a recipe configures, one after the other; a finished stage is skipped.

A stage is a coroutine plus one line in `STAGES`. What it made is recorded in `runs/<name>/stages/<stage>.json` with a
hash of the recipe, so that an interrupted run continues where it stopped and a changed recipe never mixes with old
results.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshort import console, interruption
from longshort.backends import ray_cluster
from longshort.backends.jobs import side_by_side
from longshort.coldstart import command as coldstart_command
from longshort.data import load_problems
from longshort.dialogue.solo import Solo
from longshort.evaluation.benchmarks import evaluation_problems
from longshort.evaluation.command import measure, measured_before
from longshort.evaluation.tables import results_table
from longshort.mixture.inputs import check_settings
from longshort.pair import Pair
from longshort.preflight.checks import check, check_output, check_sampling
from longshort.recipe.schema import LongShortConfig, with_models
from longshort.recipe.strict_yaml import leaves
from longshort.runs import checkpoint, lock
from longshort.runs.files import write_json
from longshort.runs.layout import RunFolder, cold_model
from longshort.runs.resuming import may_change
from longshort.team.folder import save_team
from longshort.trainer import LongShortTrainer
from longshort.types import LONG, ROLES, LongShortError

TITLES = {"long_baseline": "single long model", "cold_start": "pair, after cold start", "trained": "pair, after RL"}
"""The systems of the closing table, by their key in summary.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run: its title, roughly its seconds on the miniature, and the coroutine that does it."""

    title: str
    seconds: int
    run: Callable[[LongShortConfig], Awaitable[dict[str, Any]]]
    needs: str
    """The setting without which it has nothing to do."""
    resumes_itself: bool = False
    """Run it every time: it keeps its own record and skips what is done."""


def run(config: LongShortConfig) -> dict[str, Any]:
    """Do all stages of the recipe; return and write the summary."""
    return interruption.run(_run(config))


async def _run(config: LongShortConfig) -> dict[str, Any]:
    check_output(config)
    check_measured(config)
    with lock.hold(RunFolder.of(config).root):
        return await _run_stages(config)


async def _run_stages(config: LongShortConfig) -> dict[str, Any]:
    names, started = stage_names(config), time.monotonic()
    console.say(f"longshort run -> {config.output_dir}")
    for number, name in enumerate(names, 1):
        console.say(f"  {number}. {name:<10} {STAGES[name].title} (about {console.duration(STAGES[name].seconds)})")
    console.say("checking the recipe, then starting Ray")
    async with console.heartbeat(lambda: "checking and starting"):
        await asyncio.to_thread(check_run, config)
        stop_cluster = ray_cluster.start(config)
    try:
        for number, name in enumerate(names, 1):
            await _stage(config, name, f"[{number}/{len(names)}] {name}")
    finally:
        stop_cluster()
    summary = write_summary(config, names)
    if table := final_table(summary):
        console.say(table)
    if "train" in names:
        await asyncio.to_thread(_publish, config)
    console.say(
        f"\nwritten to {config.output_dir}: report.html, summary.json, metrics.jsonl, episodes/, checkpoint-*/, eval/, "
        f"team/   ({console.duration(time.monotonic() - started)})"
    )
    return summary


def check_measured(config: LongShortConfig) -> None:
    """Refuse a run without a stage, and one whose stages have nothing to measure the models on."""
    if not (names := stage_names(config)):
        settings = ", ".join(dict.fromkeys(stage.needs for stage in STAGES.values()))
        raise LongShortError(f"this recipe has nothing to run; set one of {settings}")
    if measuring := [name for name in ("baseline", "train") if name in names and not config.eval.benchmarks]:
        raise LongShortError(
            f"the stage {measuring[0]} measures the models, but eval.benchmarks is empty; name at least one, or train "
            "without measuring: longshort train"
        )


def check_run(config: LongShortConfig) -> None:
    """Refuse, before anything starts, what cannot work; LongShortError with what, where, both values and the remedy."""
    names = stage_names(config)
    check_records(config)
    if "train" in names:
        check_sampling(config)
    if "coldstart" in names:
        coldstart_command.check(config, bases_made="base" not in names)
    if "mixture" in names:
        check_settings(config)
    training = load_problems(config.dataset) if config.dataset else []
    check(config, training=training, held_out=evaluation_problems(config))


def _publish(config: LongShortConfig) -> None:
    """Write the run's report and its team folder."""
    from longshort.report.report_page import write_report

    folder = RunFolder.of(config)
    write_report([folder.root])
    save_team(folder.team, config, checkpoint.latest(folder.root))


def stage_names(config: LongShortConfig) -> list[str]:
    """Return the stages to run: the recipe's list, else all that it has the settings of.

    LongShortError for an unknown stage, and for one whose settings are missing.
    """
    names = config.stages or [name for name, stage in STAGES.items() if getattr(config, stage.needs)]
    for name in names:
        if name not in STAGES:
            raise LongShortError(f"stages: {name!r} is not a stage; known: {', '.join(STAGES)}")
        if not getattr(config, needed := STAGES[name].needs):
            raise LongShortError(f"stages: {name!r} needs {needed!r}, which this recipe does not set")
    return names


def planned_stages(config: LongShortConfig) -> list[tuple[str, str, int | None]]:
    """Return (name, title, seconds) of each stage; the times were measured on the miniature and hold for nothing
    else.
    """
    names = stage_names(config)
    return [(name, STAGES[name].title, STAGES[name].seconds if config.miniature else None) for name in names]


def fingerprint(config: LongShortConfig) -> str:
    """Return a hash of the settings that the results of a stage depend on."""
    settings = {key: value for key, value in leaves(config.model_dump(mode="json")) if not may_change(key)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_records(config: LongShortConfig) -> None:
    """Refuse an output folder whose stages were done with other settings."""
    for name in stage_names(config):
        record = RunFolder.of(config).stage(name)
        if record.is_file() and json.loads(record.read_text())["recipe"] != fingerprint(config):
            raise LongShortError(
                f"{record} was made with other settings than this recipe's; "
                f"remove {config.output_dir} or choose another output_dir"
            )


async def _stage(config: LongShortConfig, name: str, label: str) -> None:
    stage, record, seconds = STAGES[name], RunFolder.of(config).stage(name), None
    if record.is_file():
        done = json.loads(record.read_text())
        if not stage.resumes_itself:
            console.say(f"{label}: done before ({console.duration(done['seconds'])}), skipped")
            return
        seconds = done["seconds"]
    console.say(f"{label}: {stage.title}")
    started = time.monotonic()
    result = await stage.run(config)
    taken = time.monotonic() - started
    write_json(
        record, {"recipe": fingerprint(config), "seconds": taken if seconds is None else seconds, "result": result}
    )
    console.say(f"{label}: {console.duration(taken)}")


async def base(config: LongShortConfig) -> dict[str, Any]:
    """Train the miniature's base model of each role."""
    from longshort.miniature.training import train_base

    folders = {role: RunFolder.of(config).base(role) for role in ROLES}
    await side_by_side({role: (train_base, config, role, str(folder)) for role, folder in folders.items()}, folders)
    return {role: str(folder) for role, folder in folders.items()}


async def coldstart(config: LongShortConfig) -> dict[str, Any]:
    """Make the cold start's data and models, and the page that shows them."""
    from longshort.coldstart.command import cold_start
    from longshort.report.thoughts_page import write_page

    models = await cold_start(config)
    console.say(f"  page       {write_page(RunFolder.of(config).thoughts)}")
    return models


async def mixture(config: LongShortConfig) -> dict[str, Any]:
    from longshort.mixture.run import run_mixture

    return await run_mixture(config)


async def baseline(config: LongShortConfig) -> dict[str, Any]:
    """Evaluate the single long model, alone, on the held-out problems."""
    protocol = Solo(turn_tokens=config.long.engine.max_model_len)
    async with Pair(config, {LONG: str(RunFolder.of(config).base(LONG))}, protocol=protocol) as pair:
        return _show(await measure(config, pair, "long_baseline", title=TITLES["long_baseline"]))


async def train(config: LongShortConfig) -> dict[str, Any]:
    """Train both roles by RL, evaluated before and after; continue from the newest checkpoint of an interrupted run."""
    config = after_cold_start(config)
    trainer = LongShortTrainer(args=config)
    start = trainer.checkpoint_to_resume(True)
    trainer.check()
    async with trainer.pair(start) as pair:
        cold = measured_before(config, "cold_start") if start else None  # else it may be of other settings
        cold = cold or _show(await measure(config, pair, "cold_start", title=TITLES["cold_start"]))
        await trainer.run(pair, start)
        return {"cold_start": cold, "trained": _show(await measure(config, pair, "trained", title=TITLES["trained"]))}


def _show(result: dict[str, Any]) -> dict[str, Any]:
    """Print an evaluation's main figures; return them."""
    keys = ("accuracy", "accuracy_greedy", "tokens", "cost", "hand_back_rate", "format")
    console.say("  " + "  ".join(f"{key} {result[key]:.3f}" for key in keys if key in result))
    return result


def after_cold_start(config: LongShortConfig) -> LongShortConfig:
    """Return the recipe with the models that its cold start made, if it has one; LongShortError if they are missing."""
    if not config.coldstart:
        return config
    folders = {role: cold_model(config, role) for role in ROLES}
    console.say(f"models of the cold start: {', '.join(folders.values())}")
    return with_models(config, folders)


def write_summary(config: LongShortConfig, names: Sequence[str]) -> dict[str, Any]:
    """Write runs/<name>/summary.json: one block per system, seconds per stage, the seed."""
    folder = RunFolder.of(config)
    records = {name: json.loads(folder.stage(name).read_text()) for name in names}
    summary: dict[str, Any] = {}
    if "baseline" in records:
        summary["long_baseline"] = records["baseline"]["result"]
    if "train" in records:
        summary |= records["train"]["result"]
    if "mixture" in records:
        summary["mixture"] = records["mixture"]["result"]
    summary |= {"seconds": {name: round(record["seconds"], 1) for name, record in records.items()}, "seed": config.seed}
    write_json(folder.summary, summary)
    return summary


def final_table(summary: Mapping[str, Any]) -> str:
    """Return the closing table: single long model, after cold start, after RL; empty if the run had none of them."""
    systems = {title: summary[name] for name, title in TITLES.items() if name in summary}
    return results_table("held-out problems", systems) if systems else ""


STAGES = {
    "base": Stage(
        title="train both base models from random weights on the teacher's traces",
        seconds=230,
        run=base,
        needs="miniature",
    ),
    "baseline": Stage(title="evaluate the single long model", seconds=20, run=baseline, needs="miniature"),
    "coldstart": Stage(
        title="from long traces to two models that speak the dialogue",
        seconds=200,
        run=coldstart,
        needs="coldstart",
        resumes_itself=True,
    ),
    "mixture": Stage(
        title="fine-tune one role on a mixture of short and long traces",
        seconds=90,
        run=mixture,
        needs="mixture",
        resumes_itself=True,
    ),
    "train": Stage(
        title="reinforcement learning of both models, evaluated before and after",
        seconds=250,
        run=train,
        needs="dataset",
    ),
}
