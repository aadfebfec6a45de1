"""New weights in a vLLM engine: the product's verified sync beside a reload from disk and a restart of the engine.

Engine and learner are the product's actors on a Ray cluster of this machine; the ways are measured in turn, after an
update of the learner each, for the miniature's long model and for one eighty times as large.

- sync, verified: `publish` as training runs it. The learner copies its weights, they travel through the object store,
  the engine checks every tensor's name, shape and finiteness, takes them over and empties its prefix cache; then it
  samples the canary, and the learner scores it.
- sync, bare: the same without the check of the tensors and without the canary.
- reload from disk: the learner saves the model as a checkpoint does, vLLM reads the folder into the same engine
  (`reload_weights`) and empties its prefix cache. Nothing is checked. The files are fresh in the page cache: no disk
  is slower than this one.
- restart: `RemoteEngine.restart`, which kills the process, starts another, loads the model and gives it the current
  weights.

The ideal limit puts one copy of the weights in memory in the place of the sync.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

from longshort.backends import ray_cluster
from longshort.backends.time_share import NoTimeShare
from longshort.backends.weight_transfer import ObjectStore
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import build_tokenizer
from longshort.pair import LivePolicy
from longshort.recipe.miniature import LongShape, ModelShape
from longshort.recipe.schema import LongShortConfig
from longshort.types import LONG, Sample
from tests.benchmarks.common import Figure, leave, options, say, spread

LARGE = ModelShape(
    hidden_size=768,
    num_layers=8,
    num_heads=12,
    num_kv_heads=4,
    intermediate_size=2048,
    base_steps=1,
    base_learning_rate=1e-3,
)
ENGINE = {"backend": "vllm", "max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.125}
WAYS = ("verified", "restart", "bare", "disk")
"""In this order: a restart brings back the weights that were published last."""


def take_over(actor, weights, version: int) -> float:
    """In the engine's process, while nothing is decoded: the sync without its checks; returns the seconds of vLLM's
    own loading.
    """
    began = time.perf_counter()
    actor.core._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
    spent = time.perf_counter() - began
    actor.core._engine.reset_prefix_cache()
    actor.core.version = version
    return spent


def read(actor, folder: str) -> None:
    """In the engine's process, while nothing is decoded: the weights of a model folder."""
    actor.core._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    actor.core._engine.reset_prefix_cache()


