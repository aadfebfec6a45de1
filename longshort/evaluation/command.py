"""`longshort eval`: systems side by side on benchmarks, with the same problems and the same dice; and the same for a pair in training."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from longshort import console, interruption
from longshort.dialogue.grading import GradingPool
from longshort.evaluation.records import ALL, STAGES, TRAINING
from longshort.evaluation.results import Results, add_aes, add_overall, compared, measured, with_greedy
from longshort.evaluation.systems import Model, System, in_order, systems_of
from longshort.evaluation.tables import results_table, titles
from longshort.evaluation.tasks import Prepared, Task, open_ledger, prepare_benchmarks, read_back, run_task, tasks_of
from longshort.pair import Pair
from longshort.recipe.schema import LongShortConfig, parse
from longshort.runs import checkpoint
from longshort.runs.ledger import set_aside
from longshort.runs.model_files import read_facts
from longshort.types import LONG, SHORT, LongShortError


def evaluate_recipe(
    config: LongShortConfig, *, name: str = "results", checkpoint_folder: Path | None = None, redo: bool = False
) -> dict[str, Any]:
    """Evaluate every system on every benchmark, print a table, write `eval/<name>.json` and `.md`; returns what was written.

    `checkpoint_folder` is the team checkpoint that "trained" means (default: the newest). A benchmark that cannot be used is told, left
    out, and stands in "faults". Raises LongShortError where nothing can be evaluated; started again, it goes on where it stopped.
    """
    if not re.fullmatch(r"[\w-]+", name) or name in (STAGES, TRAINING):
        own = f"{STAGES} and {TRAINING} are the run's own"
        raise LongShortError(
            f"the evaluation's name {name!r} becomes a file's name; use letters, digits, - and _ only ({own})"
        )
    if checkpoint_folder:
        checkpoint.verify(checkpoint_folder)
    systems, folder = systems_of(config, checkpoint_folder), _folder(config) / name
    grading = config.grading
    with GradingPool(workers=grading.workers, timeout_s=grading.timeout_s, memory_mb=grading.memory_mb) as pool:
        benchmarks, faults = prepare_benchmarks(config, pool)
        check_systems(config, systems, benchmarks)
        tasks = [
            task
            for system in systems
            for task in tasks_of(config, folder, system, benchmarks, greedy=config.eval.greedy)
        ]
        if redo and folder.is_dir() and (old := set_aside(folder, [task.name for task in tasks])):
            console.say(f"what was there is now in {old}")
        interruption.run(_run_all(config, tasks, pool))
    content = _assemble(config, name, tasks, faults)
    _show(content)
    console.say(f"\nwritten to {folder}.json and {folder}.md; every episode is in {folder}/")
    return content


def check_systems(config: LongShortConfig, systems: Sequence[System], benchmarks: Sequence[Prepared]) -> None:
    """Refuse, before an engine starts, models without files, tokenizers that do not fit, prompts that are too long."""
    from longshort.preflight.checks import check_contexts, check_prompts, load_tokenizer

    problems = [problem for benchmark in benchmarks for problem in benchmark.loaded.problems]
    checked: dict[tuple[Model, str], Any] = {}
    for system in systems:
        tags = system.protocol.tags
        recipe = config.model_dump() | {"protocol": config.protocol.model_dump() | {"tags": tags}}
        for role, model in system.models.items():
            if (model, tags) not in checked:
                facts = read_facts(model.folder, f"{system.name}, {role}")
                alone = parse(recipe | {model.origin: recipe[model.origin] | {"model": model.folder}})
                check_contexts(alone, {model.origin: facts})
                checked[model, tags] = load_tokenizer(alone, model.origin, facts.vocabulary)
        played = parse(recipe | {role: recipe[model.origin] for role, model in system.models.items()})
        check_prompts(
            played, problems, system.protocol, {role: checked[model, tags] for role, model in system.models.items()}
        )


async def _run_all(config: LongShortConfig, tasks: Sequence[Task], pool: GradingPool) -> None:
    """Whatever is not done yet, system by system, in the order that starts the fewest engines."""
    from longshort.backends import ray_cluster
    from longshort.evaluation.engines import Engines

    ledgers = {task.name: ledger for task in tasks if not (ledger := open_ledger(config, task)).complete}
    todo = [task for task in tasks if task.name in ledgers]
    left = Counter(task.system.name for task in todo)
    for name in dict.fromkeys(task.system.name for task in tasks):
        if not left[name]:
            console.say(f"{name}: done before, skipped")
    if not todo:
        return
    systems = in_order(list({task.system.name: task.system for task in todo}.values()))
    with ExitStack() as undo:
        undo.callback(ray_cluster.start(config))
        engines = Engines(config)
        undo.callback(engines.close)
        for number, system in enumerate(systems, 1):
            policies = await engines.of(system)
            for task in (task for task in todo if task.system.name == system.name):
                label, began = (
                    f"[{number}/{len(systems)}] {system.name} on {task.benchmark.loaded.name}, {task.decoding}",
                    time.monotonic(),
                )
                await run_task(task, policies, pool, ledgers.pop(task.name), config.eval.seed, label)
                console.say(f"{label}: {len(task.order)} episodes in {console.duration(time.monotonic() - began)}")


def _assemble(config: LongShortConfig, name: str, tasks: Sequence[Task], faults: Sequence[str]) -> dict[str, Any]:
    """All numbers, from the lines alone; writes and returns the results file's content."""
    base, comparisons = config.eval.base, []
    found = Results(_folder(config), name, _settings(config), fresh=True)
    of_base = {
        (task.benchmark.loaded.name, task.decoding): read_back(task)[0] for task in tasks if task.system.name == base
    }
    for task in tasks:
        evaluation, reasons = read_back(task)
        benchmark = task.benchmark.loaded.name
        _add(found, task, measured(evaluation, reasons, task.system, config.prices))
        if base and task.system.name != base and len(task.benchmark.loaded.problems) > 1:
            against = compared(task.system.name, evaluation, base, of_base[benchmark, task.decoding], config.prices)
            comparisons += [{"benchmark": benchmark, "decoding": task.decoding, **each} for each in against]
    add_overall(found.content["results"])
    found.content |= {
        "comparisons": comparisons,
        "faults": [*faults, *(add_aes(found.content["results"], base) if base else [])],
        "cross_play": dict.fromkeys(("long", "short"), config.eval.cross_play) if config.eval.cross_play else None,
    }
    found.write()
    return found.content


