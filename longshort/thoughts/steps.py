"""The steps of the cold start, in the order in which they run: each reads the earlier steps' lines and writes one line per trace."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from longshort.config import LongShortConfig, lookup
from longshort.thoughts.chunking import OneParagraph, cut, split_steps
from longshort.thoughts.generators import base_model, engines, identity, instruct_engine, rollout_generator
from longshort.thoughts.importance import pooled, score, skeleton
from longshort.thoughts.ledger import Row
from longshort.thoughts.partition import PARTITIONS, capped, messages
from longshort.thoughts.records import OK, Thought
from longshort.thoughts.rewriting import REWRITERS, Context, Draft, DraftMessage, rewrite, seed_of
from longshort.thoughts.rollouts import DoesNotFit, roll_out
from longshort.thoughts.rows import Unfit, renderer
from longshort.types import ROLES, Problem

if TYPE_CHECKING:
    from longshort.thoughts.pipeline import Work

AT_ONCE = 64
"""Traces that a step without engine, or with one question per trace, has in hand at a time."""


async def chunk(work: Work) -> dict[str, Any]:
    """Cut each trace into thoughts that, joined, give it back byte for byte."""
    settings = work.coldstart.chunk
    paragraphs = []

    async def one(trace_id: str) -> None:
        trace = work.traces[trace_id]
        known = {"notes": list(trace.notes), "problem": asdict(trace.problem)}
        if trace.outcome != OK:
            work.done(trace_id, trace.outcome, detail=trace.detail, **known)
            return
        try:
            cut_up = await cut(trace.problem.question, trace.response, engine, settings, work.seed(trace_id))
        except OneParagraph as error:
            work.done(trace_id, "one_paragraph", detail=str(error), **known)
            return
        paragraphs.append(len(split_steps(trace.response)))
        thoughts = [asdict(thought) for thought in cut_up.thoughts]
        work.done(trace_id, **known, splitter=cut_up.splitter, why=cut_up.why, tries=cut_up.tries, thoughts=thoughts)

    async with instruct_engine(work.config, settings.splitter == "instruct") as engine:
        await work.each(one, AT_ONCE)
    good = [row for row in work.ledger.rows.values() if row["outcome"] == OK]
    return {
        "splitters": dict(Counter(row["splitter"] for row in good)),
        "thoughts_per_trace": spread([len(row["thoughts"]) for row in good]),
        "paragraphs_per_trace": spread(paragraphs),
    }


async def rollouts(work: Work) -> dict[str, Any]:
    """Continue every prefix of every trace, all in one stream of requests per engine."""
    settings, generator = work.coldstart.importance, rollout_generator(work.config)
    per_trace = settings.num_rollouts * (1 + fmean(len(work.earlier["chunk"][trace]["thoughts"]) for trace in work.todo))
    at_once = settings.num_engines * (2 + round(3 * generator.engine.max_num_seqs / per_trace))
    place = {trace: index for index, trace in enumerate(work.todo)}

    async def one(trace_id: str) -> None:
        row = work.earlier["chunk"][trace_id]
        engine = pool_of_engines[place[trace_id] % len(pool_of_engines)]
        problem, texts = Problem(**row["problem"]), [thought["text"] for thought in row["thoughts"]]
        try:
            found = await roll_out(problem, texts, engine, work.pool, settings, tags=work.config.protocol.tags, seed=work.seed(trace_id))
        except DoesNotFit as error:
            work.done(trace_id, "context", detail=str(error))
            return
        work.done(trace_id, n=settings.num_rollouts, **{key: list(value) for key, value in asdict(found).items()})

    async with engines(work.config, "coldstart.rollout", generator, settings.num_engines) as pool_of_engines:
        work.restart_clock()
        await work.each(one, at_once)
    good = [row for row in work.ledger.rows.values() if row["outcome"] == OK]
    return {
        "rollouts": sum(row["n"] * len(row["correct"]) for row in good),
        "generated_tokens": round(sum(row["n"] * sum(row["length"]) for row in good)),
        "p0": fmean(row["correct"][0] / row["n"] for row in good) if good else None,
    }


async def importance(work: Work) -> dict[str, Any]:
    """The metric M of every thought, with its bounds."""
    settings, chunks, counted = work.coldstart.importance, work.earlier["chunk"], work.earlier["rollouts"]
    counts = {trace: [(right, counted[trace]["n"]) for right in counted[trace]["correct"]] for trace in work.todo}
    if settings.average == "skeleton":
        keys = {
            trace: skeleton(chunks[trace]["problem"]["question"], [thought["text"] for thought in chunks[trace]["thoughts"]])
            for trace in work.todo
        }
        counts = pooled(counts, keys)
    gains: dict[str, list[float]] = defaultdict(list)
    for trace in work.todo:
        tokens = counted[trace]["tokens"]
        p0 = counts[trace][0][0] / counts[trace][0][1]
        scores = score(tokens, counts[trace], settings.confidence)
        for thought, before, after in zip(chunks[trace]["thoughts"], [p0, *(s.p for s in scores)], scores, strict=False):
            gains[thought["kind"]].append(after.p - before)
        rows = [{key: round(value, 5) for key, value in asdict(one).items()} for one in scores]
        work.done(trace, tokens=tokens, p0=round(p0, 5), n=[n for _, n in counts[trace]], scores=rows)
    return {"gain_by_kind": {kind: {"n": len(values), "mean": round(fmean(values), 4)} for kind, values in sorted(gains.items())}}


async def partition(work: Work) -> dict[str, Any]:
    """Long or short, per thought; neighbours of one kind become one message."""
    settings, exchanges = work.coldstart.partition, work.config.protocol.max_exchanges
    rule = lookup(PARTITIONS, settings.rule, "coldstart.partition.rule")
    shares, given_up = [], 0
    for trace in work.todo:
        row = work.earlier["importance"][trace]
        scores = [one["m"] for one in row["scores"]]
        wanted = rule(scores, settings.num_long, random.Random(work.seed(trace)))
        long = capped(wanted, scores, exchanges)
        given_up += sum(wanted) - sum(long)
        shares.append(sum(tokens for tokens, kept in zip(row["tokens"], long, strict=True) if kept) / sum(row["tokens"]))
        work.done(trace, long=long, messages=[[role, list(indices)] for role, indices in messages(long)])
    return {
        "long_share_of_tokens": round(fmean(shares), 4) if shares else None,
        "long_thoughts": sum(sum(row.get("long", ())) for row in work.ledger.rows.values()),
        "given_up_for_max_exchanges": given_up,
    }


async def rewrite_short(work: Work) -> dict[str, Any]:
    """Write the short messages anew and verify that the dialogue still reaches the gold answer."""
    settings = work.coldstart.rewrite
    rewriter = lookup(REWRITERS, settings.rewriter, "coldstart.rewrite.rewriter")

    async def one(trace_id: str) -> None:
        row = work.earlier["chunk"][trace_id]
        context = Context(settings=settings, engine=engine, pool=work.pool, seed=seed_of(work.config.seed, trace_id))
        found = await rewrite(draft_of(row, work.earlier["partition"][trace_id]), rewriter, context)
        work.done(trace_id, found.outcome, detail=found.detail, tries=found.tries, dialogue=[list(part) for part in found.dialogue])

    async with instruct_engine(work.config, settings.rewriter == "instruct") as engine:
        await work.each(one, AT_ONCE)
    turns = [len(row["dialogue"]) for row in work.ledger.rows.values() if row.get("dialogue")]
    return {"messages_per_dialogue": spread(turns), "tries": dict(Counter(row.get("tries", 0) for row in work.ledger.rows.values()))}


async def rows(work: Work) -> dict[str, Any]:
    """Each role's training row, rendered as rollouts are."""
    from longshort.model_files import read_facts
    from longshort.plan import load_tokenizer
    from longshort.stages import with_models

    placed = with_models(work.config, {role: base_model(work.config, role) for role in ROLES})
    facts = {role: read_facts(placed.role(role).model, f"{role}.model") for role in ROLES}
    render = renderer(placed, {role: load_tokenizer(placed, role, facts[role].vocabulary) for role in ROLES})
    tokens: Counter[str] = Counter()
    for trace in work.todo:
        dialogue = [tuple(part) for part in work.earlier["rewrite"][trace]["dialogue"]]
        problem = Problem(**work.earlier["chunk"][trace]["problem"])
        out_of_exchanges = random.Random(work.seed(trace)).random() < work.coldstart.final_notice_share
        try:
            samples = render.rows(problem, dialogue, out_of_exchanges)
        except Unfit as error:
            work.done(trace, error.outcome, detail=str(error))
            continue
        for role, sample in samples.items():
            tokens[f"{role}_tokens"] += len(sample.token_ids)
            tokens[f"{role}_learned_tokens"] += sum(sample.mask)
        work.done(trace, **{role: {"token_ids": sample.token_ids, "mask": sample.mask} for role, sample in samples.items()})
    return dict(tokens)


