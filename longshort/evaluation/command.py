"""`longshort eval`: systems side by side on benchmarks, with the same problems and seeds; and the same for a pair in
training."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from longshort import console, interruption
from longshort.evaluation import results
from longshort.evaluation.records import STAGES, TRAINING, CrossPlay, EvaluationFile, ResultRow
from longshort.evaluation.runner import Evaluation
from longshort.evaluation.systems import Model, System, in_order, systems_of
from longshort.evaluation.tables import benchmark_title, results_table, titles
from longshort.evaluation.tasks import Prepared, Task, open_ledger, prepare_benchmarks, read_back, run_task, tasks_of
from longshort.grading.pool import GradingPool
from longshort.pair import Pair
from longshort.preflight.checks import check_contexts, check_output, check_prompts, load_tokenizer
from longshort.recipe.schema import LongShortConfig, parse
from longshort.runs import checkpoint, lock
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import set_aside
from longshort.runs.model_files import read_facts
from longshort.types import LONG, SHORT, LongShortError


def evaluate_recipe(
    config: LongShortConfig, *, name: str = "results", checkpoint_folder: Path | None = None, redo: bool = False
) -> dict[str, Any]:
    """Evaluate every system on every benchmark, print a table, write `eval/<name>.json` and `.md`; return the
    former's content.

    `checkpoint_folder` is the team checkpoint that "trained" means (default: the newest). A benchmark that cannot be
    used is left out and listed under "faults". Raises LongShortError if nothing can be evaluated. Started again, it
    continues where it stopped.
    """
    if not re.fullmatch(r"[\w-]+", name) or name in (STAGES, TRAINING):
        own = f"{STAGES} and {TRAINING} are the run's own"
        raise LongShortError(
            f"the evaluation's name {name!r} becomes a file's name; use letters, digits, - and _ only ({own})"
        )
    check_output(config)
    if checkpoint_folder:
        checkpoint.verify(checkpoint_folder)
    systems, folder = systems_of(config, checkpoint_folder), RunFolder.of(config).evaluations / name
    with lock.hold(folder), GradingPool.of(config.grading) as pool:
        benchmarks, faults = prepare_benchmarks(config, pool)
        check_systems(config, systems, benchmarks)
        greedy = config.eval.greedy
        tasks = [task for system in systems for task in tasks_of(config, folder, system, benchmarks, greedy=greedy)]
        if redo and folder.is_dir() and (old := set_aside(folder, [task.name for task in tasks])):
            console.say(f"the older files are now in {old}")
        interruption.run(_run_all(config, tasks, pool))
        file = _assemble(config, name, tasks, faults)
        content = results.write_results(file, folder.parent)
    _show(file)
    console.say(f"\nwritten to {folder}.json and {folder}.md; every episode is in {folder}/")
    return content


def check_systems(config: LongShortConfig, systems: Sequence[System], benchmarks: Sequence[Prepared]) -> None:
    """Refuse, before an engine starts, models without files, tokenizers that do not fit, prompts that are too long."""
    problems = [problem for benchmark in benchmarks for problem in benchmark.loaded.problems]
    tokenizers: dict[tuple[Model, str], Any] = {}
    for system in systems:
        tags = system.protocol.tags
        recipe = config.model_dump() | {"protocol": config.protocol.model_dump() | {"tags": tags}}
        for role, model in system.models.items():
            if (model, tags) not in tokenizers:
                facts = read_facts(model.folder, f"{system.name}, {role}")
                alone = parse(recipe | {model.origin: recipe[model.origin] | {"model": model.folder}})
                check_contexts(alone, {model.origin: facts})
                tokenizers[model, tags] = load_tokenizer(alone, model.origin, facts.vocabulary)
        played = parse(recipe | {role: recipe[model.origin] for role, model in system.models.items()})
        by_role = {role: tokenizers[model, tags] for role, model in system.models.items()}
        check_prompts(played, problems, system.protocol, by_role)


async def _run_all(config: LongShortConfig, tasks: Sequence[Task], pool: GradingPool) -> None:
    """Run what is not done yet, system by system, in the order that starts the fewest engines."""
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
                began = time.monotonic()
                label = f"[{number}/{len(systems)}] {system.name} on {task.benchmark.loaded.name}, {task.decoding}"
                await run_task(task, policies, pool, ledgers.pop(task.name), config.eval.seed, label)
                console.say(f"{label}: {len(task.order)} episodes in {console.duration(time.monotonic() - began)}")


def _assemble(config: LongShortConfig, name: str, tasks: Sequence[Task], faults: Sequence[str]) -> EvaluationFile:
    """Compute all numbers, from the lines alone."""
    base = config.eval.base
    file = results.open_results(RunFolder.of(config).evaluations, name, _settings(config), fresh=True)
    of_base = {task.key[1:]: read_back(task)[0] for task in tasks if task.system.name == base}
    for task in tasks:
        evaluation = _add(config, file, task)
        if base and task.system.name != base and len(task.problems) > 1:
            file.comparisons += results.compared(task.key, evaluation, base, of_base[task.key[1:]], config.prices)
    file.results.extend(results.overall_rows(file.results))
    file.faults += [*faults, *(results.add_aes(file.results, base) if base else [])]
    if played := config.eval.cross_play:
        file.cross_play = CrossPlay(long=played, short=played)
    return file


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
    """Evaluate a live pair as system `name` of `eval/<evaluation>.json`, in place of an older system of that name.

    Returns its figures on the first benchmark: `accuracy`, `interval`, `tokens`, `cost`, …, `accuracy_greedy`, ….
    `greedy` replaces `eval.greedy`; `benchmarks` replaces those of the recipe.
    """
    prepared = benchmarks or (await asyncio.to_thread(prepare_benchmarks, config, pair.pool))[0]
    models = {role: Model(folder=pair.models[role], origin=role) for role in pair.protocol.roles}
    system = System(name=name, title=title or name, models=models, protocol=pair.protocol)
    folder = RunFolder.of(config).evaluations
    file = results.open_results(folder, evaluation, _settings(config), fresh=False)
    versions = {role: f"{pair.models[role]}, version {policy.version}" for role, policy in pair.policies.items()}
    greedy = config.eval.greedy if greedy is None else greedy
    for task in tasks_of(config, folder / evaluation, system, prepared, greedy=greedy):
        for leftover in task.folder.glob(f"{task.name}.*"):  # made at the same step, but maybe by other weights
            leftover.unlink()
        ledger = open_ledger(config, task, models=versions)
        label = f"evaluating {name} on {task.benchmark.loaded.name}, {task.decoding}"
        await run_task(task, pair.policies, pair.pool, ledger, config.eval.seed, label)
        _add(config, file, task)
    results.write_results(file, folder)
    return results.figures(file, name, prepared[0].loaded.name) or {}


def measured_before(config: LongShortConfig, name: str) -> dict[str, Any] | None:
    """Return what `measure` returned for this stage, or None if it has no row on the recipe's first benchmark."""
    if not config.eval.benchmarks:
        return None
    first = config.eval.benchmarks[0]
    file = results.open_results(RunFolder.of(config).evaluations, STAGES, {}, fresh=False)
    return results.figures(file, name, first if isinstance(first, str) else first.name)


