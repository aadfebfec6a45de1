"""A mixture's training: optimizer steps by TRL in their own process, and their weights on an engine, proven."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from transformers.utils.logging import disable_progress_bar

from longshort.backends.jobs import side_by_side
from longshort.backends.learners.learner_model import load_model
from longshort.coldstart.fine_tuning import make_trainer
from longshort.coldstart.records import RoleRow
from longshort.coldstart.rows import role_row
from longshort.mixture.inputs import MixtureInputs, as_sample
from longshort.mixture.reweighting import Drawn, ShortLong, draw
from longshort.pair import FrozenPolicy, canary_gap, proven
from longshort.recipe.schema import LongShortConfig

NO_PART_OF_THE_MODEL = ("*.pt", "*.pth", "training_args.bin", "trainer_state.json")
"""Files of a training checkpoint that only its continuation needs."""


async def learn(
    inputs: MixtureInputs, steps: range, drawn: Drawn, ratios: ShortLong, resume: Path | None, scratch: Path
) -> tuple[Path, Drawn, float]:
    """Take these optimizer steps on examples drawn with `ratios`, continuing from the checkpoint `resume`.

    Returns the new checkpoint, how many examples of each source are drawn by now, and the mean loss.
    """
    sizes, settings, rows = (len(inputs.traces[0]), len(inputs.traces[1])), inputs.settings, []
    for step in steps:
        picks, drawn = draw(sizes, drawn, ratios, settings.batch_size, inputs.config.seed, step)
        traces = [inputs.traces[source][row] for source, row in picks]
        rows += [role_row(as_sample(trace, inputs.protocol, inputs.tokenizer)) for trace in traces]
    bare = replace(inputs, traces=((), ()), dev=())
    job = (take_steps, inputs.config, bare, rows, steps, resume, scratch)
    role, gpus = settings.role, inputs.config.learner_gpus
    (loss,) = await side_by_side({role: job}, {role: scratch}, gpus=gpus, report=False)
    return scratch / f"checkpoint-{steps.stop}", drawn, loss


def take_steps(
    config: LongShortConfig,
    inputs: MixtureInputs,
    rows: Sequence[RoleRow],
    steps: range,
    resume: Path | None,
    scratch: Path,
) -> float:
    """Train in this process up to `steps.stop`, write scratch/checkpoint-<stop> and return the mean loss."""
    model, end = load_model(inputs.start), steps.stop
    trainer = make_trainer(model, inputs.tokenizer, rows, inputs.sft, config, scratch, until=end)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    log = (entry for entry in trainer.state.log_history if "loss" in entry)
    return fmean(entry["loss"] for entry in log if entry["step"] > steps.start)


async def publish(inputs: MixtureInputs, policy: FrozenPolicy, folder: Path, version: int) -> None:
    """Give the engine the weights of a checkpoint, and prove that it samples from them."""
    disable_progress_bar()
    model = await asyncio.to_thread(load_model, folder)
    dtype = getattr(torch, inputs.config.dtype)
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    await policy.engine.receive(lambda actor: actor.between_steps.remote("load_weights", weights, version))
    policy.version = version

    async def score(prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0].float() / temperature
        logprobs = logits[len(prompt_ids) - 1 : -1].log_softmax(-1)
        return logprobs.gather(-1, torch.tensor(token_ids)[:, None])[:, 0].tolist()

    await proven(policy.engine, lambda: canary_gap(policy, score, inputs.config))
