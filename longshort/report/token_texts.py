"""What token ids look like: their texts, from the tokenizers that a run left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from longshort.report.run_files import RunFiles
from longshort.runs import checkpoint
from longshort.runs.episodes import TurnLine
from longshort.types import ROLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED = 12
"""Tokens at the beginning of a turn by which its tokenizer is recognised."""


class TokenTexts:
    """Finds the tokenizer of every turn. `unknown` counts the turns that none fits; they show ids."""

    def __init__(self) -> None:
        self.unknown = 0
        self._loaded: dict[Path, _Vocabulary | None] = {}
        self._last: dict[tuple[str, str], Path] = {}

    def of(self, run: RunFiles, models: Mapping[str, str], turn: TurnLine) -> list[str]:
        """Return the text of each of the turn's tokens."""
        key = (run.name, turn.role)
        for folder in [*([self._last[key]] if key in self._last else []), *_candidates(run, models, turn.role)]:
            if folder not in self._loaded:
                self._loaded[folder] = _load(folder)
            vocabulary = self._loaded[folder]
            if vocabulary is not None and vocabulary.fits(turn):
                self._last[key] = folder
                return [vocabulary.text(token) for token in turn.token_ids]
        self.unknown += 1
        return [f"⟨{token}⟩" for token in turn.token_ids]


def _candidates(run: RunFiles, models: Mapping[str, str], role: str) -> Iterator[Path]:
    """Yield folders that may have the tokenizer, likeliest first; the other role's last, as one model may play both."""
    checkpoints = [folder for _, folder in checkpoint.steps(run.folder.root)[-1:]]
    for played in sorted(ROLES, key=lambda other: other != role):
        named = [models.get(played), run.settings.get(f"{played}.model")]
        for folder in (*(folder / played for folder in checkpoints), *(Path(str(name)) for name in named if name)):
            if any(folder.glob("tokenizer*")):
                yield folder


def _load(folder: Path) -> _Vocabulary | None:
    """Load a tokenizer; None if it is damaged, which must not cost the page."""
    from transformers import AutoTokenizer

    try:
        return _Vocabulary(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class _Vocabulary:
    """A tokenizer's tokens as texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.texts = tokenizer, dict[int, str]()

    def fits(self, turn: TurnLine) -> bool:
        """Return whether the turn's first tokens decode to its text: another model's would not."""
        ids, said = list(turn.token_ids[:COMPARED]), turn.text.strip()
        if not all(0 <= token < len(self.tokenizer) for token in ids):
            return False
        decoded = [str(self.tokenizer.decode(ids, skip_special_tokens=skip)) for skip in (True, False)]
        begins = [text.strip().rstrip("\ufffd") for text in decoded]
        return any((begin and said.startswith(begin)) or begin.startswith(said) for begin in begins)

    def text(self, token: int) -> str:
        """Return what a token stands for; � where it is part of a character."""
        if token not in self.texts:
            piece = str(self.tokenizer.convert_ids_to_tokens(token))
            plain = token in self.tokenizer.added_tokens_decoder or "▁" in piece
            text = piece.replace("▁", " ") if plain else self.tokenizer.convert_tokens_to_string([piece])
            self.texts[token] = text
        return self.texts[token]
