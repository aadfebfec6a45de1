"""Which episodes a page holds, and how they are packed: an index in plain JSON, and blocks of episodes that the page unpacks on demand.

A block is BLOCK episodes as JSON, gzipped, in base64. What people read (texts) and what they look up (tokens) are in blocks of their own,
so that a search through all texts never touches a token.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from longshort.report.reading import reason
from longshort.report.viewer_files import EVALUATION, TRAINING, Found, Line, Place, reread

BLOCK = 64
"""Episodes per block (viewer.js knows it from the index)."""
QUESTION = 160
"""Characters of a question in the list."""
LARGEST = 2**53
"""The largest whole number that the page can tell from its neighbours."""
SAMPLES = 8
"""Turns per source and role by which a tokenizer is recognised."""

Group = list[Place]
"""The episodes of one problem that were made together: a step's, or an evaluation's samples."""


def choose(found: Found, limit: int) -> list[Place]:
    """At most `limit` episodes, in the order of the page: evaluations, then training from the newest step on.

    Whole groups are taken in turn from every step and every evaluation, problems that occur in most of them first, so that episodes of
    one problem can be compared. Evaluations go first, but leave training half of the places if it needs them.
    """
    kinds: dict[str, dict[Any, Group]] = {EVALUATION: defaultdict(list), TRAINING: defaultdict(list)}
    for place in found.places:
        source = found.sources[place.source]
        bucket = (place.source, place.step) if source.kind == TRAINING else (place.source, None)
        kinds[source.kind][bucket].append(place)
    trained = sum(map(len, kinds[TRAINING].values()))
    evaluations = _taken_in_turn(list(kinds[EVALUATION].values()), max(limit - trained, (limit + 1) // 2))
    newest_first = sorted(kinds[TRAINING].items(), key=lambda item: (-(item[0][1] or 0), item[0][0]))
    training = _taken_in_turn([places for _, places in newest_first], limit - len(evaluations))
    return sorted(evaluations + training, key=lambda place: _page_order(found, place))


def _page_order(found: Found, place: Place) -> tuple:
    source = found.sources[place.source]
    newest = -(place.step or 0) if source.kind == TRAINING else 0
    return source.kind == TRAINING, newest, place.source, place.path, place.offset


def _taken_in_turn(buckets: Sequence[Sequence[Place]], limit: int) -> list[Place]:
    """Whole groups from the buckets in turn, for as long as they fit; if not even one fits, the beginning of the first."""
    groups = [list(_groups(bucket)) for bucket in buckets]
    occurs = Counter(group[0].problem for bucket in groups for group in bucket)
    queues = [deque(sorted(bucket, key=lambda group: -occurs[group[0].problem])) for bucket in groups]
    queues = [queues[i] for i in spread(len(queues))]
    taken: list[Place] = []
    while any(queues) and len(taken) < limit:
        for queue in filter(None, queues):
            group = queue.popleft()
            taken += group if len(taken) + len(group) <= limit else []
    return taken or [place for bucket in groups[:1] for place in bucket[0][: max(limit, 0)]]


def _groups(bucket: Iterable[Place]) -> Iterable[Group]:
    groups: dict[str, Group] = defaultdict(list)
    for place in bucket:
        groups[place.problem].append(place)
    return groups.values()


def spread(count: int) -> list[int]:
    """0 to count - 1 in an order of which every beginning lies evenly: 0, the middle, the quarters, … (van der Corput, 1935)."""
    return sorted(range(count), key=lambda i: int(f"{i:032b}"[::-1], 2))


@dataclass(slots=True, kw_only=True)
class Packed:
    """What the page holds. `rows` is aligned with the episodes; `tokens` may have fewer blocks than `texts` (the last are left out).

    `ids` has the token ids that occur, and `samples` a few turns as (ids, text), by (source, role).
    """

    rows: list[list[Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    ids: dict[tuple[int, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    samples: dict[tuple[int, str], list[tuple[list[int], str]]] = field(default_factory=lambda: defaultdict(list))


def pack(places: Sequence[Place], size_mb: float, remarks: list[str]) -> Packed:
    """Index and blocks of the episodes. Token blocks stop where all blocks together would be larger than `size_mb` (1 MB = 10^6 bytes)."""
    packed, untold = Packed(), Counter()
    numbers: dict[str, dict[Any, int]] = {"problems": {}, "stops": {}}
    room, ids_of_blocks = size_mb * 1e6, []
    lines = _reread(places, remarks)
    full = False
    while batch := list(islice(lines, BLOCK)):
        packed.rows += [_row(place, line, numbers) for place, line in batch]
        packed.texts.append(squeeze([_text(line) for _, line in batch]))
        room -= len(packed.texts[-1])
        if not full:
            packed.tokens.append(squeeze([_tokens(line, untold) for _, line in batch]))
            ids_of_blocks.append(_ids(batch))
            room -= len(packed.tokens[-1])
        while room < 0 and packed.tokens:
            full = True
            room += len(packed.tokens.pop())
        _sample(batch, packed.samples)
    for ids in ids_of_blocks[: len(packed.tokens)]:
        for key, some in ids.items():
            packed.ids[key] |= some
    packed.problems, packed.stops = list(numbers["problems"]), list(numbers["stops"])
    remarks += [f"{what}: {count:,}." for what, count in untold.items()]
    return packed


def squeeze(value: Any) -> str:
    """JSON, gzipped, in base64; the same value gives the same characters."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()


