"""The steps of the cold start, in the order in which they run: each reads the earlier steps' lines and writes one line
per trace.

A step is one entry of `STEPS`: its settings (what its result depends on), a coroutine that makes the lines still
missing, and a function that counts what all lines say. The algorithms are in the modules named like the steps, the
lines in longshort/coldstart/records.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from longshort.coldstart.chunking import cut, split_steps
from longshort.coldstart.generators import described, engines, instruct_engine, rollout_generator
from longshort.coldstart.importance import pooled, score, skeleton
from longshort.coldstart.partition import PARTITIONS, divide, messages
from longshort.coldstart.pipeline import ColdStartStep, StepWork, section_of
from longshort.coldstart.records import (
    DROPPED_BEFORE,
    OK,
    ChunkLine,
    DialogueDraft,
    DraftMessage,
    ImportanceLine,
    PartitionLine,
    Refused,
    RewriteLine,
    RolloutLine,
    RowsLine,
    Thought,
)
from longshort.coldstart.rewriting import REWRITERS, RewriteContext, rewrite
from longshort.coldstart.rollouts import roll_out
from longshort.coldstart.rows import Renderer, role_row
from longshort.coldstart.traces import unwrapped
from longshort.preflight.checks import load_tokenizer
from longshort.recipe.schema import LongShortConfig, lookup, with_models
from longshort.runs.layout import base_model
from longshort.runs.model_files import identity, read_facts
from longshort.types import LONG, ROLES, SHORT

AT_ONCE = 64
"""Traces side by side in a step without an engine."""
Settings = dict[str, Any]


def chunk_settings(config: LongShortConfig) -> Settings:
    section = section_of(config)
    source = {"traces": section.traces, "num_traces": section.num_traces, "seed": config.seed}
    return source | section.chunk.model_dump() | _instruct_settings(config, section.chunk.splitter)


async def chunk(work: StepWork) -> None:
    """Cut each trace into thoughts that, joined, are the trace byte for byte."""
    settings = work.section.chunk

    async def one(trace_id: str) -> ChunkLine:
        trace = work.traces[trace_id]
        source: dict[str, Any] = {"id": trace_id, "notes": trace.notes, "problem": trace.problem}
        try:
            if trace.outcome != OK:
                raise Refused(trace.outcome, trace.detail)
            chunks = await cut(trace.problem.question, trace.response, engine, settings, work.seed(trace_id))
        except Refused as error:
            return ChunkLine(**source, outcome=error.outcome, detail=str(error))
        return ChunkLine(
            **source,
            outcome=OK,
            splitter=chunks.splitter,
            why=chunks.why,
            tries=chunks.tries,
            paragraphs=len(split_steps(trace.response)),
            thoughts=chunks.thoughts,
        )

    async with instruct_engine(work.config, settings.splitter == "instruct") as engine:
        await work.each(one, 2 * work.section.instruct.engine.max_num_seqs if engine else AT_ONCE)


def chunk_counts(work: StepWork) -> dict[str, Any]:
    good = work.good(ChunkLine)
    return {
        "splitters": dict(Counter(line.splitter for line in good)),
        "thoughts_per_trace": spread([len(line.thoughts) for line in good]),
        "paragraphs_per_trace": spread([line.paragraphs for line in good]),
    }


def rollout_settings(config: LongShortConfig) -> Settings:
    kept = section_of(config).importance.model_dump(exclude={"confidence", "average", "num_engines"})
    about = {"seed": config.seed, "tags": config.protocol.tags}
    return kept | about | described(rollout_generator(config), "coldstart.rollout")


async def rollouts(work: StepWork) -> None:
    """Continue every prefix of every trace, in one stream of requests per engine."""
    settings, generator, chunks = work.section.importance, rollout_generator(work.config), work.lines(ChunkLine)
    per_trace = settings.num_rollouts * (1 + fmean(len(chunks[trace].thoughts) for trace in work.todo))
    at_once = settings.num_engines * (2 + round(3 * generator.engine.max_num_seqs / per_trace))
    place = {trace: index for index, trace in enumerate(work.todo)}

    async def one(trace: str) -> RolloutLine:
        engine, tags = started[place[trace] % len(started)], work.config.protocol.tags
        return await roll_out(chunks[trace], engine, work.pool, settings, tags=tags, seed=work.seed(trace))

    async with engines(work.config, "coldstart.rollout", generator, settings.num_engines) as started:
        work.restart_clock()
        await work.each(one, at_once)


def rollout_counts(work: StepWork) -> dict[str, Any]:
    good = work.good(RolloutLine)
    return {
        "rollouts": sum(line.n * len(line.correct) for line in good),
        "generated_tokens": round(sum(line.n * sum(line.length) for line in good)),
        "cut_off_at_max_tokens": sum(sum(line.cut_off) for line in good),
        "ungraded": dict(sum((Counter(line.ungraded) for line in good), Counter())),
        "p0": round(fmean(line.correct[0] / line.n for line in good), 4) if good else None,
    }


def importance_settings(config: LongShortConfig) -> Settings:
    return section_of(config).importance.model_dump(include={"confidence", "average"})


async def importance(work: StepWork) -> None:
    """Score every thought with M and its bounds; `average: skeleton` pools over all traces, scored before or not."""
    settings, chunks, rolled = work.section.importance, work.lines(ChunkLine), work.lines(RolloutLine)
    counts = {trace: [(right, rolled[trace].n) for right in rolled[trace].correct] for trace in work.alive}
    if settings.average == "skeleton":
        texts = {trace: [thought.text for thought in chunks[trace].thoughts] for trace in work.alive}
        keys = {trace: skeleton(chunks[trace].problem.question, texts[trace]) for trace in work.alive}
        counts = pooled(counts, keys)

    async def one(trace: str) -> ImportanceLine:
        tokens, prefixes = rolled[trace].tokens, counts[trace]
        scores = tuple(each.rounded() for each in score(tokens, prefixes, settings.confidence))
        p0, n = round(prefixes[0][0] / prefixes[0][1], 5), tuple(n for _, n in prefixes)
        return ImportanceLine(id=trace, outcome=OK, tokens=tokens, p0=p0, n=n, scores=scores)

    await work.each(one, 1)


def importance_counts(work: StepWork) -> dict[str, Any]:
    gains: dict[str, list[float]] = defaultdict(list)
    for line in work.good(ImportanceLine):
        p = [line.p0, *(each.p for each in line.scores)]
        for thought, before, after in zip(work.lines(ChunkLine)[line.id].thoughts, p, p[1:], strict=False):
            gains[thought.kind].append(after - before)
    means = {kind: {"n": len(values), "mean": round(fmean(values), 4)} for kind, values in sorted(gains.items())}
    return {"gain_by_kind": means}


def partition_settings(config: LongShortConfig) -> Settings:
    about = {"seed": config.seed, "max_exchanges": config.protocol.max_exchanges}
    return section_of(config).partition.model_dump() | about


async def partition(work: StepWork) -> None:
    """Decide per thought whether it is long or short, and join neighbours of one kind to a message."""
    settings, exchanges = work.section.partition, work.config.protocol.max_exchanges
    rule = lookup(PARTITIONS, settings.rule, "coldstart.partition.rule")

    async def one(trace: str) -> PartitionLine:
        scores = [each.m for each in work.lines(ImportanceLine)[trace].scores]
        long = divide(rule, scores, settings.num_long, exchanges, random.Random(work.seed(trace)))
        return PartitionLine(id=trace, outcome=OK, long=tuple(long), messages=tuple(messages(long)))

    await work.each(one, 1)


def partition_counts(work: StepWork) -> dict[str, Any]:
    lines, scored, shares, uncapped = work.good(PartitionLine), work.lines(ImportanceLine), [], 0
    for line in lines:
        tokens, scores = scored[line.id].tokens, [each.m for each in scored[line.id].scores]
        shares.append(sum(count for count, long in zip(tokens, line.long, strict=True) if long) / sum(tokens))
        uncapped += sum(PARTITIONS["metric"](scores, 0, random.Random(0)))
    return {
        "long_share_of_tokens": round(fmean(shares), 4) if shares else None,
        "long_thoughts": sum(sum(line.long) for line in lines),
        "long_by_the_metric_without_a_cap": uncapped,
    }


def rewrite_settings(config: LongShortConfig) -> Settings:
    settings = section_of(config).rewrite
    return settings.model_dump() | {"seed": config.seed} | _instruct_settings(config, settings.rewriter)


async def rewrite_short(work: StepWork) -> None:
    """Write the short messages anew and verify that the dialogue still reaches the gold answer."""
    settings = work.section.rewrite
    rewriter = lookup(REWRITERS, settings.rewriter, "coldstart.rewrite.rewriter")

    async def one(trace: str) -> RewriteLine:
        draft = draft_of(work.lines(ChunkLine)[trace], work.lines(PartitionLine)[trace])
        context = RewriteContext(settings=settings, engine=engine, pool=work.pool, seed=work.seed(trace))
        return await rewrite(draft, rewriter, context)

    async with instruct_engine(work.config, settings.rewriter == "instruct") as engine:
        await work.each(one, 2 * work.section.instruct.engine.max_num_seqs if engine else AT_ONCE)


def rewrite_counts(work: StepWork) -> dict[str, Any]:
    lines = [line for line in work.written(RewriteLine) if line.outcome != DROPPED_BEFORE]
    turns = [len(line.dialogue) for line in lines if line.dialogue]
    return {"messages_per_dialogue": spread(turns), "tries": dict(Counter(line.tries for line in lines))}


def row_settings(config: LongShortConfig) -> Settings:
    roles = {role: config.role(role).model_dump(include={"turn_tokens", "instructions"}) for role in ROLES}
    models = {role: identity(base_model(config, role), f"{role}.model") for role in ROLES}
    limits = {role: [config.role(role).engine.max_model_len, config.role(role).sft.max_length] for role in ROLES}
    shown = {"seed": config.seed, "final_notice_share": section_of(config).final_notice_share}
    return {"protocol": config.protocol.model_dump(), "roles": roles, "models": models, "limits": limits} | shown


async def rows(work: StepWork) -> None:
    """Render each role's training row as rollouts are rendered."""
    placed = with_models(work.config, {role: base_model(work.config, role) for role in ROLES})
    facts = {role: read_facts(placed.role(role).model, f"{role}.model") for role in ROLES}
    render = Renderer(placed, {role: load_tokenizer(placed, role, facts[role].vocabulary) for role in ROLES})

    async def one(trace: str) -> RowsLine:
        problem, dialogue = work.lines(ChunkLine)[trace].problem, work.lines(RewriteLine)[trace].dialogue
        out_of_exchanges = random.Random(work.seed(trace)).random() < work.section.final_notice_share
        samples = await asyncio.to_thread(render.rows, problem, dialogue, out_of_exchanges)
        return RowsLine(id=trace, outcome=OK, long=role_row(samples[LONG]), short=role_row(samples[SHORT]))

    await work.each(one, 1)


