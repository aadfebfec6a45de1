"""Two language models, one thinking long and one thinking short, learn to solve problems together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshort.config import LongShortConfig
    from longshort.trainer import LongShortTrainer

__version__ = "0.1.0"
__all__ = ["LongShortConfig", "LongShortTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    """`from longshort import LongShortTrainer` without making `longshort --help` wait for its imports."""
    if name == "LongShortTrainer":
        from longshort.trainer import LongShortTrainer

        return LongShortTrainer
    if name == "LongShortConfig":
        from longshort.config import LongShortConfig

        return LongShortConfig
    raise AttributeError(f"module 'longshort' has no attribute {name!r}")
