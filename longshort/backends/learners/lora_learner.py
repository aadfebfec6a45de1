"""Learners that train a LoRA adapter and leave the model as it is. The only module that imports peft.

What the optimizer moves, holds and saves is the adapter; the KL term's reference is the same model with the adapter switched off.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from longshort.backends.learners.torch_learner import TorchLearner
from longshort.backends.weights.adapters import ALL_LINEAR, PREFIX, Adapter, check_adapter, matching, merged, read
from longshort.dialogue.rollout import stable_seed
from longshort.recipe.roles import LoraSection
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

ADAPTER_FOLDER = "adapter"
SAME_MODEL = 1e-4
"""How far a checkpoint's merged weights may be from the same base and adapter merged here: on another machine sums round differently."""


def lora_config(lora: LoraSection, **changes: Any):
    """peft's own configuration of the recipe's section."""
    from peft import LoraConfig

    settings = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
    }
    return LoraConfig(**settings | {"task_type": "CAUSAL_LM"} | changes)


def learner_class(config: LongShortConfig, role: str) -> type[TorchLearner]:
    """Which learner of one process trains the role."""
    if not config.role(role).lora:
        return TorchLearner
    return AdapterLearner if config.share_engine else LoraLearner


class LoraLearner(TorchLearner):
    """Trains an adapter over the frozen model in `reference_folder` (default: `model_folder`) and publishes both merged.

    To continue, `load` takes the adapter from the state; `model_folder` then holds both merged, as `save` wrote them, and they must agree.
    """

    def __init__(
        self,
        role: str,
        model_folder: str | Path,
        config: LongShortConfig,
        total_updates: int,
        reference_folder: str | Path | None = None,
        device: torch.device | None = None,
    ):
        self._merged_folder, self._base_folder = Path(model_folder), reference_folder or model_folder
        super().__init__(role, self._base_folder, config, total_updates, device=device)

    def _policy_model(self, folder: str | Path):
        from peft import get_peft_model

        lora, model = self.config.role(self.role).lora, self._load(folder)
        head = model.get_output_embeddings()
        linear = [
            name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
        ]
        targets = lora.target_modules
        layers = matching(linear, targets, f"{self.role}.lora.target_modules")
        if isinstance(targets, str) and targets != ALL_LINEAR:
            targets = layers  # peft would also try the expression on layers that are not linear, and on the head
        settings = lora_config(
            lora, target_modules=targets, base_model_name_or_path=self.config.role(self.role).model or str(folder)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.config.seed, self.role, "lora"))
            self.peft = get_peft_model(model, settings).eval()
        if lora.adapter and self._merged_folder == Path(self._base_folder):
            self._take(read(Path(lora.adapter), self.role, lora), model)
        return model  # whose layers have the adapter in them now

    def _take(self, adapter: Adapter, model) -> None:
        """Go on from this adapter; LongShortError where it is not like the one here."""
        shapes = {name: tuple(tensor.shape) for name, tensor in _base_state(model).items()}
        check_adapter(adapter, shapes, held=self.adapter().tensors)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(adapter.tensors[PREFIX + name.replace(".default.", ".")])

    def _reference_model(self, folder: str | Path) -> Unadapted:
        return Unadapted(self.peft)

    def adapter(self) -> Adapter:
        """The adapter as it is now, on the CPU in float32; its tensors are copies."""
        from peft import get_peft_model_state_dict

        lora = self.config.role(self.role).lora
        found = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}
        return Adapter(role=self.role, r=lora.r, alpha=lora.alpha, tensors=tensors)

    def _full_state(self) -> dict[str, torch.Tensor]:
        """The merged weights, float32, by the base's checkpoint names."""
        return merged(_base_state(self.model), self.adapter())

    def save(self, model_folder: str | Path, state_folder: str | Path) -> None:
        """As TorchLearner's, the model merged; beside the state the adapter alone, loadable with `PeftModel.from_pretrained`."""
        super().save(model_folder, state_folder)
        self.peft.save_pretrained(Path(state_folder) / ADAPTER_FOLDER, save_embedding_layers=False)

    def load(self, state_folder: str | Path) -> None:
        """Continue with `save`'s adapter and state; LongShortError also for an adapter of another shape or over another base."""
        source = Path(state_folder) / ADAPTER_FOLDER
        self._take(read(source, self.role, self.config.role(self.role).lora), self.model)
        self._check_base(source)
        super().load(state_folder)

    def _check_base(self, source: Path) -> None:
        """The adapter over this base must give the model that was saved with it."""
        here = self._full_state()
        for path in sorted(self._merged_folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    saved, mine = file.get_tensor(name), here.get(name)
                    alike = mine is not None and mine.shape == saved.shape
                    gap = (saved.float() - mine.float()).abs().max().item() if alike else math.inf
                    if not gap <= SAME_MODEL:
                        raise LongShortError(
                            f"{self.role}.model {self._base_folder} is not the model that {source} was trained over: {name} differs from "
                            f"{self._merged_folder} by {gap:.3g} (allowed {SAME_MODEL}); set {self.role}.model to the one of that run"
                        )


def _base_state(model) -> dict[str, torch.Tensor]:
    """The weights under the adapter by their checkpoint names, on the CPU."""
    return {
        name.replace(".base_layer.", "."): tensor.cpu()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


class AdapterLearner(LoraLearner):
    """A LoraLearner whose engine holds the base itself, and is given the adapter alone (`share_engine`)."""

    def weights(self) -> Adapter:
        return self.adapter()


class Unadapted:
    """A model as it was before its adapter, for learning/step.py: the reference of the KL term, which takes no memory of its own."""

    def __init__(self, adapted):
        self._adapted, self.config = adapted, adapted.config

    def get_decoder(self):
        return self._decode

    def get_output_embeddings(self):
        return self._adapted.get_output_embeddings()

    def _decode(self, **inputs: Any):
        with self._without_adapter():
            return self._adapted.get_decoder()(**inputs)

    @contextlib.contextmanager
    def _without_adapter(self) -> Iterator[None]:
        self._adapted.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self._adapted.base_model.enable_adapter_layers()
