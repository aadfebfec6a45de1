"""`longshort mixture`: SFT of one role's model on short and long traces whose sampling ratios follow its dev accuracy and tokens.

    measure the two bounds (once)  ->  [ update_steps optimizer steps -> publish, proven -> measure on dev -> move the ratios -> save ] ...
    ->  the checkpoint with the fewest tokens that is accurate enough, as a model folder

The mixer's mathematics stands in longshort/mixture/reweighting.py (arXiv 2506.02678). Everything is under `<output_dir>/mixture/`:
bounds.json, trajectory.jsonl, checkpoint-<step>/ (the newest and the chosen so far), summary.json, trajectory.png and .svg. An
interrupted run continues from its newest checkpoint, whose manifest holds the trajectory up to there.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from longshort import console
from longshort.backends import ray_cluster
from longshort.dialogue.rollout import Decoding
from longshort.evaluation.measures import summarise
from longshort.evaluation.runner import evaluate
from longshort.mixture.inputs import Job, as_sample, prepare
from longshort.mixture.reweighting import (
    EVEN,
    WEIGHTINGS,
    Bounds,
    Drawn,
    Measurement,
    ShortLong,
    choose,
    draw,
    signals,
    smooth,
)
from longshort.pair import LearningPair, Pair
from longshort.recipe.schema import LongShortConfig
from longshort.runs import checkpoint
from longshort.types import LongShortError
from longshort.version import __version__

SHAPING = ("weighting", "eta", "floor", "ema", "keep_accuracy", "update_steps", "long_data")
"""Settings of the mixture that the bounds do not depend on."""


async def run_mixture(config: LongShortConfig) -> dict[str, Any]:
    """Train, continue, or find all done; returns what summary.json holds. LongShortError, before anything starts, for what cannot work."""
    async with console.heartbeat(lambda: "reading and checking the model, the traces and the dev problems"):
        job = await asyncio.to_thread(prepare, config)
        undo = ray_cluster.start(job.config)
    for source, counts in job.counts.items():
        console.say(f"  {source}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        bounds = await measure_bounds(job)
        rows = await train(job, bounds)
    finally:
        undo()
    async with console.heartbeat(lambda: "copying the chosen model, drawing the trajectory"):
        return await asyncio.to_thread(finish, job, bounds, rows)


async def measure_bounds(job: Job) -> Bounds:
    """The bounds as dev is measured: same problems, seeds and sampling. Each is measured once and kept in bounds.json.

    Without `long_bound` the long thinker is the model that training starts from. Without `short_bound` the short thinker is that model
    after as many steps on the short data alone, by the same learner.
    """
    path = job.folder / "bounds.json"
    setup = {key: value for key, value in job.setup.items() if key not in {f"mixture.{name}" for name in SHAPING}}
    found = json.loads(path.read_text()) if path.is_file() else {"setup": setup}
    _refuse_changes(path, found["setup"], setup)
    for name in ("long", "short"):
        if name not in found:
            model = (
                job.settings.long_bound or job.start
                if name == "long"
                else job.settings.short_bound or await _short_thinker(job)
            )
            async with Pair(job.config, {job.settings.role: model}, protocol=job.protocol) as pair:
                found[name] = {"model": model} | await measure(job, pair)
            _write(path, json.dumps(found, indent=1))
        console.say(
            f"  {name} bound, {found[name]['model']}: accuracy {found[name]['accuracy']:.3f}, {found[name]['tokens']:.1f} tokens"
        )
    short, long = found["short"], found["long"]
    if short["tokens"] > long["tokens"] or short["accuracy"] > long["accuracy"]:
        console.say(
            "! the short bound writes more, or is more accurate, than the long bound: are they the right way round?"
        )
    return Bounds(
        tokens_short=short["tokens"],
        accuracy_short=short["accuracy"],
        tokens_long=long["tokens"],
        accuracy_long=long["accuracy"],
    )


async def measure(job: Job, pair: Pair) -> dict[str, Any]:
    """Accuracy, its 95 % interval, and mean tokens on the dev problems."""
    config, temperature = job.config, job.settings.temperature
    sampled = Decoding(temperature=temperature, top_p=config.top_p, top_k=config.top_k)
    decoding = sampled if temperature else Decoding(temperature=0.0)
    async with console.heartbeat(lambda: f"evaluating {len(job.dev)} problems at temperature {temperature:g}"):
        evaluation = await evaluate(
            pair.policies, pair.protocol, job.dev, pair.pool, decoding, num_samples=1, seed=config.eval.seed
        )
    summary = summarise(evaluation, pair.protocol, job.config.prices)
    return {key: summary[key] for key in ("accuracy", "interval", "tokens", "n")}


async def _short_thinker(job: Job) -> str:
    target = Path(job.config.output_dir) / "models" / f"mixture-{job.settings.role}-short-bound"
    scratch = job.folder / ".short-bound"
    learner = ray_cluster.make_learner(job.settings.role, job.start, job.config, job.settings.max_steps)
    try:
        await learn(job, learner, range(job.settings.max_steps), (0, 0), (1.0, 0.0), "short bound")
        await learner.save(scratch / "model", scratch / "state")
    finally:
        learner.close()
    _replace(scratch / "model", target)
    shutil.rmtree(scratch)
    return str(target)


async def learn(
    job: Job, learner, steps: range, drawn: Drawn, ratios: ShortLong, what: str = "training"
) -> tuple[Drawn, float]:
    """One optimizer step per batch; returns how many examples of each source are drawn by now, and the mean loss of these steps."""
    losses: list[float] = []
    step, sizes = steps.start, (len(job.traces[0]), len(job.traces[1]))
    async with console.heartbeat(
        lambda: f"{what}: step {step + 1}/{job.settings.max_steps}, loss {fmean(losses or [math.nan]):.3f}"
    ):
        for step in steps:
            picks, drawn = draw(sizes, drawn, ratios, job.settings.batch_size, job.config.seed, step)
            samples = [as_sample(job.traces[source][row], job.protocol, job.tokenizer) for source, row in picks]
            report = await learner.supervise(samples)
            if report["skipped"]:
                console.say(
                    f"! step {step + 1}: loss {report['loss']} or gradient {report['grad_norm']} not finite; the step was skipped"
                )
            else:
                losses.append(report["loss"])
    return drawn, fmean(losses or [math.nan])


async def train(job: Job, bounds: Bounds) -> list[Measurement]:
    """From the newest checkpoint, or from the start, to `max_steps`; returns the trajectory."""
    settings, role = job.settings, job.settings.role
    facts, folder = _newest(job)
    rows = [Measurement(**row) for row in facts["trajectory"]]
    lines = job.folder / "trajectory.jsonl"
    _write(lines, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    if facts["step"] >= settings.max_steps:
        console.say(f"  trained before: {folder}")
        return rows
    async with LearningPair(
        job.config,
        {role: job.start},
        learner_models={role: str(folder / role)} if folder else None,
        total_updates={role: settings.max_steps},
        protocol=job.protocol,
    ) as pair:
        policy = pair.policies[role]
        if folder:
            await policy.learner.load(folder / "state" / role)
            policy.version = facts["version"]
            console.say(f"resumed {folder} after step {facts['step']}")
        began = time.monotonic()
        for start in range(facts["step"], settings.max_steps, settings.update_steps):
            rows.append(
                await _next(
                    job, bounds, pair, rows, range(start, min(start + settings.update_steps, settings.max_steps))
                )
            )
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(rows[-1])) + "\n")
            await _save(job, bounds, pair, rows)
            per_step = (time.monotonic() - began) / (rows[-1].step - facts["step"])
            console.say(_line(rows[-1], settings.max_steps, per_step * (settings.max_steps - rows[-1].step)))
    return rows


async def _next(job: Job, bounds: Bounds, pair: LearningPair, rows: Sequence[Measurement], steps: range) -> Measurement:
    """Train over `steps`, publish, measure, move the ratios."""
    last, settings, policy = rows[-1] if rows else None, job.settings, pair.policies[job.settings.role]
    ratios = (last.alpha_short, last.alpha_long) if last else EVEN
    drawn, loss = await learn(
        job, policy.learner, steps, (last.drawn_short, last.drawn_long) if last else (0, 0), ratios
    )
    async with console.heartbeat(lambda: "publishing the weights to the engine"):
        await policy.publish()
    dev = await measure(job, pair)
    now = signals(dev["tokens"], dev["accuracy"], bounds)
    u = smooth((last.u_short, last.u_long), now, settings.ema) if last else now
    alpha = WEIGHTINGS[settings.weighting](ratios, u, settings.eta, settings.floor)
    return Measurement(
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


async def _save(job: Job, bounds: Bounds, pair: LearningPair, rows: Sequence[Measurement]) -> None:
    """Commit a checkpoint; of the older ones only the chosen so far stays."""
    role, step = job.settings.role, rows[-1].step
    folder = checkpoint.begin(job.folder, step)
    facts = {"step": step, "version": pair.policies[role].version, "longshort": __version__, "setup": job.setup}
    async with console.heartbeat(lambda: f"saving checkpoint-{step}"):
        await pair.policies[role].learner.save(folder / role, folder / "state" / role)
        await asyncio.to_thread(checkpoint.commit, folder, facts | {"trajectory": [asdict(row) for row in rows]})
    chosen, _ = choose(rows, bounds, job.settings.keep_accuracy)
    for number, old in checkpoint.steps(job.folder):
        if number not in (step, chosen.step):
            shutil.rmtree(old)


def _newest(job: Job) -> tuple[dict[str, Any], Path | None]:
    """The manifest and folder of the newest checkpoint, verified and of the same settings; else step 0 and None."""
    if not checkpoint.steps(job.folder):
        return {"step": 0, "trajectory": []}, None
    folder = checkpoint.latest(job.folder)
    facts = checkpoint.verify(folder)
    _refuse_changes(folder, facts["setup"], job.setup)
    return facts, folder


def _refuse_changes(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise LongShortError(
                f"cannot continue with {where}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; restore it, or "
                "choose another output_dir"
            )


def finish(job: Job, bounds: Bounds, rows: Sequence[Measurement]) -> dict[str, Any]:
    """The chosen model's folder, summary.json and the plots."""
    role, keep = job.settings.role, job.settings.keep_accuracy
    chosen, accurate = choose(rows, bounds, keep)
    if not accurate:
        console.say(
            f"! no checkpoint is above {keep:g} of the long bound's accuracy ({keep * bounds.accuracy_long:.3f}); chosen: the most accurate"
        )
    folder, target = (
        job.folder / f"checkpoint-{chosen.step}",
        Path(job.config.output_dir) / "models" / f"mixture-{role}",
    )
    checkpoint.verify(folder)
    shutil.copytree(folder / role, job.folder / ".chosen", dirs_exist_ok=True)
    _replace(job.folder / ".chosen", target)
    summary = {
        "model": str(target),
        "weighting": job.settings.weighting,
        "bounds": asdict(bounds),
        "chosen": asdict(chosen),
        "accurate_enough": accurate,
        "last": asdict(rows[-1]),
        "traces": job.counts,
    }
    _write(job.folder / "summary.json", json.dumps(summary, indent=1))
    draw_trajectory(rows, bounds, chosen, job.folder)
    console.say(
        f"  chosen: step {chosen.step}, dev accuracy {chosen.dev_accuracy:.3f}, {chosen.dev_tokens:.1f} tokens (long bound: "
        f"{bounds.accuracy_long:.3f}, {bounds.tokens_long:.1f}) -> {target}"
    )
    return summary


