"""What all pages share: one HTML file that asks nobody for anything, with its style inside and no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from longshort import console

HERE = Path(__file__).parent


def write(target: Path, template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> Path:
    """Render `template` (which extends page.html.j2) and put it in `target`'s place at once; returns `target`.

    `styles` and `scripts` are texts, not paths. A script runs only because its hash stands in the content security policy.
    """
    rendered = (
        environment()
        .get_template(template)
        .generate(
            style=Markup("\n".join(styles)),
            scripts=[Markup(script) for script in scripts],
            script_hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
            **values,
        )
    )
    partial = target.with_name(f"{target.name}.tmp")
    with partial.open("wb") as stream:
        for part in rendered:
            stream.write(part.encode("utf-8", "replace"))
    os.replace(partial, target)
    return target


def environment() -> Environment:
    """The templates beside this file: what they are given is text, never markup, and a name that they are not given is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"told": told, "words": words, "seconds": seconds, "json": embed}
    return made


def asset(name: str) -> str:
    """The text of a style or script that lies beside this file."""
    return (HERE / name).read_text(encoding="utf-8")


def embed(value: Any) -> Markup:
    """JSON that may stand in a <script>: nothing in it can end the element or be read as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text))


def told(value: Any) -> str:
    """A value for people: {"min": 3, "median": 9, "mean": 9.24, "max": 17} -> "3 to 17, median 9, mean 9.24"."""
    if isinstance(value, Mapping) and value.keys() == {"min", "median", "mean", "max"}:
        return (
            f"{told(value['min'])} to {told(value['max'])}, median {told(value['median'])}, mean {told(value['mean'])}"
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {told(each)}" for key, each in value.items()) or "–"
    if isinstance(value, bool) or value is None:
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def words(name: str) -> str:
    """`wrong_answer` -> `wrong answer`"""
    return name.replace("_", " ")


def seconds(count: float) -> str:
    """`0.2s`, `42s` or `3m05s`"""
    return f"{count:.1f}s" if count < 9.95 else console.duration(count)
