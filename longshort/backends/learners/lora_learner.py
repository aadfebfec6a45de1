"""Learners that train a LoRA adapter and leave the model as it is. The only module that imports peft.

The optimizer moves, holds and saves only the adapter. The reference of the KL term is the same model without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from longshort.backends.learners.attention import NAMES
from longshort.backends.learners.learner_model import Parts, device_of, load_model, make_parts, trained, use_attention
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.backends.weights.adapters import ALL_LINEAR, PREFIX, Adapter, check_adapter, matching, merged, read
from longshort.dialogue.rollout import stable_seed
from longshort.recipe.roles import LoraSection, RoleLora
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER_FOLDER = "adapter"
SAME_MODEL = 1e-4
"""Allowed difference of merged weights between a checkpoint and here: another machine rounds differently."""


def lora_config(lora: LoraSection, **changes: Any) -> LoraConfig:
    """Return peft's own configuration for the recipe's section."""
    from peft import LoraConfig

    settings = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return LoraConfig(**settings | {"target_modules": lora.target_modules, "task_type": "CAUSAL_LM"} | changes)


def learner_class(config: LongShortConfig, role: str) -> type[TorchLearner]:
    """Return which learner of one process trains the role."""
    if not config.role(role).lora:
        return TorchLearner
    return AdapterLearner if config.share_engine else LoraLearner


@dataclass(frozen=True, kw_only=True)
class LoraParts(Parts):
    """The parts of a learner of an adapter. `merged_folder` holds base and adapter merged when a run is continued."""

    lora: RoleLora
    peft: PeftModel
    merged_folder: Path
    base_folder: Path


def load_adapted(
    role: str, config: LongShortConfig, model_folder: str | Path, reference_folder: str | Path
) -> LoraParts:
    """Put an adapter over the model in `reference_folder`."""
    lora, base = config.role(role).lora, load_model(reference_folder, NAMES[use_attention(config)])
    assert lora, f"{role}.lora is not set, and AdapterLearner and LoraLearner are for roles that have it"
    peft = add_adapter(base, config, role, lora, str(reference_folder))
    if lora.adapter and Path(model_folder) == Path(reference_folder):
        copy_adapter(read(Path(lora.adapter), role, lora), peft)
    base.to(device_of(config))
    parts = make_parts(role, config, base, WithoutAdapter(peft) if config.loss.beta else None, reference_folder)
    merged_folder, base_folder = Path(model_folder), Path(reference_folder)
    return LoraParts(**vars(parts), lora=lora, peft=peft, merged_folder=merged_folder, base_folder=base_folder)


class LoraLearner(TorchLearner):
    """Trains an adapter over a frozen model, and publishes both merged.

    To continue, `load` takes the adapter from the state. The model folder then holds both merged, as `save` wrote them,
    and they must agree.
    """

    load_parts = staticmethod(load_adapted)

    def __init__(self, config: LongShortConfig, total_updates: int, parts: LoraParts):
        super().__init__(config, total_updates, parts)
        self.lora, self.peft = parts.lora, parts.peft
        self.merged_folder, self.base_folder = parts.merged_folder, parts.base_folder

    def adapter(self) -> Adapter:
        """Copy the adapter to the CPU, in float32."""
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state_of(self.peft).items()
        }
        return Adapter(role=self.role, r=self.lora.r, alpha=self.lora.alpha, tensors=tensors)

    def _full_state(self) -> dict[str, torch.Tensor]:
        """Return the merged weights, float32, by the base's checkpoint names."""
        return merged(base_state(self.model), self.adapter())

    def save(self, model_folder: str | Path, state_folder: str | Path) -> None:
        """Write the merged model and the state, and beside the state the adapter for `PeftModel.from_pretrained`."""
        super().save(model_folder, state_folder)
        self.peft.save_pretrained(str(Path(state_folder) / ADAPTER_FOLDER), save_embedding_layers=False)

    def load(self, state_folder: str | Path) -> None:
        """Continue with `save`'s adapter and state; refuse an adapter of another shape or over another base."""
        source = Path(state_folder) / ADAPTER_FOLDER
        copy_adapter(read(source, self.role, self.lora), self.peft)
        self._check_base(source)
        super().load(state_folder)

    def _check_base(self, source: Path) -> None:
        """Refuse a base over which the adapter does not give the model that was saved with it."""
        merged_here = self._full_state()
        for path in sorted(self.merged_folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    saved, mine = file.get_tensor(name), merged_here.get(name)
                    gap = math.inf
                    if mine is not None and mine.shape == saved.shape:
                        gap = (saved.float() - mine.float()).abs().max().item()
                    if not gap <= SAME_MODEL:
                        raise LongShortError(
                            f"{self.role}.model {self.base_folder} is not the model that {source} was trained over: "
                            f"{name} differs from {self.merged_folder} by {gap:.3g} (allowed {SAME_MODEL}); "
                            f"set {self.role}.model to the one of that run"
                        )


def add_adapter(base: Any, config: LongShortConfig, role: str, lora: RoleLora, folder: str) -> PeftModel:
    """Put a new adapter into the layers of `base`, drawn from the recipe's seed."""
    from peft import get_peft_model

    head = base.get_output_embeddings()
    linear = [name for name, part in base.named_modules() if isinstance(part, torch.nn.Linear) and part is not head]
    targets = lora.target_modules
    layers = matching(linear, targets, f"{role}.lora.target_modules")
    if isinstance(targets, str) and targets != ALL_LINEAR:
        targets = layers  # peft would also try the expression on layers that are not linear, and on the head
    name = config.role(role).model or folder
    settings = lora_config(lora, target_modules=targets, base_model_name_or_path=name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(config.seed, role, "lora"))
        return get_peft_model(base, settings).eval()


def state_of(peft: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors by peft's names, not copied."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft, save_embedding_layers=False)


@torch.no_grad()
def copy_adapter(adapter: Adapter, peft: PeftModel) -> None:
    """Copy a saved adapter over the one in the model; raise LongShortError if they differ in shape."""
    base = peft.get_base_model()
    shapes = {name: tuple(tensor.shape) for name, tensor in base_state(base).items()}
    check_adapter(adapter, shapes, held=state_of(peft))
    for name, parameter in trained(base).items():
        parameter.copy_(adapter.tensors[PREFIX + name.replace(".default.", ".")])


def base_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights under the adapter by their checkpoint names, on the CPU."""
    return {
        name.replace(".base_layer.", "."): tensor.cpu()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


class AdapterLearner(LoraLearner):
    """A LoraLearner whose engine holds the base itself and receives only the adapter (`share_engine`)."""

    def weights(self) -> Adapter:
        return self.adapter()


class WithoutAdapter:
    """A model with its adapter switched off: the reference of the KL term, which takes no memory of its own."""

    def __init__(self, peft: PeftModel):
        self._peft, self.config = peft, peft.config

    def get_decoder(self) -> Callable[..., Any]:
        return self._decode

    def get_output_embeddings(self) -> Any:
        return self._peft.get_output_embeddings()

    def _decode(self, **inputs: Any) -> Any:
        with self._peft.disable_adapter():
            return self._peft.get_decoder()(**inputs)
