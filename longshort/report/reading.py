"""What the readers of a run's files share: they never raise for damage, they say in a few words what is wrong."""

from __future__ import annotations

from pydantic import ValidationError


def reason(error: Exception) -> str:
    """The first fault of a line or a file."""
    if not isinstance(error, ValidationError):
        return str(error)[:120]
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
