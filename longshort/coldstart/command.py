"""`longshort coldstart`: from a file of long traces to two models that speak the long and the short style.

chunk -> rollouts -> importance -> partition -> rewrite -> rows -> sft
"""

from __future__ import annotations

from pathlib import Path

from longshort import console
from longshort.backends import ray_cluster
from longshort.coldstart.fine_tuning import deepspeed_settings
from longshort.coldstart.generators import rollout_generator
from longshort.coldstart.partition import PARTITIONS
from longshort.coldstart.pipeline import run_steps, section_of
from longshort.coldstart.rewriting import REWRITERS
from longshort.coldstart.sft import fine_tune
from longshort.coldstart.step_names import SFT, STEP_TITLES
from longshort.coldstart.steps import STEPS
from longshort.coldstart.traces import check_source
from longshort.data import READERS
from longshort.preflight.checks import check_adapters, check_context, check_engine, check_output
from longshort.recipe.coldstart import GeneratorConfig
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.layout import RunFolder, base_model
from longshort.runs.ledger import set_aside
from longshort.runs.model_files import read_facts
from longshort.types import ROLES, SHORT, LongShortError


async def cold_start(config: LongShortConfig, *, only: str | None = None, redo: str | None = None) -> dict[str, str]:
    """Do all steps, or `only` one; skip what is done. `redo` first sets aside what that step and all later ones made.

    Returns the model folder of each role, empty when `only` is another step than sft.
    """
    check(config, only)
    names = list(STEP_TITLES)
    if redo and (kept := set_aside(RunFolder.of(config).thoughts, names[names.index(redo) :])):
        console.say(f"  redo       {redo} and what follows; what they made is kept in {kept}")
    undo = ray_cluster.start(config) if only in (None, "rollouts", SFT) else lambda: None
    try:
        await run_steps(config, [step for name, step in STEPS.items() if only in (None, name)])
        return await fine_tune(config) if only in (None, SFT) else {}
    finally:
        undo()


def check(config: LongShortConfig, only: str | None = None, *, bases_made: bool = True) -> None:
    """Refuse, before anything starts, a recipe that cannot work; say what is missing, and under which key.

    `bases_made` is False while the miniature's base training is still to come: then its models are not looked for.
    """
    section = section_of(config)
    check_output(config)
    lookup(PARTITIONS, section.partition.rule, "coldstart.partition.rule")
    lookup(REWRITERS, section.rewrite.rewriter, "coldstart.rewrite.rewriter")
    if config.protocol.name != "long_short":
        raise LongShortError(
            f"protocol.name is {config.protocol.name!r}; the cold start makes dialogues of the protocol long_short"
        )
    source = Path(section.traces)
    if (source.suffix in READERS or source.is_absolute()) and not source.exists():
        raise LongShortError(
            f"coldstart.traces: there is no {section.traces!r}, seen from {Path.cwd()}; correct the path"
        )
    choices = {"chunk.splitter": section.chunk.splitter, "rewrite.rewriter": section.rewrite.rewriter}
    for key, choice in choices.items():
        if choice == "instruct" and only in (None, key.partition(".")[0]):
            if not section.instruct.model:
                raise LongShortError(
                    f"coldstart.{key} is 'instruct' but coldstart.instruct.model is empty; name an instruct model, "
                    f"or choose another {key}"
                )
            _check_generator(section.instruct, "coldstart.instruct")
    made = [role for role in ROLES if config.role(role).model or bases_made]
    if only in (None, "rollouts") and (section.rollout or SHORT in made):
        _check_generator(rollout_generator(config), "coldstart.rollout" if section.rollout else SHORT)
    for role in ROLES if only in (None, "rows", SFT) else ():
        if role in made:
            read_facts(base_model(config, role), f"{role}.model")
        deepspeed_settings(config.role(role).sft, f"{role}.sft.deepspeed")
    check_adapters(config)
    if only in (None, "chunk"):
        check_source(section.traces, "coldstart.traces")


def _check_generator(generator: GeneratorConfig, key: str) -> None:
    check_engine(generator.engine, f"{key}.engine")
    check_context(generator.engine, read_facts(generator.model, f"{key}.model"), f"{key}.engine")
