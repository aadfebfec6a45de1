"""`longshort coldstart`: from a file of long traces to two models that speak the long and the short style.

chunk -> rollouts -> importance -> partition -> rewrite -> rows -> sft -> thoughts.html
"""

from __future__ import annotations

from pathlib import Path

from longshort import console
from longshort.backends import ray_cluster
from longshort.coldstart.generators import rollout_generator
from longshort.coldstart.partition import PARTITIONS
from longshort.coldstart.pipeline import STEPS, folder_of, run_steps
from longshort.coldstart.rewriting import REWRITERS
from longshort.coldstart.sft import deepspeed_settings, fine_tune
from longshort.data import READERS
from longshort.preflight.checks import check_output
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.layout import base_model
from longshort.runs.ledger import set_aside
from longshort.runs.model_files import read_facts
from longshort.types import ROLES, LongShortError

SFT = "sft"


async def cold_start(config: LongShortConfig, *, only: str | None = None, redo: str | None = None) -> dict[str, str]:
    """Do all steps, or `only` one; what is done is skipped. `redo` first sets aside what that step and all behind it made.

    Returns the model folder of each role, empty when `only` is another step than sft.
    """
    check(config, only)
    folder, everything = folder_of(config), [*STEPS, SFT]
    if redo and (kept := set_aside(folder, everything[everything.index(redo) :])):
        console.say(f"  redo       {redo} and what follows; what they made is kept in {kept}")
    undo = ray_cluster.start(config) if only in (None, "rollouts", SFT) else lambda: None
    try:
        await run_steps(config, [step for step in STEPS if only in (None, step)])
        models = await fine_tune(config) if only in (None, SFT) else {}
    finally:
        undo()
    return models


def check(config: LongShortConfig, only: str | None = None) -> None:
    """Refuse, before anything starts, a recipe that cannot be carried out: what is missing, and under which key."""
    section = config.coldstart
    if section is None:
        raise LongShortError(
            "the recipe has no section `coldstart:`; name at least coldstart.traces (a file of long traces)"
        )
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
    asks = {"chunk": section.chunk.splitter, "rewrite": section.rewrite.rewriter}
    for step, name in asks.items():
        if name == "instruct" and only in (None, step):
            if not section.instruct.model:
                key = {"chunk": "chunk.splitter", "rewrite": "rewrite.rewriter"}[step]
                raise LongShortError(
                    f"coldstart.{key} is 'instruct' but coldstart.instruct.model is empty; name an instruct model, or choose another {key}"
                )
            read_facts(section.instruct.model, "coldstart.instruct.model")
    if only in (None, "rollouts"):
        read_facts(rollout_generator(config).model, "coldstart.rollout.model")
    for role in ROLES if only in (None, "rows", SFT) else ():
        read_facts(base_model(config, role), f"{role}.model")
        deepspeed_settings(config.role(role).sft, f"{role}.sft.deepspeed")
