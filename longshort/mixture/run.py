"""`longshort mixture`: SFT of one role's model on short and long traces whose ratios follow its dev accuracy and
tokens.

    measure the two bounds (once)  ->  [ update_steps optimizer steps -> publish, proven -> measure -> move the ratios
    -> save ] ...  ->  the checkpoint with the fewest tokens that is accurate enough, as a model folder

The mathematics is in longshort/mixture/reweighting.py (arXiv 2506.02678). Everything is under `<output_dir>/mixture/`:
bounds.json, trajectory.jsonl, checkpoint-<step>/ (the newest and the chosen so far), summary.json, trajectory.png and
.svg. An interrupted run continues from its newest checkpoint, whose manifest holds the trajectory up to there.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends import ray_cluster
from longshort.dialogue.rollout import Decoding
from longshort.evaluation.measures import summarise
from longshort.evaluation.runner import evaluate
from longshort.mixture.inputs import MixtureInputs, prepare
from longshort.mixture.reweighting import EVEN, WEIGHTINGS, Bounds, Measurement, choose, signals, smooth
from longshort.mixture.training import NO_PART_OF_THE_MODEL, learn, publish
from longshort.mixture.trajectory import draw_trajectory
from longshort.pair import Pair
from longshort.recipe.schema import LongShortConfig
from longshort.runs import checkpoint
from longshort.runs.files import refuse_changes, replace_folder, write_json, write_whole
from longshort.version import __version__

SHAPING = ("weighting", "eta", "floor", "ema", "keep_accuracy", "update_steps", "long_data")
"""Settings of the mixture that the bounds do not depend on."""
REMEDY = "restore it, or choose another output_dir"


async def run_mixture(config: LongShortConfig) -> dict[str, Any]:
    """Train, continue, or report that all is done; return what summary.json holds.

    LongShortError, before anything starts, for what cannot work.
    """
    async with console.heartbeat(lambda: "reading and checking the model, the traces and the dev problems"):
        inputs = await asyncio.to_thread(prepare, config)
        undo = ray_cluster.start(inputs.config)
    for source, counts in inputs.counts.items():
        console.say(f"  {source}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    try:
        bounds = await measure_bounds(inputs)
        rows = await train(inputs, bounds)
    finally:
        undo()
        shutil.rmtree(_scratch(inputs), ignore_errors=True)
    async with console.heartbeat(lambda: "copying the chosen model, drawing the trajectory"):
        return await asyncio.to_thread(finish, inputs, bounds, rows)


def _scratch(inputs: MixtureInputs) -> Path:
    return inputs.run.mixture / ".training"


async def measure_bounds(inputs: MixtureInputs) -> Bounds:
    """Measure the bounds as dev is measured: same problems, seeds and sampling; each once, kept in bounds.json.

    Without `long_bound` the long thinker is the model that training starts from. Without `short_bound` the short
    thinker is that model after `max_steps` on the short data alone.
    """
    path, settings = inputs.run.mixture / "bounds.json", inputs.settings
    setup = {key: value for key, value in inputs.setup.items() if key not in {f"mixture.{name}" for name in SHAPING}}
    known = json.loads(path.read_text()) if path.is_file() else {"setup": setup}
    refuse_changes(path, known["setup"], setup, REMEDY)
    if "long" not in known:
        known["long"] = await _bound(inputs, settings.long_bound or inputs.start)
        write_json(path, known)
    if "short" not in known:
        known["short"] = await _bound(inputs, settings.short_bound or await _short_thinker(inputs))
        write_json(path, known)
    short, long = known["short"], known["long"]
    for name, bound in (("long", long), ("short", short)):
        scores = f"accuracy {bound['accuracy']:.3f}, {bound['tokens']:.1f} tokens"
        console.say(f"  {name} bound, {bound['model']}: {scores}")
    if short["tokens"] > long["tokens"] or short["accuracy"] > long["accuracy"]:
        console.say("! the short bound has more tokens or accuracy than the long bound: are they swapped?")
    return Bounds(
        tokens_short=short["tokens"],
        accuracy_short=short["accuracy"],
        tokens_long=long["tokens"],
        accuracy_long=long["accuracy"],
    )


async def _bound(inputs: MixtureInputs, model: str) -> dict[str, Any]:
    async with Pair(inputs.config, {inputs.settings.role: model}, protocol=inputs.protocol) as pair:
        return {"model": model} | await measure(inputs, pair)


async def measure(inputs: MixtureInputs, pair: Pair) -> dict[str, Any]:
    """Return accuracy, its 95 % interval, and mean tokens on the dev problems."""
    config, temperature = inputs.config, inputs.settings.temperature
    sampled = Decoding(temperature=temperature, top_p=config.top_p, top_k=config.top_k)
    decoding = sampled if temperature else Decoding(temperature=0.0)
    async with console.heartbeat(lambda: f"evaluating {len(inputs.dev)} problems at temperature {temperature:g}"):
        graded = await evaluate(
            pair.policies, pair.protocol, inputs.dev, pair.pool, decoding, num_samples=1, seed=config.eval.seed
        )
    summary = summarise(graded, pair.protocol, config.prices)
    return {key: summary[key] for key in ("accuracy", "interval", "tokens", "n")}


async def _short_thinker(inputs: MixtureInputs) -> str:
    target = inputs.run.model(f"mixture-{inputs.settings.role}-short-bound")
    steps = range(inputs.settings.max_steps)
    folder, *_ = await learn(inputs, steps, (0, 0), (1.0, 0.0), None, _scratch(inputs))
    _copy_model(folder, target)
    return str(target)


async def train(inputs: MixtureInputs, bounds: Bounds) -> list[Measurement]:
    """Train from the newest checkpoint, or from the start, to `max_steps`; return the trajectory."""
    settings, role = inputs.settings, inputs.settings.role
    folder, rows = _newest(inputs)
    lines = inputs.run.mixture / "trajectory.jsonl"
    write_whole(lines, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    done = rows[-1].step if rows else 0
    if done >= settings.max_steps:
        console.say(f"  trained before: {folder}")
        return rows
    if folder:
        console.say(f"resumed {folder} after step {done}")
    async with Pair(inputs.config, {role: inputs.start}, protocol=inputs.protocol) as pair:
        began = time.monotonic()
        for start in range(done, settings.max_steps, settings.update_steps):
            steps = range(start, min(start + settings.update_steps, settings.max_steps))
            trained, row = await _next(inputs, bounds, pair, rows, steps, folder / role if folder else None)
            rows.append(row)
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(row)) + "\n")
            folder = await asyncio.to_thread(_save, inputs, bounds, trained, rows)
            per_step = (time.monotonic() - began) / (row.step - done)
            console.say(_line(row, settings.max_steps, per_step * (settings.max_steps - row.step)))
    return rows


async def _next(
    inputs: MixtureInputs, bounds: Bounds, pair: Pair, rows: Sequence[Measurement], steps: range, resume: Path | None
) -> tuple[Path, Measurement]:
    """Train over `steps`, publish, measure, move the ratios; return the trainer's checkpoint and the measurement."""
    last, settings = rows[-1] if rows else None, inputs.settings
    ratios = (last.alpha_short, last.alpha_long) if last else EVEN
    taken = (last.drawn_short, last.drawn_long) if last else (0, 0)
    folder, drawn, loss = await learn(inputs, steps, taken, ratios, resume, _scratch(inputs))
    async with console.heartbeat(lambda: "publishing the weights to the engine"):
        await publish(inputs, pair.policies[settings.role], folder, steps.stop)
    dev = await measure(inputs, pair)
    now = signals(dev["tokens"], dev["accuracy"], bounds)
    u = smooth((last.u_short, last.u_long), now, settings.ema) if last else now
    alpha = WEIGHTINGS[settings.weighting](ratios, u, settings.eta, settings.floor)
    return folder, Measurement(
        step=steps.stop,
        dev_accuracy=dev["accuracy"],
        dev_tokens=dev["tokens"],
        u_short=u[0],
        u_long=u[1],
        alpha_short=alpha[0],
        alpha_long=alpha[1],
        train_loss=loss,
        drawn_short=drawn[0],
        drawn_long=drawn[1],
    )


