"""`longshort eval`: the pair, or one of its models alone, on the recipe's held-out problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longshort import checkpoint, console, interruption
from longshort.config import LongShortConfig, parse
from longshort.data import load_problems
from longshort.evaluation.measures import summarise
from longshort.evaluation.runner import EVALUATION_SEED
from longshort.pair import Pair, make_protocol
from longshort.team.protocols import Solo
from longshort.types import LongShortError, Problem


def evaluate_recipe(config: LongShortConfig, *, solo: str | None = None, checkpoint_folder: Path | None = None) -> dict[str, Any]:
    """Evaluate, print a table, write `eval/<name>.json`; returns what was written. `solo` is the role whose model answers alone."""
    models = {role: config.role(role).model for role in ("long", "short")}
    if checkpoint_folder:
        checkpoint.verify(checkpoint_folder)
        models = {role: str(checkpoint_folder / role) for role in models}
    protocol = (
        Solo(role=solo, turn_tokens=config.protocol.episode_tokens, instructions=config.role(solo).instructions or "")
        if solo
        else make_protocol(config)
    )
    check_evaluation(config, models, protocol)

    async def go() -> dict[str, Any]:
        async with Pair(config, models, protocol=protocol) as pair:
            return await measure(config, pair, f"{solo}-alone" if solo else "pair")

    result = interruption.run(go())
    console.say(results_table({f"{solo} model alone" if solo else "pair": result}))
    return result


def check_evaluation(config: LongShortConfig, models: dict[str, str], protocol) -> None:
    """Refuse, before an engine starts, models without files, tokenizers that do not fit, prompts too long, golds that do not parse."""
    from longshort.model_files import read_facts
    from longshort.plan import check_golds, check_prompts, load_tokenizer

    placed = parse(config.model_dump() | {role: config.role(role).model_dump() | {"model": model} for role, model in models.items()})
    tokenizers = {}
    for role in protocol.roles:
        if not models[role]:
            raise LongShortError(f"{role}.model is empty: name a model folder or a hub name, or pass --checkpoint")
        tokenizers[role] = load_tokenizer(placed, role, read_facts(models[role], f"{role}.model").vocabulary)
    problems = evaluation_problems(config)
    check_prompts(placed, problems, protocol, tokenizers)
    check_golds(placed, problems)


def evaluation_problems(config: LongShortConfig) -> list[Problem]:
    """The held-out problems of the recipe."""
    if not config.eval.dataset:
        raise LongShortError("eval.dataset is empty: name a file, a hub dataset, or miniature:test")
    return load_problems(config.eval.dataset, limit=config.eval.num_problems)


async def measure(config: LongShortConfig, pair: Pair, name: str) -> dict[str, Any]:
    """Accuracy and cost of a live pair on the evaluation problems, sampled and greedy; written to eval/<name>.json."""
    settings = config.eval
    problems = evaluation_problems(config)
    sampled = await pair.evaluate(problems, temperature=settings.temperature, num_samples=settings.num_samples, seed=EVALUATION_SEED)
    result: dict[str, Any] = summarise(sampled, pair.protocol, config.prices)
    if settings.dataset.startswith("miniature:"):
        from longshort.miniature.world import hard_parts

        backs = [pair.protocol.hand_backs(episode) > 0 for episode in sampled.episodes if hard_parts(episode.problem) > 1]
        result["hand_back_rate_hard"] = sum(backs) / len(backs) if backs else 0.0
    if settings.greedy:
        greedy = summarise(await pair.evaluate(problems, temperature=0.0), pair.protocol, config.prices)
        result |= {f"{key}_greedy": greedy[key] for key in ("accuracy", "interval", "tokens", "cost", "format")}
    result |= {
        "models": dict(pair.models),
        "dataset": settings.dataset,
        "temperature": settings.temperature,
        "num_samples": settings.num_samples,
    }
    target = Path(config.output_dir) / "eval" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1))
    return result


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Systems side by side: accuracy with its 95 % interval, greedy accuracy, tokens, price-weighted cost, hand-backs, format."""
    rows = []
    for title, block in results.items():
        low, high = block["interval"]
        greedy = f"{block['accuracy_greedy']:.3f}" if "accuracy_greedy" in block else "–"
        numbers = [f"{block[key]:.1f}" for key in ("tokens", "cost")] + [f"{block[key]:.2f}" for key in ("hand_back_rate", "format")]
        rows.append([title, f"{block['accuracy']:.3f} [{low:.3f}, {high:.3f}]", greedy, *numbers])
    return "\n" + console.table(["held-out problems", "accuracy [95 %]", "greedy", "tokens", "cost", "hand-back", "format"], rows)