def _add(config: LongShortConfig, file: EvaluationFile, task: Task) -> Evaluation:
    """Add a finished task's row to the file; return its episodes."""
    evaluation, reasons = read_back(task)
    measures = results.measured(evaluation, reasons, task.system.protocol, config.prices)
    system, benchmark, decoding = task.key
    row = ResultRow(system=system, benchmark=benchmark, decoding=decoding, **measures)
    file.add(task.system.described, task.benchmark.described, row)
    return evaluation


def _settings(config: LongShortConfig) -> dict[str, Any]:
    """Return the part of the recipe that an evaluation depends on."""
    role = {"turn_tokens", "instructions", "engine"}
    included = dict.fromkeys(("eval", "protocol", "top_p", "top_k", "grading", "seed"), True) | {
        LONG: role,
        SHORT: role,
    }
    return config.model_dump(mode="json", include=included) | {"prices": config.prices}


def _show(file: EvaluationFile) -> None:
    """Print a table for each benchmark, and what went wrong."""
    names = titles(file.systems)
    for benchmark in dict.fromkeys(row.benchmark for row in file.results):
        rows = [row for row in file.results if row.benchmark == benchmark]
        by_system = {row.system: [each for each in rows if each.system == row.system] for row in rows}
        values = {names[system]: results.with_greedy(of_system) for system, of_system in by_system.items()}
        console.say(results_table(benchmark_title(file, benchmark), values))
    for fault in file.faults:
        console.say(f"! {fault}")
