"""`longshort coldstart`: from a file of long traces to two models that speak the long and the short style.

chunk -> rollouts -> importance -> partition -> rewrite -> rows -> sft -> thoughts.html
"""

from __future__ import annotations

from longshort import console
from longshort.backends import ray_cluster
from longshort.config import LongShortConfig
from longshort.thoughts.ledger import forget
from longshort.thoughts.pipeline import STEPS, folder_of, run_steps
from longshort.thoughts.sft import fine_tune
from longshort.types import LongShortError

SFT = "sft"


async def cold_start(config: LongShortConfig, *, only: str | None = None, redo: str | None = None) -> dict[str, str]:
    """Do all steps, or `only` one; what is done is skipped. `redo` first forgets that step's result and those of all behind it.

    Returns the model folder of each role, empty when `only` is another step than sft.
    """
    if config.coldstart is None:
        raise LongShortError("the recipe has no section `coldstart:`; name at least coldstart.traces (a file of long traces)")
    everything = [*STEPS, SFT]
    if redo:
        gone = everything[everything.index(redo) :]
        console.say(f"  forgetting {', '.join(gone)}")
        forget(folder_of(config), gone)
    undo = ray_cluster.start(config)
    try:
        await run_steps(config, [step for step in STEPS if only in (None, step)])
        return await fine_tune(config) if only in (None, SFT) else {}
    finally:
        undo()
