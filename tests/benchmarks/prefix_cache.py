"""Prefix-cache hits against the ideal, and time against the number of turns.

A role's prompt is its last prompt, what it wrote, and its partner's words since; an engine that keeps blocks of keys
and values need compute the new part alone. The ideal is counted from the prompts: whole blocks whose tokens, and all
before them, were in a prompt asked before or in a turn finished before, wherever memory might have ended. Without a
cache the tokens to compute grow with the square of the turns, with it the time should grow as the sampled tokens do.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

from longshort.dialogue.rollout import Decoding, run_episode, stable_seed
from longshort.types import ROLES
from tests.benchmarks.common import Figure, leave, options, say, slope, spread
from tests.benchmarks.scripted import Scripted, config, draw_lengths, engines, make_models, problems

SLOTS, PROBLEMS, GROUP, SHORTEST, LONGEST = 16, 6, 8, 8, 40
EXCHANGES, CHECKED = (1, 2, 4, 8), 4


class Cache:
    """A policy, and the cache of whole blocks that its engine would have with endless memory."""

    def __init__(self, policy, block):
        self.policy, self.block, self.tokenizer, self.context = policy, block, policy.tokenizer, policy.context
        self.seen, self.ideal, self.prompt_tokens = set(), 0, 0

    async def generate(self, prompt_ids, sampling):
        self.prompt_tokens += len(prompt_ids)
        self.ideal += self.block * self.hits(
            prompt_ids[:-1]
        )  # the last token is always computed: the next one is sampled from it
        self.keep(prompt_ids)
        completion = await self.policy.generate(prompt_ids, sampling)
        self.keep((*prompt_ids, *completion.token_ids[:-1]))  # the last one was not read yet
        return completion

    def prefixes(self, ids):
        """A key for each whole block, of all tokens up to its end."""
        key = 0
        for end in range(self.block, len(ids) + 1, self.block):
            key = hash((key, tuple(ids[end - self.block : end])))
            yield key

    def hits(self, ids):
        """Whole blocks at the beginning of `ids` that were seen."""
        count = 0
        for key in self.prefixes(ids):
            if key not in self.seen:
                break
            count += 1
        return count

    def keep(self, ids):
        self.seen.update(self.prefixes(ids))


async def dialogues(pair, forget, lengths, seed, block):
    """Seconds, and tokens of prompts: all, found by the engines, and found by the ideal."""
    await forget()
    before = {role: await policy.engine.stats() for role, policy in pair.policies.items()}
    caches = {role: Cache(policy, block) for role, policy in pair.policies.items()}
    asked, free = problems(PROBLEMS), asyncio.Semaphore(2 * SLOTS)

    async def one(number):
        async with free:
            return await run_episode(
                asked[number // GROUP], caches, Scripted(lengths[number]), Decoding(), stable_seed(seed, number)
            )

    began = time.perf_counter()
    await asyncio.gather(*map(one, range(len(lengths))))
    seconds = time.perf_counter() - began
    after = {role: await policy.engine.stats() for role, policy in pair.policies.items()}
    found = sum(after[role]["cached_tokens"] - before[role]["cached_tokens"] for role in ROLES)
    return (
        seconds,
        sum(cache.prompt_tokens for cache in caches.values()),
        found,
        sum(cache.ideal for cache in caches.values()),
    )


async def main(runs, results):
    with tempfile.TemporaryDirectory() as scratch:
        settings = config(make_models(Path(scratch)), max_num_seqs=SLOTS)
        block = settings.long.engine.block_size
        async with engines(settings) as (pair, forget):
            say("warming up")
            await dialogues(pair, forget, draw_lengths(PROBLEMS * GROUP, 1, 8, 16, 0), 0, block)
            rows = []
            for run in range(1, runs + 1):
                row = {}
                for exchanges in EXCHANGES:
                    lengths = draw_lengths(PROBLEMS * GROUP, exchanges, SHORTEST, LONGEST, run)
                    row[exchanges] = *await dialogues(pair, forget, lengths, run, block), sum(map(sum, lengths))
                say(
                    f"run {run} of {runs}: "
                    + ", ".join(f"{exchanges}: {row[exchanges][0]:.2f} s" for exchanges in EXCHANGES)
                )
                rows.append(row)
    leave("prefix_cache", __doc__, figures(rows), results, notes(rows, block))


def figures(rows):
    checked = [row[CHECKED] for row in rows]
    sampled = tuple(slope(EXCHANGES, [row[exchanges][4] for exchanges in EXCHANGES]) for row in rows)
    return [
        Figure(
            what=f"prefix-cache hits at {CHECKED} exchanges, of the ideal",
            values=tuple(found / ideal for _, _, found, ideal, _ in checked),
            ideal=(1.0,),
            limit="every whole block seen before",
            at_least=0.85,
            form="{:.1%}",
            cause="The engine did not keep, or gave up, blocks that the ideal has; more engine.kv_cache_gib tells "
            "which.",
        ),
        Figure(
            what=f"prompt tokens found in the cache at {CHECKED} exchanges",
            values=tuple(found / prompt for _, prompt, found, _, _ in checked),
            ideal=tuple(ideal / prompt for _, prompt, _, ideal, _ in checked),
            limit="every whole block seen before",
            form="{:.1%}",
        ),
        Figure(
            what="time against turns, exponent",
            values=tuple(slope(EXCHANGES, [row[exchanges][0] for exchanges in EXCHANGES]) for row in rows),
            ideal=sampled,
            limit="sampled tokens against turns",
            at_most=1.1,
            cause=f"The prompt tokens that are computed grow with exponent {median(growth(rows, 1)):.2f} (blocks "
            "that are not full are "
            "computed again); the rest is attention, which reads the whole dialogue for every token, and the machine.",
        ),
    ]


def growth(rows, cached):
    """Exponents of the prompt tokens that must be computed, without a cache (0) or with this one (1)."""
    return [slope(EXCHANGES, [row[n][1] - cached * row[n][2] for n in EXCHANGES]) for row in rows]


def notes(rows, block):
    seconds = ", ".join(f"{n}: {median(row[n][0] for row in rows):.2f} s" for n in EXCHANGES)
    return [
        f"{PROBLEMS} problems, {GROUP} episodes of each, turns of {SHORTEST} to {LONGEST} tokens, blocks of {block}; "
        f"{SLOTS} episodes "
        "decode at once in an engine.",
        f"Median time by exchanges: {seconds}.",
        f"Exponent of the prompt tokens to compute: {spread(growth(rows, 0))} without a cache, "
        f"{spread(growth(rows, 1))} with this one.",
    ]


if __name__ == "__main__":
    asked_for = options(__doc__)
    asyncio.run(main(asked_for.runs, asked_for.results))
