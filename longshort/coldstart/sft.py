"""Supervised fine-tuning of a role on its rows, by TRL's SFTTrainer: loss on what the role wrote and on nothing else."""

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
from longshort.coldstart.pipeline import folder_of
from longshort.coldstart.records import OK
from longshort.recipe.roles import SftConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.job_progress import JobProgress
from longshort.runs.layout import base_model
from longshort.runs.ledger import Row, digest, read
from longshort.runs.model_files import find_folder, identity
from longshort.types import ROLES, LongShortError

IGNORED = -100
"""The label of a token that is no part of the loss."""


def model_folder(config: LongShortConfig, role: str) -> Path:
    """Where the fine-tuned model of a role goes."""
    return Path(config.output_dir) / "models" / f"cold-{role}"


async def fine_tune(config: LongShortConfig) -> dict[str, str]:
    """Train both roles side by side, each in a process of its own; returns their model folders. A role that is done is skipped."""
    folder = folder_of(config)
    manifest = folder / "rows.manifest.json"
    if not manifest.is_file() or not json.loads(manifest.read_text())["complete"]:
        raise LongShortError(
            f"{folder}/rows.jsonl is not complete; run `longshort coldstart` (or its steps, up to `longshort rows`) first"
        )
    jobs, folders = {}, {}
    for role in ROLES:
        made_from = {
            "base": identity(base_model(config, role), f"{role}.model"),
            "rows": digest(folder / "rows.jsonl"),
            "sft": config.role(role).sft.model_dump(
                mode="json", exclude={"save_steps", "micro_batch_size", "gradient_checkpointing"}
            ),
            "deepspeed": deepspeed_settings(config.role(role).sft, f"{role}.sft.deepspeed"),
            "seed": config.seed,
            "dtype": config.dtype,
        }
        if _is_done(folder / f"sft.{role}", made_from) and model_folder(config, role).is_dir():
            console.say(f"  sft        {role}: done before, skipped")
            continue
        folders[role] = folder / f"sft.{role}"
        jobs[role] = (train_role, config, role, made_from, str(folders[role]), str(model_folder(config, role)))
    if jobs:
        console.say(f"  sft        fine-tune {' and '.join(jobs)} on {folder}/rows.jsonl")
        for result in await side_by_side(jobs, folders, gpus=config.learner_gpus):
            console.say(
                f"  sft        {result['role']}: {result['steps']} steps, loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}, "
                f"{console.duration(result['seconds'])}"
            )
    return {role: str(model_folder(config, role)) for role in ROLES}


def _is_done(work: Path, made_from: dict[str, Any]) -> bool:
    """Whether this very training is complete; LongShortError when what stands there was made from something else."""
    manifest = work / "manifest.json"
    if not manifest.is_file():
        return False
    known = json.loads(manifest.read_text())
    changed = [
        f"{key} was {known.get(key)!r}, now {value!r}" for key, value in made_from.items() if known.get(key) != value
    ]
    if changed:
        raise LongShortError(
            f"{manifest}: trained on something else ({'; '.join(changed)}); train again with --redo sft"
        )
    return known["complete"]


def train_role(config: LongShortConfig, role: str, made_from: dict[str, Any], work: str, target: str) -> dict[str, Any]:
    """Train one role in this process, continuing from the newest whole checkpoint in `work`; save the model with tokenizer in `target`.

    With LoRA the adapter stays in `work`/adapter and the merged model goes to `target`: what follows needs a whole model.
    """
    from transformers import AutoTokenizer

    from longshort.backends.learners.learner_model import load_model

    folder, settings = Path(work), config.role(role).sft
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder, made_from | {"complete": False})
    rows = [row[role] for row in read(folder_of(config) / "rows.jsonl") if row["outcome"] == OK]
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
    _save(model, tokenizer, Path(target))
    seconds = sum(entry.get("train_runtime", 0.0) for entry in trainer.state.log_history)
    result = {
        "role": role,
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds": seconds,
    }
    _record(folder, made_from | result | {"complete": True, "losses": losses})
    return result