def row_counts(work: StepWork) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for line in work.good(RowsLine):
        for role in ROLES:
            counts[f"{role}_tokens"] += len(line.of(role).token_ids)
            counts[f"{role}_learned_tokens"] += sum(stop - start for start, stop in line.of(role).learned)
    return dict(counts)


def draft_of(chunks: ChunkLine, parts: PartitionLine) -> DialogueDraft:
    """Return a partitioned trace as messages, without the `<think> … </think>` around the whole."""
    texts = unwrapped([thought.text for thought in chunks.thoughts])
    thoughts = [Thought(text=text, kind=cut.kind) for text, cut in zip(texts, chunks.thoughts, strict=True)]
    drafted = [
        DraftMessage(role=role, thoughts=tuple(thoughts[i] for i in numbers)) for role, numbers in parts.messages
    ]
    return DialogueDraft(trace=chunks.id, problem=chunks.problem, messages=tuple(drafted))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest, median, mean and largest value; empty for no value."""
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": round(fmean(values), 2), "max": max(values)}


def _instruct_settings(config: LongShortConfig, chosen: str) -> Settings:
    """Return what the instruct model's answers depend on, where the step asks it."""
    return {"instruct": described(section_of(config).instruct, "coldstart.instruct")} if chosen == "instruct" else {}


STEPS = {
    step.name: step
    for step in (
        ColdStartStep(ChunkLine, (), chunk_settings, chunk, chunk_counts),
        ColdStartStep(RolloutLine, (ChunkLine,), rollout_settings, rollouts, rollout_counts),
        ColdStartStep(ImportanceLine, (ChunkLine, RolloutLine), importance_settings, importance, importance_counts),
        ColdStartStep(PartitionLine, (ImportanceLine,), partition_settings, partition, partition_counts),
        ColdStartStep(RewriteLine, (ChunkLine, PartitionLine), rewrite_settings, rewrite_short, rewrite_counts),
        ColdStartStep(RowsLine, (ChunkLine, RewriteLine), row_settings, rows, row_counts),
    )
}
