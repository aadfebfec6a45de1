"""Runs the steps from long traces to training rows, each a file of one line per trace (longshort/runs/ledger.py).

    chunk -> rollouts -> importance -> partition -> rewrite -> rows -> (sft: longshort/coldstart/sft.py)

The steps are in longshort/coldstart/steps.py. A trace that one step refuses is left out of all later ones, and the
reason is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from longshort import console
from longshort.coldstart.records import DROPPED_BEFORE, StepManifest, TraceLine
from longshort.coldstart.steps import STEPS
from longshort.coldstart.traces import load_traces
from longshort.coldstart.work import ColdStartStep, StepWork, section_of
from longshort.dialogue.grading import GradingPool
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import file_digest
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import Ledger, read
from longshort.types import LongShortError


async def run_steps(config: LongShortConfig, names: Sequence[str]) -> None:
    """Do the named steps in order; skip what is done."""
    with GradingPool.of(config.grading) as pool:
        for name in names:
            await _run_step(config, STEPS[name], pool)


async def _run_step(config: LongShortConfig, step: ColdStartStep, pool: GradingPool) -> None:
    folder, began = RunFolder.of(config).thoughts, time.monotonic()
    earlier = {kind: _finished_lines(folder, kind) for kind in step.reads}
    ledger = Ledger(folder, step.name, step.settings(config), _inputs(config, folder, step))
    if ledger.complete:
        console.say(f"  {step.name:<10} done before ({_outcomes(ledger)}), skipped")
        return
    before = f"; {len(ledger.rows)} traces were done before" if ledger.rows else ""
    console.say(f"  {step.name:<10} {step.title}{before}")
    traces = {}
    if step.reads:
        last = earlier[step.reads[-1]]
        order, alive = list(last), [trace for trace, line in last.items() if line.continues]
    else:
        section = section_of(config)
        loaded = await asyncio.to_thread(load_traces, section.traces, section.num_traces, pool, config.seed)
        traces = {trace.id: trace for trace in loaded}
        order = alive = list(traces)
    todo = [trace for trace in alive if trace not in ledger.rows]
    work = StepWork(
        config=config, step=step, pool=pool, traces=traces, earlier=earlier, alive=alive, todo=todo, ledger=ledger
    )
    try:
        if todo:
            await step.run(work)
    finally:
        ledger.pause(time.monotonic() - began)
    for trace in order:
        if trace not in ledger.rows:
            ledger.append(TraceLine(id=trace, outcome=DROPPED_BEFORE).row())
    ledger.finish(order, step.counts(work))
    console.say(f"  {step.name:<10} {_outcomes(ledger)} ({console.duration(time.monotonic() - began)})")
    if not work.good(TraceLine):
        raise LongShortError(
            f"{step.name}: not one of {len(order)} traces came through; the reasons are in {ledger.path}"
        )


def check_complete(folder: Path, step: str) -> StepManifest:
    """Return the manifest of a complete step; LongShortError where it is not complete."""
    place = folder / f"{step}.manifest.json"
    manifest = StepManifest.model_validate_json(place.read_bytes()) if place.is_file() else None
    if manifest is None or not manifest.complete:
        raise LongShortError(
            f"{folder / step}.jsonl is not complete; run `longshort {step}` first, or `longshort coldstart` for all steps"
        )
    return manifest


def _finished_lines(folder: Path, kind: type[TraceLine]) -> dict[str, TraceLine]:
    """Return a complete step's lines by trace; LongShortError where lines are missing."""
    expected, path = check_complete(folder, kind.step).counts.traces, folder / f"{kind.step}.jsonl"
    lines = {line.id: line for line in map(kind.model_validate, read(path))}
    if len(lines) != expected:
        raise LongShortError(
            f"{path} has {len(lines)} lines, its manifest says {expected}; make it again with --redo {kind.step}"
        )
    return lines


def _inputs(config: LongShortConfig, folder: Path, step: ColdStartStep) -> dict[str, str]:
    """Return the hashes of what the step reads: the earlier steps' files, or the file of traces."""
    source = Path(section_of(config).traces)
    if not step.reads:
        return {"traces": file_digest(source)} if source.is_file() else {}
    return {kind.step: file_digest(folder / f"{kind.step}.jsonl") for kind in step.reads}


def _outcomes(ledger: Ledger) -> str:
    """Return e.g. `120 traces: ok 118, one_paragraph 2`."""
    outcomes = Counter(row["outcome"] for row in ledger.rows.values())
    return f"{len(ledger.rows)} traces: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