def _save(inputs: MixtureInputs, bounds: Bounds, trained: Path, rows: Sequence[Measurement]) -> Path:
    """Commit the trainer's checkpoint; of the older ones keep only the one chosen so far."""
    folder, step = checkpoint.begin(inputs.run.mixture, rows[-1].step), rows[-1].step
    trained.rename(folder / inputs.settings.role)
    facts = {"step": step, "longshort": __version__, "setup": inputs.setup}
    committed = checkpoint.commit(folder, facts | {"trajectory": [asdict(row) for row in rows]})
    chosen, _ = choose(rows, bounds, inputs.settings.keep_accuracy)
    for number, old in checkpoint.steps(inputs.run.mixture):
        if number not in (step, chosen.step):
            shutil.rmtree(old)
    return committed


def _newest(inputs: MixtureInputs) -> tuple[Path | None, list[Measurement]]:
    """Return the newest checkpoint, verified and of the same settings, or None, and its trajectory."""
    if not checkpoint.steps(inputs.run.mixture):
        return None, []
    folder = checkpoint.latest(inputs.run.mixture)
    facts = checkpoint.verify(folder)
    refuse_changes(folder, facts["setup"], inputs.setup, REMEDY)
    return folder, [Measurement(**row) for row in facts["trajectory"]]


