"""The steps of the cold start, in the order in which they run: each reads the earlier steps' lines and writes one line per trace.

Per step there is a coroutine that does the traces still to do, and a function that counts what all lines say, whenever they were written.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from longshort.coldstart.chunking import cut, split_steps
from longshort.coldstart.generators import described, engines, instruct_engine, rollout_generator
from longshort.coldstart.importance import pooled, score, skeleton
from longshort.coldstart.partition import PARTITIONS, divide, messages
from longshort.coldstart.records import OK, Refused, Thought
from longshort.coldstart.rewriting import REWRITERS, Context, Draft, DraftMessage, rewrite
from longshort.coldstart.rollouts import CannotRoll, roll_out
from longshort.coldstart.rows import Unfit, renderer
from longshort.coldstart.traces import unwrapped
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.layout import base_model
from longshort.runs.ledger import Row
from longshort.runs.model_files import identity
from longshort.types import ROLES, Problem

if TYPE_CHECKING:
    from longshort.coldstart.pipeline import Work

AT_ONCE = 64
"""Traces that a step without an engine has in hand at a time."""


async def chunk(work: Work) -> None:
    """Cut each trace into thoughts that, joined, give it back byte for byte."""
    settings = work.coldstart.chunk

    async def one(trace_id: str) -> None:
        trace = work.traces[trace_id]
        known = {"notes": list(trace.notes), "problem": asdict(trace.problem)}
        if trace.outcome != OK:
            work.done(trace_id, trace.outcome, detail=trace.detail, **known)
            return
        try:
            cut_up = await cut(trace.problem.question, trace.response, engine, settings, work.seed(trace_id))
        except Refused as error:
            work.done(trace_id, error.outcome, detail=str(error), **known)
            return
        thoughts, paragraphs = [asdict(thought) for thought in cut_up.thoughts], len(split_steps(trace.response))
        found = {"splitter": cut_up.splitter, "why": cut_up.why, "tries": cut_up.tries, "paragraphs": paragraphs}
        work.done(trace_id, **known, **found, thoughts=thoughts)

    async with instruct_engine(work.config, settings.splitter == "instruct") as engine:
        await work.each(one, 2 * work.coldstart.instruct.engine.max_num_seqs if engine else AT_ONCE)


def chunk_counts(work: Work) -> dict[str, Any]:
    good = work.good()
    return {
        "splitters": dict(Counter(row["splitter"] for row in good)),
        "thoughts_per_trace": spread([len(row["thoughts"]) for row in good]),
        "paragraphs_per_trace": spread([row["paragraphs"] for row in good]),
    }


async def rollouts(work: Work) -> None:
    """Continue every prefix of every trace, all in one stream of requests per engine."""
    settings, generator = work.coldstart.importance, rollout_generator(work.config)
    per_trace = settings.num_rollouts * (
        1 + fmean(len(work.earlier["chunk"][trace]["thoughts"]) for trace in work.todo)
    )
    at_once = settings.num_engines * (2 + round(3 * generator.engine.max_num_seqs / per_trace))
    place = {trace: index for index, trace in enumerate(work.todo)}

    async def one(trace_id: str) -> None:
        row, engine = work.earlier["chunk"][trace_id], pool_of_engines[place[trace_id] % len(pool_of_engines)]
        problem, texts = Problem(**row["problem"]), unwrapped([thought["text"] for thought in row["thoughts"]])
        try:
            found = await roll_out(
                problem, texts, engine, work.pool, settings, tags=work.config.protocol.tags, seed=work.seed(trace_id)
            )
        except CannotRoll as error:
            work.done(trace_id, error.outcome, detail=str(error))
            return
        work.done(trace_id, n=settings.num_rollouts, **asdict(found))

    async with engines(work.config, "coldstart.rollout", generator, settings.num_engines) as pool_of_engines:
        work.restart_clock()
        await work.each(one, at_once)


def rollout_counts(work: Work) -> dict[str, Any]:
    good = work.good()
    return {
        "rollouts": sum(row["n"] * len(row["correct"]) for row in good),
        "generated_tokens": round(sum(row["n"] * sum(row["length"]) for row in good)),
        "cut_off_at_max_tokens": sum(sum(row["cut_off"]) for row in good),
        "ungraded": dict(sum((Counter(row["ungraded"]) for row in good), Counter())),
        "p0": round(fmean(row["correct"][0] / row["n"] for row in good), 4) if good else None,
    }


async def importance(work: Work) -> None:
    """The metric M of every thought, with its bounds; `average: skeleton` adds up over all traces, whoever is still to do."""
    settings, chunks, counted = work.coldstart.importance, work.earlier["chunk"], work.earlier["rollouts"]
    counts = {trace: [(right, counted[trace]["n"]) for right in counted[trace]["correct"]] for trace in work.alive}
    if settings.average == "skeleton":
        texts = {trace: [thought["text"] for thought in chunks[trace]["thoughts"]] for trace in work.alive}
        counts = pooled(
            counts, {trace: skeleton(chunks[trace]["problem"]["question"], texts[trace]) for trace in work.alive}
        )

    async def one(trace: str) -> None:
        scores = score(counted[trace]["tokens"], counts[trace], settings.confidence)
        rows = [{key: round(value, 5) for key, value in asdict(one).items()} for one in scores]
        p0 = round(counts[trace][0][0] / counts[trace][0][1], 5)
        work.done(trace, tokens=counted[trace]["tokens"], p0=p0, n=[n for _, n in counts[trace]], scores=rows)

    await work.each(one, 1)


def importance_counts(work: Work) -> dict[str, Any]:
    gains: dict[str, list[float]] = defaultdict(list)
    for row in work.good():
        p = [row["p0"], *(one["p"] for one in row["scores"])]
        for thought, before, after in zip(work.earlier["chunk"][row["id"]]["thoughts"], p, p[1:], strict=False):
            gains[thought["kind"]].append(after - before)
    return {
        "gain_by_kind": {
            kind: {"n": len(values), "mean": round(fmean(values), 4)} for kind, values in sorted(gains.items())
        }
    }


async def partition(work: Work) -> None:
    """Long or short, per thought; neighbours of one kind become one message."""
    settings, exchanges = work.coldstart.partition, work.config.protocol.max_exchanges
    rule = lookup(PARTITIONS, settings.rule, "coldstart.partition.rule")

    async def one(trace: str) -> None:
        scores = [one["m"] for one in work.earlier["importance"][trace]["scores"]]
        long = divide(rule, scores, settings.num_long, exchanges, random.Random(work.seed(trace)))
        work.done(trace, long=long, messages=[[role, list(indices)] for role, indices in messages(long)])

    await work.each(one, 1)


def partition_counts(work: Work) -> dict[str, Any]:
    rows, scored = work.good(), work.earlier["importance"]
    shares = [
        sum(t for t, kept in zip(scored[r["id"]]["tokens"], r["long"], strict=True) if kept)
        / sum(scored[r["id"]]["tokens"])
        for r in rows
    ]
    found = [
        sum(PARTITIONS["metric"]([one["m"] for one in scored[row["id"]]["scores"]], 0, random.Random(0)))
        for row in rows
    ]
    return {
        "long_share_of_tokens": round(fmean(shares), 4) if shares else None,
        "long_thoughts": sum(sum(row["long"]) for row in rows),
        "long_by_the_metric_without_a_cap": sum(found),
    }


async def rewrite_short(work: Work) -> None:
    """Write the short messages anew and verify that the dialogue still reaches the gold answer."""
    settings = work.coldstart.rewrite
    rewriter = lookup(REWRITERS, settings.rewriter, "coldstart.rewrite.rewriter")

    async def one(trace_id: str) -> None:
        context = Context(settings=settings, engine=engine, pool=work.pool, seed=work.seed(trace_id))
        found = await rewrite(
            draft_of(work.earlier["chunk"][trace_id], work.earlier["partition"][trace_id]), rewriter, context
        )
        work.done(
            trace_id,
            found.outcome,
            detail=found.detail,
            tries=found.tries,
            dialogue=[list(part) for part in found.dialogue],
        )

    async with instruct_engine(work.config, settings.rewriter == "instruct") as engine:
        await work.each(one, 2 * work.coldstart.instruct.engine.max_num_seqs if engine else AT_ONCE)


def rewrite_counts(work: Work) -> dict[str, Any]:
    rows = [row for row in work.ledger.rows.values() if "tries" in row]
    turns = [len(row["dialogue"]) for row in rows if row["dialogue"]]
    return {"messages_per_dialogue": spread(turns), "tries": dict(Counter(row["tries"] for row in rows))}


async def rows(work: Work) -> None:
    """Each role's training row, rendered as rollouts are."""
    from longshort.preflight.checks import load_tokenizer
    from longshort.recipe.schema import with_models
    from longshort.runs.model_files import read_facts

    placed = with_models(work.config, {role: base_model(work.config, role) for role in ROLES})
    facts = {role: read_facts(placed.role(role).model, f"{role}.model") for role in ROLES}
    render = renderer(placed, {role: load_tokenizer(placed, role, facts[role].vocabulary) for role in ROLES})

    async def one(trace: str) -> None:
        dialogue = [tuple(part) for part in work.earlier["rewrite"][trace]["dialogue"]]
        problem = Problem(**work.earlier["chunk"][trace]["problem"])
        out_of_exchanges = random.Random(work.seed(trace)).random() < work.coldstart.final_notice_share
        try:
            samples = await asyncio.to_thread(render.rows, problem, dialogue, out_of_exchanges)
        except Unfit as error:
            work.done(trace, error.outcome, detail=str(error))
            return
        work.done(
            trace,
            **{
                role: {"token_ids": sample.token_ids, "learned": spans(sample.mask)} for role, sample in samples.items()
            },
        )

    await work.each(one, 1)


