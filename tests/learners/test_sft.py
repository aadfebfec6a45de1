"""Fine-tuning by SFTTrainer: it learns exactly the rows' masked tokens, packed or not, continues after a stop, with
LoRA too."""

import json
import subprocess
import sys

import pytest
import torch

from longshort.coldstart.fine_tuning import deepspeed_settings, make_trainer
from longshort.coldstart.records import RowsLine
from longshort.coldstart.rows import Renderer, role_row
from longshort.coldstart.sft import newest_checkpoint, train_role
from longshort.miniature.world import dialogue, make_problems
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import read
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models

pytestmark = pytest.mark.engine
SFT = {
    "max_steps": 6,
    "learning_rate": 2e-3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 256,
    "save_steps": 3,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run folder with both roles' rows, and the recipe that goes with it."""
    import random

    from longshort.miniature.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("sft")
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


def rows_of(recipe, role):
    lines = map(RowsLine.model_validate, read(RunFolder.of(recipe).thoughts / "rows.jsonl"))
    return [line.of(role) for line in lines if line.continues]


def trainer_of(recipe, role, folder):
    from transformers import AutoTokenizer

    from longshort.backends.learners.learner_model import load_model

    model = recipe.role(role).model
    return make_trainer(
        load_model(model),
        AutoTokenizer.from_pretrained(model),
        rows_of(recipe, role),
        recipe.role(role).sft,
        recipe,
        folder,
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_over_what_the_role_wrote_and_nothing_else(world, tmp_path, role, packing):
    """Each batch, against the mean negative log-probability of the same rows one by one, the model's own."""
    recipe = changed(world, role, packing=packing)
    rows, trainer = rows_of(recipe, role), trainer_of(recipe, role, tmp_path)
    alone = {}
    for row in rows:
        ids = torch.tensor([row.token_ids])
        with torch.no_grad():
            logprobs = trainer.model(ids).logits.float().log_softmax(-1)
        own = [at for start, stop in row.learned for at in range(start, stop)]
        picked = [logprobs[0, at - 1, row.token_ids[at]].item() for at in own]
        alone[row.token_ids] = picked
    learned = 0
    for batch in trainer.get_train_dataloader():
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        found = [value for row, values in alone.items() if _holds(batch, row) for value in values]
        assert loss == pytest.approx(-sum(found) / len(found), rel=2e-4)
        learned += (batch["labels"] != -100).sum().item()
    assert learned == sum(stop - start for row in rows for start, stop in row.learned)


def _holds(batch, row) -> bool:
    ids = "," + ",".join(map(str, batch["input_ids"].flatten().tolist())) + ","
    return "," + ",".join(map(str, row)) + "," in ids


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


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_training_that_was_stopped_continues_to_the_same_weights(world, tmp_path, monkeypatch):
    result, _, whole = run_role(elsewhere(world, tmp_path / "whole"))
    assert result["steps"] == 6 and result["last_loss"] < result["first_loss"]
    stopped = elsewhere(world, tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        run_role(stopped, stop_after=4, monkeypatch=patch)
    work = tmp_path / "stopped" / "thoughts" / f"sft.{SHORT}"
    assert newest_checkpoint(work).name == "checkpoint-3" and not (tmp_path / "stopped" / "models").exists()
    (work / "checkpoint-5").mkdir()  # a checkpoint that a kill left half-written
    again, _, continued = run_role(stopped)
    assert again["steps"] == 6 and not (work / "checkpoint-5").exists()
    one, two = weights(whole), weights(continued)
    assert one.keys() == two.keys() and max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    assert json.loads((work / "manifest.json").read_text())["complete"]


def test_lora_keeps_the_adapter_and_saves_a_merged_model(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = elsewhere(world, tmp_path / "lora", lora={"r": 4})
    _, work, target = run_role(recipe)
    base, merged = recipe.role(SHORT).model, AutoModelForCausalLM.from_pretrained(target)
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), work / "adapter")
    ids = torch.tensor([rows_of(world, SHORT)[0].token_ids])
    with torch.no_grad():
        ours, theirs, before = (
            merged(ids).logits,
            with_adapter(ids).logits,
            AutoModelForCausalLM.from_pretrained(base)(ids).logits,
        )
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, before, atol=1e-2)


def test_a_loss_that_is_no_number_is_refused(world, tmp_path):
    with pytest.raises(
        LongShortError,
        match=r"fine-tuning step \d: loss .*gradient norm nan at learning rate .*lower sft.learning_rate",
    ):
        run_role(elsewhere(world, tmp_path / "hot", learning_rate=1e12))


@pytest.mark.slow
def test_deepspeed_zero_2_reaches_the_same_loss(world, tmp_path):
    """One rank on the CPU, in a process of its own as in a run: the setting is passed through and takes effect."""
    plain, _, _ = run_role(elsewhere(world, tmp_path / "plain"))
    zero = {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    batch = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    recipe = elsewhere(world, tmp_path / "deepspeed", deepspeed=zero | batch | {"gradient_clipping": 1.0})
    from longshort.recipe.schema import dump

    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    script = (
        "import json, sys; from longshort.recipe.schema import load; from tests.learners.test_sft import run_role; "
        "result, *_ = run_role(load(sys.argv[1])); import deepspeed.comm as dist; "
        "print(json.dumps(result), dist.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "recipe.yaml")], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result, backend = done.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert backend == "gloo" and json.loads(result)["last_loss"] == pytest.approx(plain["last_loss"], rel=0.02)


def test_deepspeed_settings_that_cannot_work_are_refused(world, tmp_path):
    section = world.short.sft
    with pytest.raises(LongShortError, match=r"short.sft.deepspeed: 'zero.json' is no readable JSON file"):
        deepspeed_settings(section.model_copy(update={"deepspeed": "zero.json"}), "short.sft.deepspeed")
    with pytest.raises(LongShortError, match="ZeRO-3 needs several processes"):
        deepspeed_settings(section.model_copy(update={"deepspeed": {"zero_optimization": {"stage": 3}}}), "x")
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert deepspeed_settings(section.model_copy(update={"deepspeed": str(tmp_path / "zero.json")}), "x")[
        "zero_optimization"
    ] == {"stage": 1}


def test_roles_with_different_tokenizers_learn_their_own_ids(world):
    long, short = (rows_of(world, role) for role in (LONG, SHORT))
    assert len(long) == len(short) == 24
    assert all(row.token_ids != other.token_ids for row, other in zip(long, short, strict=True))
