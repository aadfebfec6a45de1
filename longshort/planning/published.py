"""Sizes of well-known models, so that GPUs can be planned without the models and without a network.

They are the numbers of each model's public config.json; tests/unit/planning/test_plan.py counts the parameters again.
"""

from __future__ import annotations

from longshort.preflight.processes import KnownModels
from longshort.runs.model_files import ModelFacts

_COLUMNS = ("parameters", "layers", "hidden", "intermediate", "kv_heads", "kv_width", "vocabulary", "context")
_SIZES = {
    "Qwen/Qwen2.5-0.5B-Instruct": (494_032_768, 24, 896, 4864, 2, 128, 151_936, 32_768),
    "Qwen/Qwen2.5-1.5B-Instruct": (1_543_714_304, 28, 1536, 8960, 2, 256, 151_936, 32_768),
    "Qwen/Qwen2.5-7B-Instruct": (7_615_616_512, 28, 3584, 18_944, 4, 512, 152_064, 32_768),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (8_030_261_248, 32, 4096, 14_336, 8, 1024, 128_256, 131_072),
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 32, 4096, 14_336, 8, 1024, 128_256, 131_072),
}
PUBLISHED = KnownModels(
    {name: ModelFacts(name=name, **dict(zip(_COLUMNS, sizes, strict=True))) for name, sizes in _SIZES.items()}
)
