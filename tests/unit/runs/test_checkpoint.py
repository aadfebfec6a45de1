"""A checkpoint is there whole or not at all, and nothing damaged or foreign is ever loaded."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from longshort.runs import checkpoint, sealed
from longshort.runs.files import file_digest
from longshort.trainer import LongShortTrainer
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models


def save(output_dir, step, content="weights"):
    folder = checkpoint.begin(output_dir, step)
    (folder / "long").mkdir()
    (folder / "long" / "model.safetensors").write_text(content)
    (folder / "state" / "x.json").write_text("{}")
    return checkpoint.commit(folder, {"step": step})


def test_a_committed_checkpoint_verifies_and_lists_its_files(tmp_path):
    facts = checkpoint.verify(save(tmp_path, 5))
    assert facts["step"] == 5 and sorted(facts["files"]) == ["long/model.safetensors", "state/x.json"]


def test_an_unfinished_save_is_invisible_and_swept_by_the_next(tmp_path):
    save(tmp_path, 5)
    (checkpoint.begin(tmp_path, 6) / "half").write_text("…")
    assert checkpoint.latest(tmp_path).name == "checkpoint-5"
    save(tmp_path, 7)
    assert not list(tmp_path.glob(".checkpoint-*"))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "manifest.json").unlink(), "checkpoint-5 is not a finished longshort checkpoint"),
        (lambda f: (f / "manifest.json").write_text('{"format'), "manifest.json is damaged"),
        (
            lambda f: (f / "manifest.json").write_text(json.dumps({"format": "other-2"})),
            "foreign checkpoint: format 'other-2'",
        ),
        (lambda f: (f / "manifest.json").write_text("[]"), "foreign checkpoint"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json is damaged"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": "longshort-checkpoint-1"}'),
            r"manifest.json is damaged \(it lists no files\); resume from an older checkpoint",
        ),
        (
            lambda f: (f / "manifest.json").write_text('{"format": "longshort-checkpoint-1", "files": {"x": 5}}'),
            r"manifest.json is damaged \(it lists no files\)",
        ),
        (lambda f: (f / "long/model.safetensors").unlink(), "long/model.safetensors is missing"),
        (
            lambda f: (f / "long/model.safetensors").write_text("weigh"),
            "long/model.safetensors is truncated: 5 bytes, 7 were written",
        ),
        (lambda f: (f / "long/model.safetensors").write_text("weightz"), "long/model.safetensors is altered"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(tmp_path, damage, message):
    folder = save(tmp_path, 5)
    damage(folder)
    with pytest.raises(LongShortError, match=message):
        checkpoint.verify(folder)


def test_the_newest_counts_by_number_and_old_ones_are_pruned(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert checkpoint.latest(tmp_path).name == "checkpoint-100"
    checkpoint.prune(tmp_path, keep=2)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [10, 100]


class ResumedPolicy:
    """A policy of which a resumed run needs only to load and to publish."""

    def __init__(self):
        self.learner, self.version, self.loaded = self, 0, []

    async def load(self, folder):
        self.loaded.append(folder.name)

    async def publish(self):
        self.version += 1


def test_a_resumed_run_hashes_every_file_once(tmp_path, monkeypatch):
    config = tiny_models.config(tmp_path, tiny_models.make(tmp_path), dataset="miniature:train", max_steps=6)
    output = Path(config.output_dir)
    folder = checkpoint.begin(output, 5)
    (folder / "state" / "x.json").write_text("{}")
    facts = {"step": 5, "versions": {LONG: 3, SHORT: 4}, "recipe": config.model_dump(mode="json")}
    final = checkpoint.commit(folder, facts)
    hashed = []
    monkeypatch.setattr(sealed, "file_digest", lambda path: hashed.append(path.name) or file_digest(path))
    trainer = LongShortTrainer(args=config)
    start = trainer.checkpoint_to_resume(True)
    policies = {role: ResumedPolicy() for role in ROLES}
    recorder = SimpleNamespace(continue_from=lambda step: None, done=5)
    asyncio.run(trainer._restore(SimpleNamespace(policies=policies), start, recorder))
    assert start.folder == final
    assert hashed == ["x.json"]
    assert [(policy.version, policy.loaded) for policy in policies.values()] == [(3, ["long"]), (4, ["short"])]


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(LongShortError, match="holds no checkpoint"):
        checkpoint.latest(tmp_path)