def _copy_model(trained: Path, target: Path) -> None:
    """Copy the model and tokenizer of a trainer's checkpoint."""
    partial = target.with_name(f".{target.name}.partial")
    ignored = shutil.ignore_patterns(*NO_PART_OF_THE_MODEL)
    shutil.copytree(trained, partial, ignore=ignored, dirs_exist_ok=True)
    replace_folder(partial, target)


def finish(inputs: MixtureInputs, bounds: Bounds, rows: Sequence[Measurement]) -> dict[str, Any]:
    """Write the chosen model's folder, summary.json and the plots; return the summary."""
    role, keep = inputs.settings.role, inputs.settings.keep_accuracy
    chosen, accurate = choose(rows, bounds, keep)
    if not accurate:
        limit = f"{keep:g} of the long bound's accuracy ({keep * bounds.accuracy_long:.3f})"
        console.say(f"! no checkpoint is above {limit}; chosen: the most accurate")
    folder, target = inputs.run.mixture / f"checkpoint-{chosen.step}", inputs.run.model(f"mixture-{role}")
    checkpoint.verify(folder)
    _copy_model(folder / role, target)
    summary = {
        "model": str(target),
        "weighting": inputs.settings.weighting,
        "bounds": asdict(bounds),
        "chosen": asdict(chosen),
        "accurate_enough": accurate,
        "last": asdict(rows[-1]),
        "traces": inputs.counts,
    }
    write_json(inputs.run.mixture / "summary.json", summary)
    draw_trajectory(rows, bounds, chosen, inputs.run.mixture)
    console.say(
        f"  chosen: step {chosen.step}, dev accuracy {chosen.dev_accuracy:.3f}, {chosen.dev_tokens:.1f} tokens "
        f"(long bound: {bounds.accuracy_long:.3f}, {bounds.tokens_long:.1f}) -> {target}"
    )
    return summary


def _line(row: Measurement, steps: int, remaining_s: float) -> str:
    return (
        f"step {row.step:>{len(str(steps))}}/{steps}  loss {row.train_loss:.3f}  dev accuracy {row.dev_accuracy:.3f}  "
        f"tokens {row.dev_tokens:.1f}  u {row.u_short:.2f}/{row.u_long:.2f}  "
        f"ratios {row.alpha_short:.2f}/{row.alpha_long:.2f}  drawn {row.drawn_short}/{row.drawn_long}  "
        f"eta {console.duration(remaining_s)}"
    )