def draw_trajectory(rows: Sequence[Measurement], bounds: Bounds, chosen: Measurement, folder: Path) -> None:
    """trajectory.png and .svg: sampling ratio and signals above, dev accuracy and tokens with their bounds below."""
    from matplotlib.figure import Figure

    figure, steps = Figure(figsize=(8, 6), layout="constrained"), [row.step for row in rows]
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.step([0, *steps], [EVEN[0], *(min(row.alpha_short, 1 - 1e-9) for row in rows)], "k", where="post")
    upper.set_yscale("logit")
    upper.set_ylabel("α short, sampling ratio")
    right = upper.twinx()
    right.plot(steps, [row.u_short for row in rows], "C3s:", label="u short: too many tokens")
    right.plot(steps, [row.u_long for row in rows], "C2o:", label="u long: too little accuracy")
    right.set_ylabel("signals")
    right.legend(loc="center right")
    for axis, color, name, style, low, high in (
        (lower, "C2", "accuracy", "o-", bounds.accuracy_short, bounds.accuracy_long),
        (lower.twinx(), "C3", "tokens", "s-", bounds.tokens_short, bounds.tokens_long),
    ):
        axis.plot(steps, [getattr(row, f"dev_{name}") for row in rows], color + style)
        axis.set_ylabel(f"dev {name}", color=color)
        axis.axhline(low, color=color, linestyle=":", linewidth=0.8)
        axis.axhline(high, color=color, linestyle="--", linewidth=0.8)
    lower.axvline(chosen.step, color="0.6", linewidth=0.8)
    lower.set_xlabel("optimizer step (vertical: chosen; dashed: long bound; dotted: short bound)")
    for kind in ("png", "svg"):
        figure.savefig(folder / f"trajectory.{kind}")


def _line(row: Measurement, steps: int, remaining_s: float) -> str:
    return (
        f"step {row.step:>{len(str(steps))}}/{steps}  loss {row.train_loss:.3f}  dev accuracy {row.dev_accuracy:.3f}  tokens "
        f"{row.dev_tokens:.1f}  u {row.u_short:.2f}/{row.u_long:.2f}  ratios {row.alpha_short:.2f}/{row.alpha_long:.2f}  "
        f"drawn {row.drawn_short}/{row.drawn_long}  eta {console.duration(remaining_s)}"
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _replace(folder: Path, target: Path) -> None:
    """Move a finished folder to where an older one may be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