class Swaps:
    """One model's engine and learner, and seconds by way, one per run; `parts` are seconds inside of those ways."""

    def __init__(self, shape: ModelShape, folder: Path, runs: int):
        tokenizer = build_tokenizer(LONG)
        model = build_model(tokenizer, shape, seed=0, max_position_embeddings=256)
        self.name = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2g}M parameters"
        self.folder = folder
        save(model, tokenizer, folder / "model")
        config = LongShortConfig(
            long={"model": str(folder / "model"), "engine": ENGINE}, learning_rate=1e-5, warmup_ratio=0.0
        )
        learner = ray_cluster.make_learner(LONG, config.long.model, config, 10 * runs)
        engine = ray_cluster.make_engine(LONG, config.long.model, config, tokenizer)
        self.policy = LivePolicy(LONG, engine, learner, config, ObjectStore(learner), NoTimeShare())
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        self.parts: dict[str, list[float]] = {name: [] for name in ("canary", "save", "vLLM's loading", "one copy")}

    async def learn(self) -> None:
        """One update on made-up tokens, so that every sync brings something new."""
        ids = tuple(random.Random(self.policy.version).choices(range(16, 256), k=32))
        ones, numbers = (0,) + (1,) * 31, (0.0,) + (-1.0,) * 31
        sample = Sample(role=LONG, token_ids=ids, mask=ones, logprobs=numbers, advantages=numbers)
        report = await self.policy.learner.update([sample])
        assert report["optimizer_steps"] == 1, report

    async def verified(self) -> None:
        prove = self.policy._prove

        async def timed() -> float:
            began = time.perf_counter()
            gap = await prove()
            self.parts["canary"].append(time.perf_counter() - began)
            return gap

        with patch.object(self.policy, "_prove", timed):
            await self.policy.publish()

    async def bare(self) -> None:
        self.policy.version += 1
        call = self.policy.engine._actor.__ray_call__
        self.parts["vLLM's loading"].append(
            await call.remote(take_over, self.policy.learner.weights(), self.policy.version)
        )

    async def disk(self) -> None:
        began = time.perf_counter()
        await self.policy.learner.save(self.folder / "saved", self.folder / "state")
        self.parts["save"].append(time.perf_counter() - began)
        await self.policy.engine._actor.__ray_call__.remote(read, str(self.folder / "saved"))

    async def restart(self) -> None:
        await self.policy.engine.restart(RuntimeError("asked for"))

    async def run(self) -> None:
        for way in WAYS:
            if way != "restart":
                await self.learn()
            began = time.perf_counter()
            await getattr(self, way)()
            self.seconds[way].append(time.perf_counter() - began)
            await self.policy._prove()
        weights = await self.policy.learner.weights()
        began = time.perf_counter()
        copies = [tensor.clone() for tensor in weights.values()]
        self.parts["one copy"].append(time.perf_counter() - began)
        del copies
        say(
            f"  {self.name}: "
            + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in (self.seconds | self.parts).items())
        )

    async def start(self) -> None:
        await asyncio.gather(self.policy.engine.start(), self.policy.learner.ready())

    async def warm_up(self) -> None:
        for way in WAYS:
            if way != "restart":
                await self.learn()
                await getattr(self, way)()
        for values in (*self.seconds.values(), *self.parts.values()):
            values.clear()

    def close(self) -> None:
        self.policy.engine.close()
        self.policy.learner.close()

    def times(self, slow: str, fast: str) -> tuple[float, ...]:
        """How many times as long one way took as another, run by run."""
        every = self.seconds | self.parts
        return tuple(a / b for a, b in zip(every[slow], every[fast], strict=True))

    def figures(self) -> list[Figure]:
        limit = "one copy in memory in the sync's place"
        loading, verified, canary = (
            median(times) for times in (self.parts["vLLM's loading"], self.seconds["verified"], self.parts["canary"])
        )
        return [
            Figure(
                what=f"{self.name}: reload from disk, in times of a verified sync",
                values=self.times("disk", "verified"),
                ideal=self.times("disk", "one copy"),
                limit=limit,
                at_least=5,
                form="{:.1f} x",
                cause="Both ways end in the same call of vLLM, which hands the layers their tensors one by one and "
                "packs them anew "
                f"({loading:.3f} s); the canary costs the sync {canary:.3f} s of its {verified:.3f} s, a proof that "
                "the reload does not "
                "give; and files that were just written are read from memory.",
            ),
            Figure(
                what=f"{self.name}: the same without checks and canary",
                values=self.times("disk", "bare"),
                form="{:.1f} x",
            ),
            Figure(
                what=f"{self.name}: restart of the engine, in times of a verified sync",
                values=self.times("restart", "verified"),
                ideal=self.times("restart", "one copy"),
                limit=limit,
                at_least=100,
                form="{:.0f} x",
                cause="The sync's time grows with the weights; most of a restart's is the start of a process, which "
                "does not. vLLM's own "
                f"loading of weights that are already in memory takes {loading:.3f} s.",
            ),
            Figure(
                what=f"{self.name}: the same without checks and canary",
                values=self.times("restart", "bare"),
                form="{:.0f} x",
            ),
        ]

    def note(self) -> str:
        every = self.seconds | self.parts
        return f"{self.name}, seconds: " + "; ".join(
            f"{what} {spread(values, '{:.3f}')}" for what, values in every.items()
        )


async def measure(folder: Path, runs: int) -> list[Swaps]:
    """Both models: started side by side, measured one after the other."""
    undo = ray_cluster.start(LongShortConfig())
    models = [Swaps(shape, folder / str(number), runs) for number, shape in enumerate((LongShape(), LARGE))]
    try:
        say("starting engines and learners")
        await asyncio.gather(*(model.start() for model in models))
        for model in models:
            await model.warm_up()
            for _ in range(runs):
                await model.run()
    finally:
        for model in models:
            model.close()
        undo()
    return models


def main() -> None:
    asked = options(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        models = asyncio.run(measure(Path(temporary), asked.runs))
    figures = [figure for model in models for figure in model.figures()]
    leave("weight_sync", __doc__, figures, asked.results, [model.note() for model in models])


if __name__ == "__main__":
    main()