def make_trainer(model, tokenizer, rows: Sequence[Row], settings: SftConfig, config: LongShortConfig, folder: Path):
    """TRL's SFTTrainer over rows of `token_ids` and `learned` spans, which it takes as they are: nothing is tokenised again."""
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Report(TrainerCallback):
        """Keeps the progress file up to date, and stops at the first loss or gradient that is no number."""

        def on_log(self, arguments, state, control, logs=None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
                raise LongShortError(
                    f"fine-tuning step {state.global_step}: loss {logs['loss']}, gradient norm {logs.get('grad_norm')} at learning rate "
                    f"{logs['learning_rate']:g}; lower sft.learning_rate ({settings.learning_rate:g}) or look for broken rows"
                )
            progress(state.global_step, state.max_steps, logs["loss"])

    if settings.deepspeed:
        _alone_in_its_world(config, folder)
    datasets.disable_progress_bars()
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        max_length=settings.max_length,
        packing=settings.packing,
        gradient_checkpointing=settings.gradient_checkpointing,
        deepspeed=settings.deepspeed,
        bf16=config.dtype == "bfloat16",
        use_cpu=not config.learner_gpus
        and not settings.deepspeed,  # with use_cpu accelerate leaves DeepSpeed out and says nothing
        ddp_backend="gloo" if settings.deepspeed and not config.learner_gpus else None,
        seed=config.seed,
        shuffle_dataset=True,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # would show a loss that is no number as 0
        report_to="none",
        disable_tqdm=True,
    )
    progress = JobProgress(folder)
    data = datasets.Dataset.from_dict(
        {"input_ids": [row["token_ids"] for row in rows], "labels": list(map(labels_of, rows))}
    )
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=_lora(settings),
        callbacks=[Report()],
    )
    if settings.deepspeed and not trainer.is_deepspeed_enabled:
        raise LongShortError(
            "sft.deepspeed is set but the trainer does not use it; check the deepspeed installation (longshort doctor)"
        )
    return trainer


def _lora(settings: SftConfig):
    """peft's configuration of the recipe's adapters; None for full fine-tuning."""
    from longshort.backends.learners.lora_learner import lora_config

    return lora_config(settings.lora) if settings.lora else None


def labels_of(row: Row) -> list[int]:
    """The row's token ids where the role wrote them, IGNORED elsewhere."""
    labels = [IGNORED] * len(row["token_ids"])
    for start, stop in row["learned"]:
        labels[start:stop] = row["token_ids"][start:stop]
    return labels


def deepspeed_settings(settings: SftConfig, key: str) -> dict[str, Any] | None:
    """The DeepSpeed configuration that `sft.deepspeed` holds or names; LongShortError when it cannot be read, or asks for ZeRO-3."""
    found = settings.deepspeed
    if isinstance(found, str):
        try:
            found = json.loads(Path(found).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LongShortError(
                f"{key}: {settings.deepspeed!r} is no readable JSON file ({error}); correct the path"
            ) from error
    if found and found.get("zero_optimization", {}).get("stage", 0) == 3:
        raise LongShortError(
            f"{key}: ZeRO-3 has nothing to share out in the one process per role of `sft`; use stage 2 or lower, or LoRA"
        )
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (the trainer's state is its last file); others are deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _alone_in_its_world(config: LongShortConfig, folder: Path) -> None:
    """DeepSpeed wants to be told that it is the only rank; on a CPU also that this is a CPU, where it compiles a part of itself first.

    What it compiles goes into the run's own folder: in the shared one, the lock of a run that was killed meanwhile blocks all others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if not config.learner_gpus:
        os.environ |= {
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        }


def _save(model, tokenizer, target: Path) -> None:
    """Write a model folder that is either whole or not there."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def _record(folder: Path, manifest: dict[str, Any]) -> None:
    partial = folder / "manifest.tmp"
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(folder / "manifest.json")
