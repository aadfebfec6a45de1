"""A run folder with the rows of a cold start, and the fine-tuning of one role on them in this process."""

import json

from longshort.coldstart.records import RowsLine
from longshort.coldstart.rows import Renderer, role_row
from longshort.coldstart.sft import train_role
from longshort.miniature.world import dialogue, make_problems
from longshort.runs.layout import RunFolder
from longshort.types import ROLES, SHORT
from tests.support import tiny_models

SFT = {
    "max_steps": 6,
    "learning_rate": 2e-3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 256,
    "save_steps": 3,
}


def make_world(folder):
    """Write a run folder with the rows of both roles; return its recipe."""
    import random

    from longshort.miniature.tokenizer import build_tokenizer

    models = tiny_models.make(folder / "models")
    roles = {role: tiny_models.role(models[role]) | {"turn_tokens": 96, "sft": SFT} for role in ROLES}
    recipe = tiny_models.config(
        folder,
        models,
        **roles,
        coldstart={"traces": "miniature:train"},
        protocol={"tags": "special", "max_exchanges": 3, "episode_tokens": 256},
    )
    render = Renderer(recipe, {role: build_tokenizer(role) for role in ROLES})
    target = folder / "run" / "thoughts" / "rows.jsonl"
    target.parent.mkdir(parents=True)
    with target.open("w") as file:
        for number, problem in enumerate(make_problems("train", 24, 0)):
            samples = render.rows(problem, dialogue(problem, random.Random(number), 0.3), False)
            rows = {role: role_row(sample) for role, sample in samples.items()}
            file.write(json.dumps(RowsLine(id=problem.id, outcome="ok", **rows).row()) + "\n")
        file.write(json.dumps({"id": "gone", "outcome": "dropped_before"}) + "\n")
    return recipe


def changed(recipe, role=SHORT, output_dir=None, **sft):
    from longshort.recipe.schema import parse

    section = recipe.role(role).model_dump()
    return parse(
        recipe.model_dump()
        | {role: section | {"sft": section["sft"] | sft}}
        | ({"output_dir": output_dir} if output_dir else {})
    )


class Stopped(Exception):
    pass


def run_role(recipe, role=SHORT, stop_after=None, monkeypatch=None):
    """`train_role` in this process; with `stop_after` it dies in that step."""
    import transformers

    from longshort.runs.model_files import identity

    if stop_after is not None:
        original = transformers.Trainer.training_step

        def training_step(self, *arguments, **options):
            if self.state.global_step == stop_after:
                raise Stopped
            return original(self, *arguments, **options)

        monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    work, target = RunFolder.of(recipe).thoughts / f"sft.{role}", RunFolder.of(recipe).cold(role)
    return (
        train_role(recipe, role, {"base": identity(recipe.role(role).model, "x")}, work, target),
        work,
        target,
    )


def elsewhere(recipe, folder, role=SHORT, **sft):
    """The same rows in another run folder."""
    import shutil

    shutil.copytree(RunFolder.of(recipe).thoughts, folder / "thoughts", ignore=shutil.ignore_patterns("sft*"))
    return changed(recipe, role, output_dir=str(folder), **sft)
