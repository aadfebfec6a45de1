"""What all pages share: one HTML file that needs no network, with its styles inside and no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from longshort import console
from longshort.runs.files import open_whole

HERE = Path(__file__).parent


def write(target: Path, template: str, scripts: list[str], **values: Any) -> Path:
    """Render `template` (which extends page.html.j2) to `target` and return `target`.

    `scripts` are texts, not paths. A script runs only because its hash is in the page's content security policy.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    rendered = (
        _environment()
        .get_template(template)
        .generate(
            style=Markup(asset("base.css")),
            scripts=[Markup(script) for script in scripts],
            script_hashes=hashes,
            **values,
        )
    )
    with open_whole(target) as stream:
        for part in rendered:
            stream.write(part.encode("utf-8", "replace").decode())
    return target


def _environment() -> Environment:
    """Return the templates beside this file: every value is escaped, and an undefined name is an error."""
    templates = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"readable": readable, "words": words, "seconds": console.duration, "json": embed}
    return templates


def asset(name: str) -> str:
    """Return the text of a style or script beside this file."""
    return (HERE / name).read_text(encoding="utf-8")


def script(*names: str) -> str:
    """Return scripts beside this file as one script with a scope of its own."""
    return '"use strict";\n{\n' + "\n".join(map(asset, names)) + "}\n"


def embed(value: Any) -> Markup:
    """Return JSON that is safe inside <script>: nothing in it can end the element or be read as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match.group()):04x}", text))


def readable(value: Any) -> str:
    """Format a value for people: {"min": 3, "mean": 9.238} -> "min: 3, mean: 9.238"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {readable(each)}" for key, each in value.items()) or "–"
    if isinstance(value, bool) or value is None:
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def words(name: str) -> str:
    """Turn `wrong_answer` into `wrong answer`."""
    return name.replace("_", " ")