def expand(block: str) -> Any:
    """What `squeeze` packed."""
    return json.loads(gzip.decompress(base64.b64decode(block)))


def _reread(places: Sequence[Place], remarks: list[str]) -> Iterator[tuple[Place, Line]]:
    for place in places:
        try:
            yield place, reread(place)
        except (ValueError, RecursionError, OSError) as error:
            remarks.append(
                f"{place.path.name} changed while it was read ({reason(error)}): an episode of {place.problem} is not shown."
            )


def _row(place: Place, line: Line, numbers: Mapping[str, dict[Any, int]]) -> list[Any]:
    """[source, step, problem, ordinal, stop, right (1, 0 or null), turns, tokens, mean reward] as viewer.js names them."""
    problem = (line.problem.id, line.problem.question[:QUESTION])
    right = line.correct if line.correct is not None else line.terms.get("correct")
    rewards = [value for value in line.reward.values() if value is not None and math.isfinite(value)]
    return [
        place.source,
        place.step,
        numbers["problems"].setdefault(problem, len(numbers["problems"])),
        place.ordinal,
        numbers["stops"].setdefault(line.stop, len(numbers["stops"])),
        None if right is None else int(right > 0),
        len(line.turns),
        sum(len(turn.token_ids) for turn in line.turns),
        round(sum(rewards) / len(rewards), 4) if rewards else None,
    ]


def _text(line: Line) -> dict[str, Any]:
    """What is read, and the numbers of the whole episode."""
    told = {"reward": line.reward, "terms": line.terms, "advantages": line.advantages}
    return {
        "question": line.problem.question,
        "answer": line.problem.answer,
        "reason": line.reason,
        "turns": [[turn.role, turn.text, turn.stop, turn.version, len(turn.token_ids)] for turn in line.turns],
    } | {name: {key: _finite(value) for key, value in values.items()} for name, values in told.items() if values}


def _tokens(line: Line, untold: Counter) -> list[list[list[int | None] | None]]:
    """Per turn [context ids, ids, log-probs, gaps], the last two in thousandths of a nat; null for what there is not."""
    turns, used = [], Counter()
    sampled = Counter()
    for turn in line.turns:
        sampled[turn.role] += len(turn.token_ids)
    for turn in line.turns:
        ids, logprobs, gaps = turn.token_ids, turn.logprobs, line.gaps.get(turn.role)
        if len(logprobs) != len(ids):
            untold["Turns shown without log-probs, as they have not one for each token"] += 1
            logprobs = None
        if gaps is not None and len(gaps) != sampled[turn.role]:
            untold["Turns shown without gaps, as their role has not one for each token that it sampled"] += 1
            gaps = None
        begin = used[turn.role]
        used[turn.role] += len(ids)
        turns.append(
            [turn.context_ids, ids, _thousandths(logprobs), _thousandths(gaps and gaps[begin : used[turn.role]])]
        )
    return turns


def _thousandths(values: Sequence[float | None] | None) -> list[int | None] | None:
    """Whole numbers; null where there is no finite one."""
    if values is None:
        return None
    exact = np.array(values, dtype=float) * 1000  # None becomes NaN
    finite = np.isfinite(exact)
    whole = np.rint(np.clip(np.where(finite, exact, 0), -LARGEST, LARGEST)).astype(int).tolist()
    return whole if finite.all() else [value if known else None for value, known in zip(whole, finite, strict=True)]


def _finite(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _ids(batch: Sequence[tuple[Place, Line]]) -> dict[tuple[int, str], set[int]]:
    ids: dict[tuple[int, str], set[int]] = defaultdict(set)
    for place, line in batch:
        for turn in line.turns:
            ids[place.source, turn.role].update(turn.token_ids, turn.context_ids or ())
    return ids


def _sample(batch: Sequence[tuple[Place, Line]], samples: dict[tuple[int, str], list[tuple[list[int], str]]]) -> None:
    for place, line in batch:
        for turn in line.turns:
            known = samples[place.source, turn.role]
            if turn.text.strip() and len(known) < SAMPLES:
                known.append((turn.token_ids, turn.text))
