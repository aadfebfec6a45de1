"""`thoughts.html`, which shows what `longshort coldstart` did: counts of every step, figures, and every trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from longshort.coldstart.records import CONTINUE, DROPPED_BEFORE, ChunkLine, ImportanceLine, PartitionLine, RolloutLine
from longshort.report import page
from longshort.report.thoughts_figures import loss_figure, rollout_figures
from longshort.report.thoughts_files import ColdStartFiles, StepFiles, load

EXAMPLES = 3
"""Dropped traces of every reason that the table names and that are always among those embedded."""


def write_page(folder: Path, *, limit: int = 300) -> Path:
    """Write `folder`/thoughts.html about the steps' files in `folder`, with at most `limit` traces; return its path.

    What is missing or damaged is said on the page. Raises LongShortError for a folder that does not exist.
    """
    files = load(folder)
    chosen = _chosen(files, limit)
    manifests = {name: step.manifest for name, step in files.steps.items() if step.manifest}
    rollouts = [line for line in files.steps["rollouts"].lines.values() if isinstance(line, RolloutLine)]
    return page.write(
        folder / "thoughts.html",
        "thoughts.html.j2",
        scripts=[page.script("base.js", "thoughts.js", "viewer.js")] if chosen else [],
        name=folder.resolve().parent.name,
        version=next((manifest.longshort for manifest in manifests.values()), ""),
        files=files,
        settings={name: manifest.settings for name, manifest in manifests.items() if manifest.settings},
        funnel=[_funnel_row(step) for step in files.steps.values()],
        most=max(len(files.traces), 1),
        examples=EXAMPLES,
        loss=loss_figure(files.sft),
        figures=rollout_figures([line for line in rollouts if line.continues]),
        index=[_entry(files, trace) for trace in chosen],
        items=(page.embed(_item(files, trace)) for trace in chosen),
        total=len(files.traces),
    )


def _funnel_row(step: StepFiles) -> dict[str, Any]:
    """Return how many traces went on after a step, by outcome, and what it counted besides."""
    on = {outcome: count for outcome, count in step.outcomes.items() if outcome in CONTINUE}
    facts: dict[str, Any] = {}
    if step.manifest:
        counts = step.manifest.counts
        gains = {f"gain in P of {kind}, {gain.n:,} thoughts": gain.mean for kind, gain in counts.gain_by_kind.items()}
        facts = (counts.model_extra or {}) | counts.notes | gains
    return {"step": step, "on": on, "facts": {page.words(name): value for name, value in facts.items()}}


def _chosen(files: ColdStartFiles, limit: int) -> list[str]:
    """Return the traces to embed, in their order: the first EXAMPLES of every outcome before all others."""
    seen: Counter[tuple[str, str]] = Counter()
    first, others = [], []
    for trace in files.traces:
        fate = files.fate(trace)
        seen[fate] += 1
        (first if seen[fate] <= EXAMPLES else others).append(trace)
    kept = {*first, *others[: max(limit - len(first), 0)]} if limit else set()
    return [trace for trace in files.traces if trace in kept]


def _entry(files: ColdStartFiles, trace: str) -> dict[str, Any]:
    """Return what the list shows and filters by; `share` is the long percentage of the tokens."""
    step, outcome = files.fate(trace)
    chunk, tokens = files.line(trace, ChunkLine), files.line(trace, ImportanceLine).tokens
    long = files.line(trace, PartitionLine).long
    long_tokens = sum(count for count, kept in zip(tokens, long, strict=False) if kept)
    return {
        "key": trace,
        "id": trace,
        "outcome": f"{step}: {outcome}" if step else outcome,
        "dropped": bool(step),
        "question": chunk.problem.question[:160],
        "thoughts": len(chunk.thoughts),
        "share": round(100 * long_tokens / sum(tokens), 1) if long and any(tokens) else None,
    }


def _item(files: ColdStartFiles, trace: str) -> dict[str, Any]:
    """Return everything that the steps say about a trace, but for its training rows."""
    return {
        name: step.lines[trace].model_dump(mode="json", exclude_unset=True, exclude={"id"})
        for name, step in files.steps.items()
        if name != "rows" and trace in step.lines and step.lines[trace].outcome != DROPPED_BEFORE
    }