def row_counts(work: Work) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for row in work.good():
        for role in ROLES:
            counts[f"{role}_tokens"] += len(row[role]["token_ids"])
            counts[f"{role}_learned_tokens"] += sum(stop - start for start, stop in row[role]["learned"])
    return dict(counts)


def draft_of(chunks: Row, parts: Row) -> Draft:
    """A partitioned trace, its thoughts put into messages, without the `<think> … </think>` around the whole."""
    texts = unwrapped([thought["text"] for thought in chunks["thoughts"]])
    thoughts = [
        Thought(text=text, kind=thought["kind"]) for text, thought in zip(texts, chunks["thoughts"], strict=True)
    ]
    drafted = tuple(
        DraftMessage(role=role, thoughts=tuple(thoughts[i] for i in indices)) for role, indices in parts["messages"]
    )
    return Draft(problem=Problem(**chunks["problem"]), messages=drafted)


def spans(mask: Iterable[int]) -> list[tuple[int, int]]:
    """Where the ones of a mask stand: [start, stop) of each run. (0, 1, 1, 0, 1) -> [(1, 3), (4, 5)]"""
    found: list[tuple[int, int]] = []
    for index, bit in enumerate(mask):
        if bit and found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        elif bit:
            found.append((index, index + 1))
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median, mean and largest; empty for no value."""
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": round(fmean(values), 2), "max": max(values)}


Settings = dict[str, Any]


def chunk_settings(config: LongShortConfig) -> Settings:
    section = config.coldstart
    asked = (
        {"instruct": described(section.instruct, "coldstart.instruct")} if section.chunk.splitter == "instruct" else {}
    )
    return {
        "traces": section.traces,
        "num_traces": section.num_traces,
        "seed": config.seed,
        **section.chunk.model_dump(),
        **asked,
    }


def rollout_settings(config: LongShortConfig) -> Settings:
    kept = config.coldstart.importance.model_dump(exclude={"confidence", "average", "num_engines"})
    return (
        kept
        | {"seed": config.seed, "tags": config.protocol.tags}
        | described(rollout_generator(config), "coldstart.rollout")
    )


def importance_settings(config: LongShortConfig) -> Settings:
    return config.coldstart.importance.model_dump(include={"confidence", "average"})


def partition_settings(config: LongShortConfig) -> Settings:
    return config.coldstart.partition.model_dump() | {
        "seed": config.seed,
        "max_exchanges": config.protocol.max_exchanges,
    }


def rewrite_settings(config: LongShortConfig) -> Settings:
    section = config.coldstart
    asked = (
        {"instruct": described(section.instruct, "coldstart.instruct")}
        if section.rewrite.rewriter == "instruct"
        else {}
    )
    return section.rewrite.model_dump() | {"seed": config.seed} | asked


def row_settings(config: LongShortConfig) -> Settings:
    roles = {role: config.role(role).model_dump(include={"turn_tokens", "instructions"}) for role in ROLES}
    models = {role: identity(base_model(config, role), f"{role}.model") for role in ROLES}
    limits = {role: [config.role(role).engine.max_model_len, config.role(role).sft.max_length] for role in ROLES}
    shown = {"seed": config.seed, "final_notice_share": config.coldstart.final_notice_share}
    return {"protocol": config.protocol.model_dump(), "roles": roles, "models": models, "limits": limits} | shown