def draft_of(chunks: Row, parts: Row) -> Draft:
    """A partitioned trace, its thoughts put into messages."""
    thoughts = [Thought(**thought) for thought in chunks["thoughts"]]
    drafted = tuple(DraftMessage(role=role, thoughts=tuple(thoughts[i] for i in indices)) for role, indices in parts["messages"])
    return Draft(problem=Problem(**chunks["problem"]), messages=drafted)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median, mean and largest; empty for no value."""
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": round(fmean(values), 2), "max": max(values)}


Settings = dict[str, Any]


def chunk_settings(config: LongShortConfig) -> Settings:
    section = config.coldstart
    asked = {"instruct": section.instruct.model_dump(mode="json")} if section.chunk.splitter == "instruct" else {}
    return {"traces": section.traces, "num_traces": section.num_traces, "seed": config.seed, **section.chunk.model_dump(), **asked}


def rollout_settings(config: LongShortConfig) -> Settings:
    section = config.coldstart.importance
    kept = section.model_dump(exclude={"confidence", "average", "num_engines"})
    model = identity(rollout_generator(config).model, "coldstart.rollout.model")
    return kept | {"seed": config.seed, "model": model, "tags": config.protocol.tags}


def importance_settings(config: LongShortConfig) -> Settings:
    return config.coldstart.importance.model_dump(include={"confidence", "average"})


def partition_settings(config: LongShortConfig) -> Settings:
    return config.coldstart.partition.model_dump() | {"seed": config.seed, "max_exchanges": config.protocol.max_exchanges}


def rewrite_settings(config: LongShortConfig) -> Settings:
    section = config.coldstart
    asked = {"instruct": section.instruct.model_dump(mode="json")} if section.rewrite.rewriter == "instruct" else {}
    return section.rewrite.model_dump() | {"seed": config.seed} | asked


def row_settings(config: LongShortConfig) -> Settings:
    roles = {role: config.role(role).model_dump(include={"turn_tokens", "instructions"}) for role in ROLES}
    models = {role: identity(base_model(config, role), f"{role}.model") for role in ROLES}
    limits = {role: [config.role(role).engine.max_model_len, config.role(role).sft.max_length] for role in ROLES}
    return {"protocol": config.protocol.model_dump(), "roles": roles, "models": models, "limits": limits, "seed": config.seed} | {
        "final_notice_share": config.coldstart.final_notice_share
    }
