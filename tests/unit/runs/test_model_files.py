"""Which weights are a model's, and which folders are refused before anything starts."""

import json
import shutil

import pytest

from longshort.runs.model_files import expected_weights, find_folder, read_facts
from longshort.types import LongShortError
from tests.support.learning_cases import tiny_model


@pytest.fixture
def sharded(tmp_path):
    """A tiny model of 27 tensors in several files, with their index."""
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    return tmp_path / "sharded"


@pytest.fixture
def whole(tmp_path):
    """The same model in one file."""
    tiny_model().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def add_consolidated(folder) -> None:
    """Add the weights a second time, under other names, as Mistral does."""
    from safetensors.torch import save_file

    renamed = {name.replace("model.layers", "layers"): w.clone() for name, w in tiny_model().state_dict().items()}
    save_file(renamed, folder / "consolidated.safetensors")


def refusal(folder) -> str:
    with pytest.raises(LongShortError, match=r"^long\.model: ") as caught:
        read_facts(str(folder), "long.model")
    return str(caught.value)


def test_a_model_in_several_files_has_the_weights_of_the_one_in_one_file(sharded, whole):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert expected_weights(str(sharded)) == expected_weights(str(whole))


def test_weights_that_the_index_does_not_name_are_none_of_the_models(sharded, whole):
    add_consolidated(sharded)
    assert expected_weights(str(sharded)) == expected_weights(str(whole))


def test_weights_that_the_index_does_not_name_are_not_counted(sharded):
    before = read_facts(str(sharded), "long.model").parameters
    add_consolidated(sharded)
    assert read_facts(str(sharded), "long.model").parameters == before


def test_other_weights_beside_a_single_file_are_refused(whole):
    add_consolidated(whole)
    assert "holds consolidated.safetensors beside model.safetensors, and engines would mix them up" in refusal(whole)


def test_a_single_file_beside_an_index_that_does_not_name_it_is_refused(sharded, whole):
    shutil.copy(whole / "model.safetensors", sharded)
    assert "holds model.safetensors beside model-00001-of-" in refusal(sharded)


def test_a_folder_without_one_of_its_files_is_refused(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    files[1].unlink()
    assert f"lacks 1 of {len(files)} weights files: {files[1].name}; copy the model again" in refusal(sharded)


def test_a_folder_without_its_index_is_refused(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert "lacks 1 of 1 weights files: model.safetensors; copy the model again, model.safetensors.index.json" in (
        refusal(sharded)
    )


def test_an_index_that_was_cut_off_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert "are damaged" in refusal(sharded)


def test_an_index_without_a_map_is_refused(sharded):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    assert "are damaged ('weight_map'); copy them again" in refusal(sharded)


def test_a_file_that_was_cut_off_is_refused_with_both_sizes(whole):
    path = whole / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 1000])
    assert f"model.safetensors has {size - 1000:,} of {size:,} bytes; copy it again" in refusal(whole)


def test_a_pointer_in_place_of_a_file_is_refused(whole):
    """Such a file is what git writes where git-lfs is not installed."""
    (whole / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 9\n")
    assert "are damaged" in refusal(whole)


def test_weights_of_a_second_format_are_not_downloaded(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model, **keys: asked.update(keys) or str(tmp_path))
    find_folder("mistralai/Mistral-7B-v0.3", "long.model")
    assert asked["ignore_patterns"] == ["consolidated*"]


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def test_a_real_models_file_is_whole(real_models, name):
    shapes = expected_weights(str(real_models / name))
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]
