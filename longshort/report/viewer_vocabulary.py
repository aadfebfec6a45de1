"""What token ids look like: the texts of those that occur, from the tokenizers that a run left behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longshort.report.viewer_files import EVALUATION, Run, Source
from longshort.runs import checkpoint
from longshort.types import ROLES

Samples = Sequence[tuple[list[int], str]]
"""A few turns: the ids sampled, and the text that the engine made of them (without the closing tag)."""
BEGINNING = 24
"""Characters of a turn by which its tokenizer is recognised."""


@dataclass(slots=True, kw_only=True)
class Vocabularies:
    """`tables` are {"ids": […], "texts": […], "special": [ids]}; `of` tells which one a (source, role) has."""

    tables: list[dict[str, list]] = field(default_factory=list)
    of: dict[tuple[int, str], int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def vocabularies(
    runs: Sequence[Run],
    sources: Sequence[Source],
    ids: Mapping[tuple[int, str], set[int]],
    samples: Mapping[tuple[int, str], Samples],
) -> Vocabularies:
    """One table per tokenizer found, with the ids that occur. A role without one is remarked, and has none."""
    made, tokenizers, wanted, without = Vocabularies(), {}, {}, {}
    for (number, role), some in ids.items():
        source = sources[number]
        for folder in candidates(runs[source.run].folder, source, role):
            name = _fingerprint(folder)
            if name not in tokenizers:
                tokenizers[name] = _load(folder, made.remarks)
            if tokenizers[name] is not None and recognises(tokenizers[name], samples[number, role]):
                made.of[number, role] = list(wanted).index(name) if name in wanted else len(wanted)
                wanted.setdefault(name, set()).update(some)
                break
        else:
            without.setdefault((runs[source.run].name, role), []).append(source)
    made.tables = [table(tokenizers[name], some) for name, some in wanted.items()]
    for (run, role), lacking in without.items():
        systems = sorted({source.system or source.kind for source in lacking})
        made.remarks.append(
            f"{run}: no tokenizer here fits the tokens of {role} in {', '.join(systems)} (looked in checkpoint-*/, recipe.yaml and "
            "the evaluations' models), so they are shown as ids."
        )
    return made


def candidates(run: Path, source: Source, role: str) -> Iterator[Path]:
    """Folders that may have the tokenizer, likeliest first: the model that the evaluation names, the newest checkpoint's, the recipe's.

    The other role's come last: in an evaluation one model may play both.
    """
    evaluated = sorted(run.glob("eval/*.json")) + sorted(run.glob("eval/*/*.manifest.json"))
    own = [path for path in evaluated if source.kind == EVALUATION and _is_of(path, source)]
    named = [_model(path, source.system, role) for path in own]
    recipe = _read(run / "recipe.yaml")
    for played in (role, *(other for other in ROLES if other != role)):
        named += [str(folder / played) for _, folder in reversed(checkpoint.steps(run))]
        section = recipe.get(played)
        named.append(section.get("model") if isinstance(section, dict) else None)
        named += [_model(path, "", played) for path in evaluated]
    for name in dict.fromkeys(name for name in named if isinstance(name, str) and name):
        folder = Path(name)
        if any(folder.glob("tokenizer.*")) or any(folder.glob("vocab.*")):
            yield folder


def _is_of(path: Path, source: Source) -> bool:
    """Whether a results file or a manifest is about the source's evaluation and system."""
    if path.name.endswith(".manifest.json"):
        return path.parent.name == source.evaluation and path.name.startswith(f"{source.system}.")
    return path.stem == source.evaluation


def _model(path: Path, system: str, role: str) -> Any:
    """The model of the role that a results file or manifest names; without `system`, that of the first system which has one."""
    told = _read(path)
    systems = told.get("systems")
    blocks = [told] if not isinstance(systems, dict) else [systems.get(system)] if system else list(systems.values())
    models = [block.get("models") for block in blocks if isinstance(block, dict)]
    return next((some[role] for some in models if isinstance(some, dict) and role in some), None)


def _read(path: Path) -> dict[str, Any]:
    """A YAML or JSON file's mapping; {} for what is not there or damaged, which the page about the run says itself."""
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return told if isinstance(told, dict) else {}


def _fingerprint(folder: Path) -> str:
    """The same for copies of a tokenizer, such as those in the checkpoints of one run."""
    files = sorted(path for pattern in ("tokenizer*", "vocab*") for path in folder.glob(pattern) if path.is_file())
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _load(folder: Path, remarks: list[str]):
    """The tokenizer, or None with a remark: a damaged one must not cost the page."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fault = (str(error).strip() or type(error).__name__).splitlines()[0]
        remarks.append(f"The tokenizer in {folder.parent.name}/{folder.name} does not load ({fault}).")
        return None


def recognises(tokenizer, samples: Samples) -> bool:
    """Whether the tokenizer makes of most of the turns' ids what the engine made of them: that of another model does not."""
    right = 0
    for ids, text in samples:
        known = [i for i in ids if 0 <= i < len(tokenizer)]
        decoded = [tokenizer.decode(known, skip_special_tokens=skip) for skip in (False, True)]
        right += any(text.strip()[:BEGINNING] in one for one in decoded)
    return 2 * right >= len(samples)


def table(tokenizer, ids: Iterable[int]) -> dict[str, list]:
    """The texts of the ids that the tokenizer has, and which of them are control tokens."""
    of, alphabet, added = {}, _byte_alphabet(tokenizer), tokenizer.added_tokens_decoder
    for i in sorted(ids):
        if i in added:
            of[i] = added[i].content
        elif 0 <= i < len(tokenizer) and (piece := tokenizer.convert_ids_to_tokens(i)) is not None:
            of[i] = _text(piece, alphabet)
    return {"ids": list(of), "texts": list(of.values()), "special": [i for i in of if i in added and added[i].special]}


def _byte_alphabet(tokenizer) -> dict[str, int]:
    """Character -> byte for tokenizers that write bytes as letters (GPT-2's way); empty for the others."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if not tokenizer.is_fast or "ByteLevel" not in str(tokenizer.backend_tokenizer.decoder):
        return {}
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _text(piece: str, alphabet: Mapping[str, int]) -> str:
    r"""What a piece of the vocabulary stands for; bytes that are no whole character alone are written \xe2."""
    if alphabet and all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece).decode("utf-8", "backslashreplace")
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # sentencepiece's way to write a byte
        return bytes.fromhex(piece[3:5]).decode("utf-8", "backslashreplace")
    return piece.replace("▁", " ")
