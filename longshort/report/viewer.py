"""The report's viewer of episodes: a list to search and filter, every dialogue token by token, and one problem's episodes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from markupsafe import Markup

from longshort.report.page import asset, embed, environment
from longshort.report.viewer_data import BLOCK, Packed, choose, pack, squeeze
from longshort.report.viewer_files import TRAINING, Found, Run, find
from longshort.report.viewer_vocabulary import vocabularies

SCRIPTS = ("base.js", "viewer.js", "viewer_tokens.js", "viewer_episode.js", "viewer_list.js")
"""Parts of one script, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """A section of a page: its HTML (data included), its script ("" when there is nothing to show), its style, and whole sentences about
    what could not be read or shown."""

    html: Markup
    script: str
    style: str
    remarks: list[str]


def viewer_parts(runs: Sequence[Run], *, episodes: int = 5000, size_mb: float = 40) -> Viewer:
    """The viewer of the runs' training and evaluation episodes (longshort/runs/episodes.py), found in their folders.

    At most `episodes` of them are embedded, chosen evenly over steps and evaluations; when they are larger than `size_mb` (packed,
    1 MB = 10^6 bytes), the tokens of the oldest training steps are left out. Both are said on the page. A `</script>` in an
    episode cannot end anything: the page gets it as JSON without `<`, or packed.
    """
    found = find(runs)
    packed = pack(choose(found, episodes), size_mb, found.remarks)
    known = vocabularies(runs, found.sources, packed.ids, packed.samples)
    index = {
        "block": BLOCK,
        "runs": [run.name for run in runs],
        "sources": [
            asdict(source) | {"vocabularies": _of_source(known.of, i)} for i, source in enumerate(found.sources)
        ],
        "problems": packed.problems,
        "stops": packed.stops,
        "rows": packed.rows,
        "tokens": len(packed.tokens) * BLOCK,
    }
    html = (
        environment()
        .get_template("viewer.html.j2")
        .render(
            shown=len(packed.rows),
            total=len(found.places),
            left_out=_left_out(found, packed, size_mb),
            several_runs=len(runs) > 1,
            index=embed(index),
            blocks={
                "texts": packed.texts,
                "tokens": packed.tokens,
                "vocabulary": [squeeze(table) for table in known.tables],
            },
        )
    )
    script = '"use strict";\n{\n' + "\n".join(asset(name) for name in SCRIPTS) + "}\n" if packed.rows else ""
    return Viewer(html=Markup(html), script=script, style=asset("viewer.css"), remarks=found.remarks + known.remarks)


def _of_source(of: dict[tuple[int, str], int], source: int) -> dict[str, int]:
    return {role: number for (owner, role), number in of.items() if owner == source}


def _left_out(found: Found, packed: Packed, size_mb: float) -> str:
    """Which episodes have no tokens on the page because it would be larger than `size_mb`; "" when all have."""
    rows = packed.rows[len(packed.tokens) * BLOCK :]
    steps = [row[1] for row in rows if found.sources[row[0]].kind == TRAINING and row[1] is not None]
    if not rows:
        return ""
    which = f", training steps {min(steps)} to {max(steps)}," if steps else ""
    return f"The tokens of {len(rows):,} episodes{which} are left out to keep them all below {size_mb:g} MB; --size raises it."
