"""The page that shows what `longshort coldstart` did to a run: counts of every step, the paper's figures 2 and 3, and every trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from longshort.coldstart.records import CONTINUE, DROPPED_BEFORE
from longshort.report import curves, page
from longshort.report.page import told
from longshort.report.thoughts_files import Chunk, Files, Importance, Partition, Rollouts, load
from longshort.types import ROLES

FEW = 3
"""Dropped traces of every outcome that are told in the table and are always among those embedded."""
NOTES = {
    "crlf": "carriage returns",
    "non_ascii": "not only ASCII",
    "role_tags": "role tags in the text",
    "repeated_problem": "problem seen before",
}
"""What the names of the notes mean."""
IN_PANEL = {"traces", *(f"{role}_{what}" for role in ROLES for what in ("tokens", "learned_tokens"))}
"""Counts that stand elsewhere than in the column "Counted"."""


def write_page(folder: Path, *, limit: int = 300) -> Path:
    """Write `folder`/thoughts.html from the steps' files in `folder`, with at most `limit` traces to look at; returns its path.

    What is missing or damaged is said on the page. Raises LongShortError for a folder that does not exist.
    """
    files = load(folder)
    traces = files.traces()
    chosen = _chosen(files, traces, limit)
    return page.write(
        folder / "thoughts.html",
        "thoughts.html.j2",
        styles=[page.asset("base.css"), page.asset("thoughts.css")],
        scripts=[page.asset("base.js") + page.asset("thoughts.js")],
        name=folder.resolve().parent.name,
        made=_made(folder),
        version=next((step.manifest.longshort for step in files.steps.values() if step.manifest), ""),
        files=files,
        settings=_settings(files),
        all_settings={name: step.manifest.settings for name, step in files.steps.items() if step.manifest},
        funnel=_funnel(files),
        notes_meaning=NOTES,
        roles=ROLES,
        tokens=_tokens_per_role(files),
        loss=_loss(files),
        figures=_figures(files),
        explained=_explained(files),
        index=[_entry(files, trace) for trace in chosen],
        traces=(_embedded(files, trace) for trace in chosen),
        total=len(traces),
    )


def _made(folder: Path) -> str:
    """When the newest manifest was written, in UTC; empty when there is none."""
    times = [
        path.stat().st_mtime for pattern in ("*.manifest.json", "sft.*/manifest.json") for path in folder.glob(pattern)
    ]
    return f"{datetime.fromtimestamp(max(times), UTC):%-d %B %Y, %H:%M} UTC" if times else ""


def _settings(files: Files) -> dict[str, str]:
    """The settings that matter, those of steps that have run."""
    of, sft = files.setting, files.sft
    rollouts, exchanges, long = (
        of("rollouts", "num_rollouts"),
        of("partition", "max_exchanges"),
        of("partition", "num_long"),
    )
    instruct = of("rewrite", "instruct") or of("chunk", "instruct")
    partition = [f"{exchanges} exchanges at most"] * bool(exchanges) + [f"{long} long thoughts"] * bool(long)
    values = {
        "Traces": of("chunk", "traces"),
        "Splitter": of("chunk", "splitter"),
        "Rollout model": of("rollouts", "model"),
        "Rollouts": rollouts and f"N = {rollouts} per prefix, up to {told(of('rollouts', 'max_tokens'))} tokens",
        "Sampling": rollouts
        and f"temperature {told(of('rollouts', 'temperature'))}, top-p {told(of('rollouts', 'top_p'))}",
        "P averaged over": {"none": "nothing: each prefix alone", "skeleton": "skeletons"}.get(
            str(of("importance", "average"))
        ),
        "Partition": of("partition", "rule") and ", ".join([str(of("partition", "rule")), *partition]),
        "Rewriter": of("rewrite", "rewriter"),
        "Instruct model": instruct.get("model") if isinstance(instruct, Mapping) else None,
    }
    bases = {f"Base model, {role}": sft[role].base for role in ROLES if role in sft}
    return {label: str(value) for label, value in (values | bases).items() if value}


def _funnel(files: Files) -> list[dict[str, Any]]:
    """One row per step: how many traces came in, went on and were dropped, with the first few of every reason, and what was counted."""
    everything = max((sum(step.outcomes.values()) for step in files.steps.values()), default=0)
    rows = []
    for step in files.steps.values():
        outcomes, manifest = step.outcomes, step.manifest
        on = {name: outcomes[name] for name in CONTINUE if name in outcomes}
        extra = (manifest.counts.model_extra or {}) if manifest else {}
        rows.append(
            {
                "step": step,
                "ran": bool(outcomes) or manifest is not None,
                "entered": sum(outcomes.values()) - outcomes.get(DROPPED_BEFORE, 0),
                "through": sum(on.values()),
                "on": on,
                "examples": {
                    reason: [line for line in step.lines.values() if line.outcome == reason][:FEW]
                    for reason in step.drops
                },
                "everything": max(everything, 1),
                "facts": {key: value for key, value in extra.items() if key not in IN_PANEL},
            }
        )
    return rows


def _tokens_per_role(files: Files) -> dict[str, tuple[int, int]]:
    """(tokens of the training rows, those that are learned) per role, once the rows are made."""
    manifest = files.steps["rows"].manifest
    counted = (manifest.counts.model_extra or {}) if manifest else {}
    pairs = {role: (counted.get(f"{role}_tokens"), counted.get(f"{role}_learned_tokens")) for role in ROLES}
    return {role: pair for role, pair in pairs.items() if all(isinstance(count, int) for count in pair)}


def _loss(files: Files) -> Markup | None:
    """Both roles' loss curves."""
    series = {
        role: curves.losses(sft.losses, sft.steps or len(sft.losses)) for role, sft in files.sft.items() if sft.losses
    }
    if not series:
        return None
    longest = max(point.x for points in series.values() for point in points)
    return curves.draw(
        "loss", series, title="Loss of fine-tuning", x_label="optimizer step", y_label="loss per token", x_top=longest
    )


