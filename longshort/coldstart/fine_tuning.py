"""TRL's SFTTrainer over rows that are tokenized already: the fine-tuning of the cold start and of the mixture."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longshort.backends.devices import another_cluster
from longshort.coldstart.records import RoleRow
from longshort.recipe.roles import SftConfig
from longshort.recipe.schema import LongShortConfig
from longshort.runs.job_progress import JobProgress
from longshort.types import LongShortError

IGNORED = -100
"""The label of a token outside the loss."""


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[RoleRow],
    settings: SftConfig,
    config: LongShortConfig,
    folder: Path,
    *,
    until: int | None = None,
) -> Any:
    """Return TRL's SFTTrainer over the rows, which it takes as they are.

    `until`: stop with a checkpoint after this optimizer step, having taken the rows in their order. A trainer that
    resumes from that checkpoint begins with the first of its own rows.
    """
    import datasets
    from trl.trainer.sft_trainer import SFTTrainer

    from longshort.backends.learners.lora_learner import lora_config

    if settings.deepspeed:
        _prepare_single_rank(config, folder)
    datasets.disable_progress_bars()
    columns = {"input_ids": [row.token_ids for row in rows], "labels": [labels_of(row) for row in rows]}
    trainer = SFTTrainer(
        model,
        args=_arguments(settings, config, folder, until),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora) if settings.lora else None,
        callbacks=[_watcher(settings, JobProgress(folder), until)],
    )
    if settings.deepspeed and not trainer.is_deepspeed_enabled:
        raise LongShortError(
            "sft.deepspeed is set but the trainer does not use it; check the deepspeed installation (longshort doctor)"
        )
    return trainer


def _arguments(settings: SftConfig, config: LongShortConfig, folder: Path, until: int | None) -> Any:
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
        shuffle_dataset=until is None,
        train_sampling_strategy="random" if until is None else "sequential",
        ignore_data_skip=until is not None,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would show a loss of NaN as 0
        report_to="none",
        disable_tqdm=True,
    )


def _watcher(settings: SftConfig, progress: JobProgress, until: int | None) -> Any:
    """Return a callback that writes the progress file, refuses a loss or gradient that is not finite, and stops."""
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

        def on_step_end(self, arguments, state, control, **_: Any) -> None:
            if state.global_step == until:
                control.should_save = control.should_training_stop = True

    return Watcher()


def labels_of(row: RoleRow) -> list[int]:
    """Return the row's token ids where the role wrote them, IGNORED elsewhere."""
    labels = [IGNORED] * len(row.token_ids)
    for start, stop in row.learned:
        labels[start:stop] = row.token_ids[start:stop]
    return labels


def deepspeed_settings(settings: SftConfig, key: str) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration that `sft.deepspeed` holds or names; refuse an unreadable file and ZeRO-3."""
    value = settings.deepspeed
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LongShortError(
                f"{key}: {settings.deepspeed!r} is no readable JSON file ({error}); correct the path"
            ) from error
    if value and not isinstance(value, dict):
        raise LongShortError(
            f"{key}: {settings.deepspeed!r} holds a {type(value).__name__}; a DeepSpeed configuration is a mapping"
        )
    if value and not find_spec("deepspeed") and not another_cluster():
        raise LongShortError(f"{key} is set, but deepspeed is not installed; pip install -e '.[gpu]', or remove it")
    if value and value.get("zero_optimization", {}).get("stage", 0) == 3:
        raise LongShortError(
            f"{key}: ZeRO-3 needs several processes, sft has one per role; use stage 2 or lower, or LoRA"
        )
    return value


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
