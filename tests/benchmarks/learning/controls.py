"""The controls of a finished quickstart run: what compression, RL and two models each contribute.

    python tests/benchmarks/learning/controls.py runs/quickstart [solo_rl compressed alone equal_prices]

Each starts from the run's own models and is measured on the same held-out problems, at temperature 1 and greedy. One
row per control is printed and kept in `<run>/controls/<name>.json`; what is there already is not run again.

    solo_rl       the single long model, trained by the same RL on as many sampled tokens as the pair's RL used
    compressed    the single long model fine-tuned on the cold start's content without redundancy, then evaluated
    alone         each model alone: the trained long or short model in both roles, the untrained short model
    equal_prices  the pair's RL again with a short token costing as much as a long one
"""

import asyncio
import json
import math
import sys
from pathlib import Path

from longshort.backends import ray_cluster
from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.solo import Solo
from longshort.evaluation.command import measure, measured_before
from longshort.evaluation.tables import results_table
from longshort.pair import Pair
from longshort.recipe.schema import load, parse
from longshort.runs import checkpoint
from longshort.trainer import LongShortTrainer
from longshort.types import LONG, ROLES, SHORT


def variant(config, **changes):
    return parse(config.model_dump() | changes)


def section(config, key, /, **changes):
    return getattr(config, key).model_dump() | changes


async def train_and_measure(config, name):
    trainer = LongShortTrainer(args=config)
    async with trainer.pair() as pair:
        last = await trainer.run(pair)
        return await measure(config, pair, name) | {"steps": config.max_steps, "train_accuracy": last["team/accuracy"]}


async def solo_rl(config, run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    budget = sum(row["team/tokens"] for row in rows) * config.num_problems * config.num_generations
    single = measured_before(config, "long_baseline")["tokens"]
    steps = math.ceil(budget / (single * config.num_problems * config.num_generations))
    changed = variant(
        config,
        output_dir=str(run / "controls" / "solo_rl"),
        protocol=section(config, "protocol", name="solo"),
        long=section(config, "long", model=str(run / "models/base-long"), turn_tokens=256),
        max_steps=steps,
    )
    return {"solo_rl": await train_and_measure(changed, "solo_rl") | {"sampled_tokens": budget}}


async def compressed(config, run):
    folder = run / "controls" / "compressed" / "long"
    await ray_cluster.in_process(_fit_compressed, config, str(run / "models/base-long"), str(folder))
    changed = variant(config, output_dir=str(run / "controls" / "compressed"))
    async with Pair(changed, {LONG: str(folder)}, protocol=Solo(turn_tokens=256)) as pair:
        return {"compressed": await measure(changed, pair, "compressed")}


def _fit_compressed(config, base, folder):
    from transformers import AutoModelForCausalLM

    from longshort.miniature.fitting import fit
    from longshort.miniature.models import save
    from longshort.miniature.tokenizer import build_tokenizer
    from longshort.miniature.training import solo_samples
    from longshort.miniature.world import compressed_trace, make_problems

    mini, model = config.miniature, AutoModelForCausalLM.from_pretrained(base)
    samples = solo_samples(
        config, LONG, compressed_trace, make_problems("train", config.coldstart.num_traces, config.seed + 1)
    )
    fit(
        model,
        samples,
        steps=config.long.sft.max_steps,
        batch_size=mini.batch_size,
        learning_rate=config.long.sft.learning_rate,
    )
    save(model, build_tokenizer(LONG), folder)


async def alone(config, run):
    newest = checkpoint.latest(run)
    results = {}
    for role in ROLES:
        changed = variant(
            config,
            output_dir=str(run / "controls" / "alone"),
            **{r: section(config, r, price=config.role(role).price) for r in ROLES},
        )
        async with Pair(changed, dict.fromkeys(ROLES, str(newest / role)), protocol=make_protocol(config)) as pair:
            results[f"{role}_in_both_roles"] = await measure(changed, pair, f"{role}_in_both_roles")
    async with Pair(
        changed, {SHORT: str(run / "models/base-short")}, protocol=Solo(role=SHORT, turn_tokens=256)
    ) as pair:
        results["short_alone"] = await measure(changed, pair, "short_alone")
    return results


async def equal_prices(config, run):
    roles = {role: section(config, role, price=1.0, model=str(run / "models" / f"cold-{role}")) for role in ROLES}
    changed = variant(config, output_dir=str(run / "controls" / "equal_prices"), **roles)
    return {"equal_prices": await train_and_measure(changed, "equal_prices")}


CONTROLS = {"solo_rl": solo_rl, "compressed": compressed, "alone": alone, "equal_prices": equal_prices}


async def main(run, names):
    config = load(run / "recipe.yaml")
    config = variant(config, save_steps=0, sample_steps=0, logging_steps=10)
    undo = ray_cluster.start(config)
    results = {}
    for name in names:
        record = run / "controls" / f"{name}.json"
        if not record.is_file():
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(await CONTROLS[name](config, run), indent=1))
        results |= json.loads(record.read_text())
    undo()
    print(results_table("controls", results))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    if not (folder / "summary.json").is_file():
        sys.exit(f"{folder} holds no finished quickstart run (summary.json); run `make quickstart` first")
    asyncio.run(main(folder, sys.argv[2:] or [*CONTROLS]))
