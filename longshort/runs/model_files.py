"""What a model folder's config.json and safetensors headers say; no weights are loaded and no code is run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.types import LongShortError

WHOLE_BYTES, PIECE_BYTES, PIECES = 2**26, 2**16, 64
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NO_PART_OF_A_MODEL = ("progress.json", "trainer_state.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The sizes that memory depends on.

    Qwen2.5-0.5B: parameters=494_032_768, layers=24, hidden=896, intermediate=4864, kv_heads=2, kv_width=128,
    vocabulary=151_936, context=32_768. `kv_width` is key-value heads times head size: one token's KV cache holds
    2 * layers * kv_width numbers.
    """

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    kv_width: int
    vocabulary: int
    context: int

    @property
    def kv_numbers(self) -> int:
        """Numbers in the KV cache per token."""
        return 2 * self.layers * self.kv_width


def read_facts(model: str, key: str) -> ModelFacts:
    """Read the facts of a model folder or hub name that the recipe names under `key` ("long.model").

    LongShortError for a missing folder, a missing or damaged config.json or safetensors file, a pickle-only or
    code-carrying model.
    """
    folder = find_folder(model, key)
    config = _read_config(folder, key)
    shapes = _read_shapes(folder, key)
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    text = config.get("text_config", config)
    try:
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        kv_heads = text.get("num_key_value_heads") or heads
        return ModelFacts(
            name=model,
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            layers=text["num_hidden_layers"],
            hidden=hidden,
            intermediate=text["intermediate_size"],
            kv_heads=kv_heads,
            kv_width=kv_heads * (text.get("head_dim") or hidden // heads),
            vocabulary=text["vocab_size"],
            context=text["max_position_embeddings"],
        )
    except KeyError as error:
        where = f"{key}: {folder / 'config.json'}"
        raise LongShortError(f"{where} has no {error}; is it a decoder-only language model?") from error


def find_folder(model: str, key: str) -> Path:
    """Return the local folder of a model: itself, or its folder in the hub's cache, fetched if need be."""
    if not model:
        raise LongShortError(f"{key} is empty; name a model folder or a hub name")
    if Path(model).is_dir():
        return Path(model)
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise LongShortError(
            f"{key}: no folder {model!r}, seen from {Path.cwd()}; correct the path, or give a hub name owner/name"
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=["consolidated*"]))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LongShortError(
            f"{key}: {model!r} is neither a folder here (seen from {Path.cwd()}) nor a model that the hub or its cache "
            f"gives ({reason}); correct the name, or download it once with a network: hf download {model}"
        ) from error


def identity(model: str, key: str) -> str:
    """Return a short hash of a model folder's weights, configuration, tokenizer and template, independent of its path.

    Small files are hashed whole; of a weights file beyond 64 MiB, its size and 64 pieces spread over it.
    """
    total = hashlib.sha256()
    for path in sorted(find_folder(model, key).iterdir()):
        if path.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja") and path.name not in NO_PART_OF_A_MODEL:
            size = path.stat().st_size
            total.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if size <= WHOLE_BYTES:
                    total.update(file.read())
                for piece in range(PIECES if size > WHOLE_BYTES else 0):
                    file.seek(piece * (size - PIECE_BYTES) // (PIECES - 1))
                    total.update(file.read(PIECE_BYTES))
    return total.hexdigest()[:16]


def _read_config(folder: Path, key: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LongShortError(f"{key}: {path} cannot be read ({error}); give a folder with a whole model") from error
    if "auto_map" in config:
        where = f"{key}: {folder} brings its own code (auto_map in config.json)"
        raise LongShortError(f"{where}, which is never run; use a model without it")
    return config


def _read_shapes(folder: Path, key: str) -> dict[str, tuple[int, ...]]:
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        others = f"only {', '.join(pickles)}, which can run code: convert them" if pickles else ""
        raise LongShortError(f"{key}: {folder} holds no *.safetensors, {others or 'no weights: copy the model again'}")
    try:
        return expected_weights(str(folder))
    except LongShortError as error:
        raise LongShortError(f"{key}: {error}") from error
    except (OSError, ValueError, KeyError, AttributeError, MemoryError, OverflowError) as error:
        raise LongShortError(
            f"{key}: the weights in {folder} are damaged ({error or type(error).__name__}); copy them again"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the model's weights, one or those of the index; refuse what engines would mix up.

    Some repositories hold the weights a second time, under other names: consolidated.safetensors.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    if not present:
        raise LongShortError(f"model folder {folder} holds no *.safetensors weights")
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        named, beside = set(index["weight_map"].values()), {WEIGHTS} & present
    else:
        named, beside = {WEIGHTS}, present
    if missing := sorted(named - present):
        of = f"{len(missing)} of {len(named)} weights files: {', '.join(missing[:3])}"
        raise LongShortError(f"model folder {folder} lacks {of}; copy the model again, {INDEX} included")
    if others := sorted(beside - named):
        raise LongShortError(
            f"model folder {folder} holds {', '.join(others[:3])} beside {', '.join(sorted(named)[:3])}, and engines "
            "would mix them up; move the one or the other to another folder"
        )
    return [folder / name for name in sorted(named)]


def expected_weights(model: str) -> dict[str, tuple[int, ...]]:
    """Return a model's tensor names and shapes from its safetensors headers; a tied head also as `lm_head.weight`."""
    folder = find_folder(model, "model")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        size, whole = file.stat().st_size, 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        if size < whole:
            raise LongShortError(f"{file} has {size:,} of {whole:,} bytes; copy it again")
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    config = json.loads((folder / "config.json").read_text())
    if config.get("tie_word_embeddings") and "model.embed_tokens.weight" in shapes:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes
