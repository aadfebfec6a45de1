"""Modules of your own that add to the tables of longshort; docs/extending.md shows each kind.

The driver imports them when it reads a recipe. Every process that it starts is given `environment` and calls
`import_from_environment` before anything else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence

from longshort.types import LongShortError

VARIABLE = "LONGSHORT_PLUGINS"


def import_plugins(names: Sequence[str], folder: str | None = None) -> None:
    """Import each module; its name may be one of a file or package in `folder` (default: the current one).

    The folder is searched last: none of its files replaces a library's. Raises LongShortError, naming the module and
    the reason, for one that cannot be imported.
    """
    folder = folder or os.getcwd()
    if names and folder not in sys.path:
        sys.path.append(folder)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module is the user's and may raise anything
            raise LongShortError(
                f"plugins: {name} cannot be imported ({type(error).__name__}: {error}); name an installed module or "
                f"one under {folder} as `import` does (my_package.my_module), or correct its code"
            ) from error


def environment(names: Sequence[str]) -> dict[str, str]:
    """Return the environment variable that tells another process which plug-ins to import, and from where."""
    return {VARIABLE: json.dumps([os.getcwd(), *names])} if names else {}


def import_from_environment() -> None:
    """Import the plug-ins that the driver named with `environment`, if any."""
    if VARIABLE in os.environ:
        folder, *names = json.loads(os.environ[VARIABLE])
        import_plugins(names, folder)
