"""Supervised fine-tuning of a role on its rows, by TRL's SFTTrainer: loss on what the role wrote and on nothing
else."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longshort import console
from longshort.backends.jobs import side_by_side
from longshort.coldstart.pipeline import check_complete
from longshort.coldstart.records import RoleRow, RowsLine
from longshort.recipe.roles import SftConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import file_digest, refuse_changes, replace_folder, write_json
from longshort.runs.job_progress import JobProgress
from longshort.runs.layout import RunFolder, base_model
from longshort.runs.ledger import read
from longshort.runs.model_files import find_folder, identity
from longshort.types import ROLES, LongShortError

IGNORED = -100
"""The label of a token outside the loss."""


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
    if jobs:
        console.say(f"  sft        fine-tune {' and '.join(jobs)} on {run.thoughts}/rows.jsonl")
        for result in await side_by_side(jobs, folders, gpus=config.learner_gpus):
            console.say(
                f"  sft        {result['role']}: {result['steps']} steps, loss {result['first_loss']:.3f} -> "
                f"{result['last_loss']:.3f}, {console.duration(result['seconds'])}"
            )
    return {role: str(run.cold(role)) for role in ROLES}


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
    """Train one role in this process from the newest whole checkpoint in `folder`; save model and tokenizer in
    `target`.

    With LoRA the adapter stays in `folder`/adapter and the merged model goes to `target`: what follows needs a whole
    model.
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


def make_trainer(
    model: Any, tokenizer: Any, rows: Sequence[RoleRow], settings: SftConfig, config: LongShortConfig, folder: Path
) -> Any:
    """Return TRL's SFTTrainer over tokenized rows, which it takes as they are."""
    import datasets
    from trl.trainer.sft_trainer import SFTTrainer

    from longshort.backends.learners.lora_learner import lora_config

    if settings.deepspeed:
        _prepare_single_rank(config, folder)
    datasets.disable_progress_bars()
    columns = {"input_ids": [row.token_ids for row in rows], "labels": [labels_of(row) for row in rows]}
    trainer = SFTTrainer(
        model,
        args=_arguments(settings, config, folder),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora) if settings.lora else None,
        callbacks=[_watcher(settings, JobProgress(folder))],
    )
    if settings.deepspeed and not trainer.is_deepspeed_enabled:
        raise LongShortError(
            "sft.deepspeed is set but the trainer does not use it; check the deepspeed installation (longshort doctor)"
        )
    return trainer


def _arguments(settings: SftConfig, config: LongShortConfig, folder: Path) -> Any:
    from trl.trainer.sft_config import SFTConfig

    on_cpu = not config.learner_gpus
    return SFTConfig(
        output_dir=str(folder),
        **settings.model_dump(exclude={"warmup_ratio", "batch_size", "micro_batch_size", "save_steps", "lora"}),
        warmup_steps=settings.warmup_ratio,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        bf16=config.dtype == "bfloat16",
        use_cpu=on_cpu and not settings.deepspeed,  # with use_cpu, accelerate silently leaves DeepSpeed out
        ddp_backend="gloo" if settings.deepspeed and on_cpu else None,
        seed=config.seed,
        shuffle_dataset=True,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would show a loss of NaN as 0
        report_to="none",
        disable_tqdm=True,
    )


def _watcher(settings: SftConfig, progress: JobProgress) -> Any:
    """Return a callback that keeps the progress file up to date and stops at the first loss or gradient that is not
    finite."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_log(self, arguments, state, control, logs=None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
                raise LongShortError(
                    f"fine-tuning step {state.global_step}: loss {logs['loss']}, gradient norm {logs.get('grad_norm')} "
                    f"at learning rate {logs['learning_rate']:g}; lower sft.learning_rate "
                    f"({settings.learning_rate:g}) or look for broken rows"
                )
            progress(state.global_step, state.max_steps, logs["loss"])

    return Watcher()


def labels_of(row: RoleRow) -> list[int]:
    """Return the row's token ids where the role wrote them, IGNORED elsewhere."""
    labels = [IGNORED] * len(row.token_ids)
    for start, stop in row.learned:
        labels[start:stop] = row.token_ids[start:stop]
    return labels


def deepspeed_settings(settings: SftConfig, key: str) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration that `sft.deepspeed` holds or names; LongShortError if it is unreadable or
    ZeRO-3."""
    value = settings.deepspeed
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LongShortError(
                f"{key}: {settings.deepspeed!r} is no readable JSON file ({error}); correct the path"
            ) from error
    if value and value.get("zero_optimization", {}).get("stage", 0) == 3:
        raise LongShortError(
            f"{key}: ZeRO-3 needs several processes, sft has one per role; use stage 2 or lower, or LoRA"
        )
    return value


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end (the trainer's state is its last file); delete
    unfinished ones."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _prepare_single_rank(config: LongShortConfig, folder: Path) -> None:
    """Set DeepSpeed's environment for one rank, on a CPU where the learners have no GPU.

    On a CPU it first compiles a part of itself, into the run's own folder: in the shared one, the lock of a killed run
    blocks all others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if not config.learner_gpus:
        extensions = str(folder / "extensions")
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCH_EXTENSIONS_DIR": extensions}
