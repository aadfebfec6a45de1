"""Fine-tuning by SFTTrainer: it learns exactly the rows' masked tokens, packed or not, continues after a stop, with
LoRA too."""

import json

import pytest
import torch

from longshort.coldstart.fine_tuning import deepspeed_settings, make_trainer
from longshort.coldstart.records import RowsLine
from longshort.coldstart.sft import newest_checkpoint
from longshort.runs.layout import RunFolder
from longshort.runs.ledger import read
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support.fine_tuning import Stopped, changed, elsewhere, make_world, run_role


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sft"))


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
