"""Paths that people write, in a recipe or on the command line: `~` and `$VARIABLE` mean what they mean to a shell."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from longshort.types import LongShortError

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}|[{(])")


def expanded(value: Any) -> Any:
    """Return a path with `~`, `~user`, `$VARIABLE` and `${VARIABLE}` replaced; what is no text stays as it is.

    Raises ValueError for a user or a variable that does not exist, and for what else a shell would work out.
    """
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise ValueError("a path holds no null character")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"there is no home folder {user!r}; if a file is named so, write ./{path}")

    def of_variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not name:
            raise ValueError(f"{path[match.start() :]!r} is not worked out here; write $NAME or ${{NAME}}, or the path")
        if name not in os.environ:
            raise ValueError(f"the variable ${name} is not set; set it, or write the path without it")
        return os.environ[name]

    return VARIABLE.sub(of_variable, path)


def expand(path: str | Path, what: str) -> Path:
    """Return a path from outside a recipe, expanded; `what` names it in errors."""
    try:
        return Path(expanded(str(path)))
    except ValueError as error:
        raise LongShortError(f"{what} {str(path)!r}: {error}") from None


expands = BeforeValidator(expanded)
PathText = Annotated[str, expands]
"""A path, or another name of a model or data set, to which the same holds."""