def _figures(files: Files) -> list[dict[str, Any]]:
    """Accuracy and length of the continuations, over k and over k / n: title, drawing and numbers of each."""
    good = [row for row in files.all(Rollouts) if _fits(row)]
    if not good:
        return []
    accuracy = [[right / row.n for right in row.correct] for row in good]
    length = [row.length for row in good]
    most = max(len(row.tokens) for row in good)
    places = (
        ("number of thoughts kept", "thoughts kept, k", curves.by_thoughts_kept, most),
        ("relative position", "relative position, k / n", curves.by_position, 1),
    )
    made = []
    for place, x_label, grouped, x_top in places:
        for what, y_label, points, y_top in (
            ("Accuracy", "P, share of right answers", curves.shares(grouped(accuracy)), 1.0),
            ("Length", "tokens generated, mean", curves.means(grouped(length)), None),
        ):
            title = f"{what} over {place}"
            axes = {"x_label": x_label, "y_label": y_label, "x_top": x_top, "y_top": y_top}
            drawing = curves.draw(f"figure-{len(made)}", {"plain": points}, title=title, **axes)
            made.append({"title": title, "x_label": x_label, "drawing": drawing, "points": points})
    return made


def _fits(row: Rollouts) -> bool:
    """Whether the row has at least one thought, and per prefix a length and a count of at most n."""
    prefixes = len(row.tokens) + 1
    return (
        prefixes > 1
        and len(row.correct) == len(row.length) == prefixes
        and all(0 <= right <= row.n for right in row.correct)
        and row.n > 0
    )


def _explained(files: Files) -> dict[str, Any]:
    """The numbers in the page's explanation: N, the confidence, and the widest bound among the thoughts scored."""
    lines = files.all(Importance)
    return {
        "n": files.setting("rollouts", "num_rollouts"),
        "confidence": files.setting("importance", "confidence"),
        "skeleton": files.setting("importance", "average") == "skeleton",
        "widest": max((score.loose_bound for line in lines for score in line.scores), default=None),
        "pooled": max((n for line in lines for n in line.n), default=None),
    }


def _chosen(files: Files, traces: Sequence[str], limit: int) -> list[str]:
    """The traces to embed, in their order: the first FEW of every outcome before all others."""
    seen: dict[tuple[str, str], int] = {}
    rank = {}
    for trace in traces:
        fate = files.fate(trace)
        seen[fate] = seen.get(fate, 0) + 1
        rank[trace] = seen[fate] if seen[fate] <= FEW else FEW + 1
    first = sorted(traces, key=lambda trace: rank[trace])[: max(limit, 0)]
    kept = set(first)
    return [trace for trace in traces if trace in kept]


def _entry(files: Files, trace: str) -> dict[str, Any]:
    """What the list of traces shows and filters by: long share of the tokens is null before the partition."""
    step, outcome = files.fate(trace)
    chunk, tokens, long = (
        files.line(trace, Chunk),
        files.line(trace, Importance).tokens,
        files.line(trace, Partition).long,
    )
    share = None
    if sum(tokens) and len(long) == len(tokens):
        share = round(sum(count for count, kept in zip(tokens, long, strict=True) if kept) / sum(tokens), 4)
    return {
        "id": trace,
        "step": step,
        "outcome": outcome,
        "question": chunk.problem.question[:160],
        "thoughts": len(chunk.thoughts),
        "share": share,
    }


def _embedded(files: Files, trace: str) -> dict[str, Any]:
    """All that the steps say about a trace."""
    return {
        name: step.lines[trace].model_dump(exclude_defaults=True, exclude={"id"})
        for name, step in files.steps.items()
        if trace in step.lines and step.lines[trace].outcome != DROPPED_BEFORE
    }
