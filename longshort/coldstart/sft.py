"""The step sft: fine-tunes each role on its rows, with a loss on what the role wrote and on nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends.jobs import side_by_side
from longshort.coldstart.fine_tuning import deepspeed_settings, make_trainer
from longshort.coldstart.pipeline import check_complete
from longshort.coldstart.records import RowsLine
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import file_digest, refuse_changes, replace_folder, write_json
from longshort.runs.layout import RunFolder, base_model
from longshort.runs.ledger import read
from longshort.runs.model_files import find_folder, identity
from longshort.types import ROLES

ADAPTER_RATE = 5e-5
"""Learning rates for adapters are about ten times those of a whole model, whose usual ones end at 1e-5."""


async def fine_tune(config: LongShortConfig) -> dict[str, str]:
    """Train both roles side by side, each in its own process; skip a role that is done. Returns the model folders."""
    run = RunFolder.of(config)
    check_complete(run.thoughts, RowsLine.step)
    jobs, folders = {}, {}
    for role in ROLES:
        folder, made_from = run.thoughts / f"sft.{role}", _made_from(config, role)
        if _is_done(folder / "manifest.json", made_from) and run.cold(role).is_dir():
            console.say(f"  sft        {role}: done before, skipped")
            continue
        folders[role] = folder
        jobs[role] = (train_role, config, role, made_from, folder, run.cold(role))
    for advice in filter(None, (rate_advice(config, role) for role in jobs)):
        console.say(f"  sft        {advice}")
    if jobs:
        console.say(f"  sft        fine-tune {' and '.join(jobs)} on {run.thoughts}/rows.jsonl")
        for result in await side_by_side(jobs, folders, gpus=config.learner_gpus):
            console.say(
                f"  sft        {result['role']}: {result['steps']} steps, loss {result['first_loss']:.3f} -> "
                f"{result['last_loss']:.3f}, {console.duration(result['seconds'])}"
            )
    return {role: str(run.cold(role)) for role in ROLES}


def rate_advice(config: LongShortConfig, role: str) -> str:
    """Return a sentence if an adapter is to be trained at a rate that suits a whole model."""
    settings = config.role(role).sft
    if not settings.lora or settings.learning_rate >= ADAPTER_RATE:
        return ""
    return (
        f"{role}.sft.learning_rate is {settings.learning_rate:g}: an adapter (lora) usually learns too little below "
        f"{ADAPTER_RATE:g}"
    )


def _made_from(config: LongShortConfig, role: str) -> dict[str, Any]:
    """Return everything that the trained weights depend on."""
    settings = config.role(role).sft
    return {
        "base": identity(base_model(config, role), f"{role}.model"),
        "rows": file_digest(RunFolder.of(config).thoughts / "rows.jsonl"),
        "sft": settings.model_dump(mode="json", exclude={"save_steps", "micro_batch_size", "gradient_checkpointing"}),
        "deepspeed": deepspeed_settings(settings, f"{role}.sft.deepspeed"),
        "seed": config.seed,
        "dtype": config.dtype,
    }


def _is_done(manifest: Path, made_from: dict[str, Any]) -> bool:
    """Whether this training is complete; LongShortError when it was begun with other settings, rows or models."""
    if not manifest.is_file():
        return False
    known = json.loads(manifest.read_text())
    before = {key: known.get(key) for key in made_from}
    refuse_changes(manifest, before, made_from, "train again with --redo sft")
    return known["complete"]


def train_role(
    config: LongShortConfig, role: str, made_from: dict[str, Any], folder: Path, target: Path
) -> dict[str, Any]:
    """Train one role in this process, from the newest whole checkpoint in `folder`; save the model in `target`.

    With LoRA the adapter stays in `folder`/adapter and `target` gets the merged model: later stages need a whole one.
    """
    from transformers import AutoTokenizer

    from longshort.backends.learners.learner_model import load_model

    settings = config.role(role).sft
    write_json(folder / "manifest.json", made_from | {"complete": False})
    lines = map(RowsLine.model_validate, read(RunFolder.of(config).thoughts / "rows.jsonl"))
    rows = [line.of(role) for line in lines if line.continues]
    base = str(find_folder(base_model(config, role), f"{role}.model"))
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    trainer = make_trainer(load_model(base), tokenizer, rows, settings, config, folder)
    checkpoint = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora:
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    replace_folder(partial, target)
    result = {
        "role": role,
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": sum(entry.get("train_runtime", 0.0) for entry in trainer.state.log_history),
    }
    write_json(folder / "manifest.json", made_from | result | {"complete": True, "losses": losses})
    return result


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint (the trainer's state is its last file); delete unfinished ones."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