async def measure(
    config: LongShortConfig,
    pair: Pair,
    name: str,
    *,
    title: str = "",
    evaluation: str = STAGES,
    benchmarks: Sequence[Prepared] | None = None,
    greedy: bool | None = None,
) -> dict[str, Any]:
    """A live pair on the recipe's benchmarks, as system `name` of `eval/<evaluation>.json`; what stood there under that name is replaced.

    Returns the measures on the first benchmark, flat: `accuracy`, `interval`, `tokens`, `cost`, …, and `accuracy_greedy` & co. `greedy`
    replaces `eval.greedy`, `benchmarks` those that would be loaded here.
    """
    prepared = benchmarks or (await asyncio.to_thread(prepare_benchmarks, config, pair.pool))[0]
    models = {role: Model(folder=pair.models[role], origin=role) for role in pair.protocol.roles}
    system = System(name=name, title=title or name, models=models, protocol=pair.protocol)
    folder = _folder(config) / evaluation
    tasks = tasks_of(config, folder, system, prepared, greedy=config.eval.greedy if greedy is None else greedy)
    found = Results(_folder(config), evaluation, _settings(config), fresh=False)
    versions = {role: f"{pair.models[role]}, version {policy.version}" for role, policy in pair.policies.items()}
    for task in tasks:
        for leftover in folder.glob(
            f"{task.name}.*"
        ):  # of another try at the same step: its weights need not be the same
            leftover.unlink()
        ledger = open_ledger(config, task, models=versions)
        label = f"evaluating {name} on {task.benchmark.loaded.name}, {task.decoding}"
        await run_task(task, pair.policies, pair.pool, ledger, config.eval.seed, label)
        _add(found, task, measured(*read_back(task), system, config.prices))
    found.write()
    return found.block(name, tasks[0].benchmark.loaded.name)


def measured_before(config: LongShortConfig, name: str) -> dict[str, Any] | None:
    """What `measure` returned for this stage of the run, or None where it has not been measured on the recipe's first benchmark."""
    found, first = Results(_folder(config), STAGES, {}, fresh=False), next(iter(config.eval.benchmarks), "")
    return found.block(name, first if isinstance(first, str) else first.name)


def _add(found: Results, task: Task, measures: Mapping[str, Any]) -> None:
    system, benchmark = task.system, task.benchmark
    models = {role: model.folder for role, model in system.models.items()}
    described = {"title": system.title, "models": models, "protocol": type(system.protocol).__name__}
    found.add(system.name, described, benchmark.loaded.name, benchmark.facts, task.decoding, dict(measures))


def _folder(config: LongShortConfig) -> Path:
    return Path(config.output_dir) / "eval"


def _settings(config: LongShortConfig) -> dict[str, Any]:
    """What of the recipe an evaluation depends on."""
    role = {"turn_tokens", "instructions", "engine"}
    wanted = dict.fromkeys(("eval", "protocol", "top_p", "top_k", "grading", "seed"), True) | {LONG: role, SHORT: role}
    return config.model_dump(mode="json", include=wanted) | {"prices": config.prices}


def _show(content: Mapping[str, Any]) -> None:
    """A table for each benchmark, and what went wrong."""
    for benchmark in dict.fromkeys(row["benchmark"] for row in content["results"]):
        of_system: dict[str, list] = {}
        for row in content["results"]:
            if row["benchmark"] == benchmark:
                of_system.setdefault(row["system"], []).append(row)
        title = "mean over benchmarks" if benchmark == ALL else content["benchmarks"][benchmark]["title"]
        named = titles(content["systems"])
        console.say(results_table(title, {named[name]: with_greedy(rows) for name, rows in of_system.items()}))
    for fault in content["faults"]:
        console.say(f"! {fault}")
