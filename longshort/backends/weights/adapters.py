"""LoRA adapters between a learner and an engine: their checks, their files, and the base model's weights with them.

Tensors have peft's own names: `base_model.model.<module>.lora_A.weight` [r, in] and `….lora_B.weight` [out, r] mean
`<module>.weight` [out, in] + alpha / r * B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longshort.recipe.roles import RoleLora
from longshort.types import LongShortError

if TYPE_CHECKING:
    import torch

PREFIX, HALVES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One role's adapter, which its engine is given in place of weights.

    Adapter(role="long", r=8, alpha=16.0, tensors={"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": …, …})
    """

    role: str
    r: int
    alpha: float
    tensors: Mapping[str, torch.Tensor]

    @property
    def modules(self) -> list[str]:
        """Return the base's modules that it changes, e.g. model.layers.0.mlp.up_proj."""
        return sorted(
            {
                name.removeprefix(PREFIX).removesuffix(half)
                for name in self.tensors
                for half in HALVES
                if name.endswith(half)
            }
        )

    def halves(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B of a module."""
        first, second = (self.tensors[PREFIX + module + half] for half in HALVES)
        return first, second


def matching(layers: Iterable[str], targets: str | list[str], key: str) -> list[str]:
    """Return those of a model's linear `layers` (full names, without its head) that `lora.target_modules` selects.

    The rules are peft's. Refuses targets, or an entry of a list, that select none; `key` is the setting's name.
    """
    layers = list(layers)
    if targets == ALL_LINEAR:
        return layers
    if isinstance(targets, str):
        chosen, idle = [layer for layer in layers if re.fullmatch(targets, layer)], []
    else:
        ends = tuple(f".{target}" for target in targets)
        chosen = [layer for layer in layers if f".{layer}".endswith(ends)]
        idle = [target for target in targets if not any(f".{layer}".endswith(f".{target}") for layer in layers)]
    if idle or not chosen:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
        raise LongShortError(
            f"{key}: {', '.join(idle) or repr(targets)} matches no layer of the model; it has {known}, "
            f"or use {ALL_LINEAR}"
        )
    return chosen


def check_adapter(adapter: Adapter, base: Mapping[str, tuple[int, ...]], held: Iterable[str] = ()) -> None:
    """Refuse an adapter that does not fit the `base` (shapes of weights by name), before an engine is touched.

    `held`: the names of the tensors that the engine or learner has of this role, if any; they must be the same.
    """
    what = f"adapter of {adapter.role} refused"
    expected = set(held) or names(adapter.modules)
    missing, unknown = sorted(expected - adapter.tensors.keys()), sorted(adapter.tensors.keys() - expected)
    unknown += [module for module in adapter.modules if f"{module}.weight" not in base]
    if missing or unknown or not expected:
        raise LongShortError(
            f"{what}: missing tensors {missing[:3]} ({len(missing)}), unknown tensors {unknown[:3]} ({len(unknown)})"
        )
    for module in adapter.modules:
        width_out, width_in = base[f"{module}.weight"]
        shapes = ((adapter.r, width_in), (width_out, adapter.r))
        for half, tensor, shape in zip(HALVES, adapter.halves(module), shapes, strict=True):
            if tuple(tensor.shape) != shape:
                raise LongShortError(
                    f"{what}: {module}{half} has shape {tuple(tensor.shape)}, but r {adapter.r} over the base's "
                    f"{(width_out, width_in)} makes {shape}"
                )
            if not bool(tensor.isfinite().all()):
                raise LongShortError(f"{what}: {module}{half} holds NaN or infinite values")


def names(layers: Iterable[str]) -> set[str]:
    """Return the names of an adapter's tensors over these layers."""
    return {PREFIX + layer + half for layer in layers for half in HALVES}


def merged(base: Mapping[str, torch.Tensor], adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return the base's weights with the adapter merged; those that change are new and float32, others not copied."""
    weights = dict(base)
    for module in adapter.modules:
        first, second = adapter.halves(module)
        change = adapter.alpha / adapter.r * (second.float() @ first.float())
        weights[f"{module}.weight"] = base[f"{module}.weight"].float() + change
    return weights


def read(folder: Path, role: str, lora: RoleLora) -> Adapter:
    """Read the adapter that peft saved in a folder; refuse one that cannot be read or is not what `lora` says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise LongShortError(
            f"adapter {folder} cannot be read ({error}); give a folder that peft saved as safetensors"
        ) from error
    if (facts.get("r"), facts.get("lora_alpha")) != (lora.r, lora.alpha):
        raise LongShortError(
            f"adapter {folder} has r {facts.get('r')} and alpha {facts.get('lora_alpha')}, {role}.lora has r {lora.r} "
            f"and alpha {lora.alpha}; give both the same"
        )
    extensions = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern")
    if used := [key for key in extensions if facts.get(key)]:
        raise LongShortError(
            f"adapter {folder} is no plain LoRA ({used[0]} is {facts[used[0]]!r}); merge it into the model instead"
        )
    return Adapter(role=role, r=lora.r, alpha=lora.alpha, tensors=tensors)


def write(adapter: Adapter, folder: Path) -> None:
    """Write the adapter in peft's format, as far as engines read it."""
    from safetensors.torch import save_file

    modules = sorted({module.rpartition(".")[2] for module in adapter.modules})
    facts = {"peft_type": "LORA", "r": adapter.r, "lora_alpha": adapter.alpha, "target_modules": modules}
    (folder / CONFIG_FILE).write_text(json.dumps(facts | {"bias": "none"}))
    save_file(dict(adapter.tensors), folder / WEIGHTS_FILE)
