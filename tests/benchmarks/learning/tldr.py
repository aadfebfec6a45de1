"""TL;DR's dynamic re-weighting against static 1:1 on the miniature, one base model per seed.

    python tests/benchmarks/learning/tldr.py runs/tldr-benchmark BASE_LONG [BASE_LONG …] [--only constant dynamic]

Each base model (`<run>/models/base-long`; the first is seed 0) is trained by recipes/tldr.yaml once per variant. The
starting model, the short bound, and each variant's chosen and last checkpoint are then measured on 400 test problems
at temperature 1. Existing results are kept. Prints the table of docs/results.md: accuracy with its 95 %
Wilson interval, and tokens.

    constant        both sources at 1:1
    dynamic         the recipe's settings
    dynamic c=0.1   the default floor
    dynamic c=1e-4  the paper's floor
"""

import argparse
import asyncio
import json
import shutil
from pathlib import Path
from statistics import fmean

from longshort.backends import ray_cluster
from longshort.dialogue.solo import Solo
from longshort.evaluation.command import measure
from longshort.mixture.run import run_mixture
from longshort.pair import Pair
from longshort.recipe.schema import load
from longshort.runs import checkpoint
from longshort.types import LONG

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "tldr.yaml"
VARIANTS = {
    "constant": ["mixture.weighting=constant"],
    "dynamic": [],
    "dynamic c=0.1": ["mixture.floor=0.1"],
    "dynamic c=1e-4": ["mixture.floor=1e-4"],
}


def settings(output, seed, base, variant="dynamic"):
    folder = output / f"seed{seed}" / variant.replace(" ", "-")
    tested = ["eval.benchmarks=[miniature:test]", "eval.num_problems=400", "eval.greedy=false"]
    return load(RECIPE, [f"output_dir={folder}", f"seed={seed}", f"long.model={base}", *tested, *VARIANTS[variant]])


async def train(output, seed, base, names):
    """Train all variants on one base model; the first measures the bounds. Return model folders by row title."""
    models, bounds = {"starting model (long bound)": str(base)}, None
    for name in names:
        config = settings(output, seed, base, name)
        place = Path(config.output_dir) / "mixture" / "bounds.json"
        if bounds and not place.is_file():
            place.parent.mkdir(parents=True)
            shutil.copy(bounds, place)
        bounds = bounds or place
        print(f"seed {seed}, {name}")
        summary = await run_mixture(config)
        models["short bound"] = json.loads(place.read_text())["short"]["model"]
        models[f"{name}, chosen"] = summary["model"]
        models[f"{name}, last"] = str(checkpoint.latest(place.parent) / LONG)
    return models


async def evaluate(output, seed, base, models):
    """Measure all models on one engine; return blocks by row title."""
    from transformers import AutoModelForCausalLM

    results, config = {}, settings(output, seed, base)
    todo = {title: output / f"seed{seed}" / "test" / f"{title.replace(' ', '-')}.json" for title in models}
    async with Pair(config, {LONG: str(base)}, protocol=Solo(turn_tokens=config.mixture.max_tokens)) as pair:
        for version, (title, folder) in enumerate(models.items(), 1):
            if not todo[title].is_file():
                weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
                load = ("load_weights", weights, version)
                await pair.policies[LONG].engine.receive(lambda actor, load=load: actor.between_steps.remote(*load))
                todo[title].parent.mkdir(exist_ok=True)
                todo[title].write_text(json.dumps(await measure(config, pair, "test") | {"model": folder}))
            results[title] = json.loads(todo[title].read_text())
    return results


def table(results):
    print("| system | " + " | ".join(f"seed {seed}" for seed in range(len(results))) + " | mean accuracy · tokens |")
    print("|---|" + "---|" * (len(results) + 1))
    for title in results[0]:
        blocks = [of_seed[title] for of_seed in results]
        cells = [
            f"{b['accuracy']:.3f} [{b['interval'][0]:.2f}, {b['interval'][1]:.2f}] · {b['tokens']:.1f}" for b in blocks
        ]
        means = f"{fmean(b['accuracy'] for b in blocks):.3f} · {fmean(b['tokens'] for b in blocks):.1f}"
        print(f"| {title} | {' | '.join(cells)} | {means} |")


async def main(output, bases, names):
    undo = ray_cluster.start(settings(output, 0, bases[0]))
    try:
        results = []
        for seed, base in enumerate(bases):
            results.append(await evaluate(output, seed, base, await train(output, seed, base, names)))
    finally:
        undo()
    table(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("bases", type=Path, nargs="+")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    options = parser.parse_args()
    asyncio.run(main(options.output, options.bases, options.only))
