"""Importance rollouts per second through the pipeline against the engine alone on the same tokens.

    python -m tests.benchmarks.rollouts [MODEL] [TRACES]

MODEL: a finished quickstart's runs/quickstart/models/base-short

The pipeline: all prefixes of TRACES miniature traces (default 100), 8 rollouts each: prompts made, sent to an engine
in a process of its own, graded and counted. Alone: the very same prompts, seeds and limits handed to the same kind of
engine in one go, nothing graded. One warm-up, then 5 runs of each in turn; the ratio of the medians is what the
pipeline keeps of the engine's speed.
"""

import asyncio
import sys
import time
from pathlib import Path
from statistics import median

import ray
from transformers import AutoTokenizer

from longshort.backends import ray_cluster
from longshort.backends.engines.vllm_engine import ENVIRONMENT
from longshort.coldstart.records import OK, ChunkLine, Thought
from longshort.coldstart.rollouts import roll_out
from longshort.coldstart.traces import load_traces
from longshort.grading.pool import GradingPool
from longshort.recipe.coldstart import ImportanceConfig
from longshort.recipe.schema import load
from longshort.types import SHORT
from tests.benchmarks.common import Alone

ROOT = Path(__file__).resolve().parents[2]
RUNS = 5


async def pipeline(engine, traces, seed):
    """Seconds, tokens and requests of one pass over all traces."""
    requests, tokens, generate = [], 0, engine.generate

    async def recorded(prompt, sampling):
        nonlocal tokens
        requests.append((tuple(prompt), sampling))
        completion = await generate(prompt, sampling)
        tokens += len(completion.token_ids)
        return completion

    engine.generate = recorded
    settings, free = ImportanceConfig(num_rollouts=8, max_tokens=64, instructions=""), asyncio.Semaphore(6)

    async def one(trace):
        async with free:
            thoughts = [part + "\n\n" for part in trace.response.split("\n\n")]
            cut = tuple(Thought(text=text, kind="") for text in thoughts)
            chunks = ChunkLine(id=trace.id, outcome=OK, problem=trace.problem, thoughts=cut)
            await roll_out(chunks, engine, pool, settings, tags="special", seed=seed)

    began = time.perf_counter()
    with GradingPool() as pool:
        await asyncio.gather(*map(one, traces))
    seconds = time.perf_counter() - began
    engine.generate = generate
    return seconds, tokens, requests


async def main(model, count):
    config = load(ROOT / "recipes" / "quickstart.yaml")
    with GradingPool() as pool:
        traces = load_traces("miniature:train", count, pool, 0)
    undo = ray_cluster.start(config)
    engine = ray_cluster.make_engine(SHORT, model, config, AutoTokenizer.from_pretrained(model))
    await engine.start()
    options = {"num_cpus": 0.2, "runtime_env": {"env_vars": ENVIRONMENT}}
    alone = ray.remote(Alone).options(**options).remote(model, config.short.engine)
    ours, theirs = [], []
    for run in range(RUNS + 1):
        seconds, tokens, requests = await pipeline(engine, traces, run)
        bare, same = await alone.run.remote(requests)
        name = f"run {run}" if run else "warm-up"
        print(f"{name}: {len(requests)} rollouts, {tokens} tokens; pipeline {seconds:.2f} s, alone {bare:.2f} s")
        if same != tokens:
            print(f"  the engine alone sampled {same} tokens: not the same work")
        if run:
            ours.append(len(requests) / seconds)
            theirs.append(len(requests) / bare)
    engine.close()
    undo()
    for name, rates in (("pipeline", ours), ("engine alone", theirs)):
        print(f"{name}: {median(rates):.0f} rollouts/s ({min(rates):.0f} to {max(rates):.0f})")
    print(f"ratio of medians: {median(ours) / median(theirs):.2f} (wanted: 0.85)")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "runs/quickstart/models/base-short")
    if Path(folder).is_dir():
        asyncio.run(main(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 100))
    else:
        print(
            f"skipped: {folder} is not there; run `make quickstart` first, or name a base model of the miniature's "
            "short role"
        )
