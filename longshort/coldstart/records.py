"""What the cold start writes: one line per trace and step, and the manifests beside them.

    thoughts/chunk.jsonl            one ChunkLine per trace; every other step has a line class of its own below
    thoughts/chunk.manifest.json    StepManifest (written by longshort/runs/ledger.py)
    thoughts/sft.long/manifest.json SftManifest

A line holds only the fields that its outcome has: a refused trace has an outcome and a detail, a trace that an earlier
step refused only an outcome. Fields that are absent from a file read as their defaults, and are not written again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from longshort.types import Problem

OK, KEPT, REPAIRED = "ok", "kept", "repaired"
CONTINUE = (OK, KEPT, REPAIRED)
"""Outcomes of a trace that the next step works on."""
DROPPED_BEFORE = "dropped_before"
"""Outcome of a trace that an earlier step refused."""


class Refused(ValueError):
    """A step can make nothing of a trace. `outcome` is the reason by name, the message has the details."""

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One long response to one problem, byte for byte as it was read.

    `outcome` is "ok" or the reason why the trace cannot be used, explained in `detail`; `notes` name what is unusual
    but harmless ("crlf", "non_ascii", …).

    Trace(id="math-7", problem=Problem(…), response="First …\n\nWait, …", outcome="ok", detail="", notes=("non_ascii",))
    """

    id: str
    problem: Problem
    response: str
    outcome: str = OK
    detail: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A coarse step of a trace: consecutive paragraphs with their separators, so that joined thoughts are the trace.

    Thought(text="Wait, 7 is odd.\n\n", kind="verification")
    """

    text: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One thought's importance.

    `p` is P_i with its Wilson interval [`low`, `high`]; `bound` is T1 T2 epsilon / ln 2, how far `m + delta` may be
    from the value at the true P_i at the requested confidence; `loose_bound` is the paper's epsilon / ln 2. With N = 8
    both are wide: read them.
    """

    m: float
    delta: float
    p: float
    low: float
    high: float
    bound: float
    loose_bound: float

    def rounded(self) -> Score:
        """Return the score as it is written, with five decimals."""
        return Score(**{key: round(value, 5) for key, value in asdict(self).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftMessage:
    """One message of a dialogue to be: neighbouring thoughts of one role. A short one without thoughts is the closing
    answer.

    DraftMessage(role="short", thoughts=(Thought(text="So 7*6=42.\n\n", kind="calculation"),))
    """

    role: str
    thoughts: tuple[Thought, ...]

    @property
    def text(self) -> str:
        """The thoughts joined, without white space around them."""
        return "".join(thought.text for thought in self.thoughts).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueDraft:
    """A partitioned trace: its messages in order, the last one short, the short ones not written yet."""

    trace: str
    problem: Problem
    messages: tuple[DraftMessage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRow:
    """One role's training row: the dialogue in its tokens, and the spans [start, stop) that the role wrote."""

    token_ids: tuple[int, ...]
    learned: tuple[tuple[int, int], ...]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class TraceLine(_Record):
    """One trace's line in the file of a step."""

    step: ClassVar[str]
    id: str
    outcome: str
    detail: str = ""

    @property
    def continues(self) -> bool:
        """Whether the next step works on this trace."""
        return self.outcome in CONTINUE

    def row(self) -> dict[str, Any]:
        """Return the line as it is written: the fields that were given, in the order of their definition."""
        return self.model_dump(exclude_unset=True)


class ChunkLine(TraceLine):
    """A trace cut into thoughts by "rules" or "instruct"; `why` says why so, `tries` counts the model's answers."""

    step = "chunk"
    notes: tuple[str, ...] = ()
    problem: Problem = Problem(id="", question="", answer="")
    splitter: str = ""
    why: str = ""
    tries: int = 0
    paragraphs: int = 0
    thoughts: tuple[Thought, ...] = ()


class RolloutLine(TraceLine):
    """The rollouts of one trace: per prefix, the empty one (P_0) first.

    `correct[i]` of `n` continuations of prefix i were right; `length[i]` is their mean number of generated tokens, the
    prefix not counted; `cut_off[i]` of them reached `max_tokens`. `tokens` has the thoughts' lengths d_1..d_n in the
    rollout model's tokens; `ungraded` counts verdicts about the grading and not the answer (timeout, memory, …), all
    taken as wrong.
    """

    step = "rollouts"
    n: int = 0
    tokens: tuple[int, ...] = ()
    correct: tuple[int, ...] = ()
    length: tuple[float, ...] = ()
    cut_off: tuple[int, ...] = ()
    ungraded: dict[str, int] = {}


class ImportanceLine(TraceLine):
    """The score of every thought. `n` has the rollouts behind every prefix (many traces' with `average: skeleton`)."""

    step = "importance"
    tokens: tuple[int, ...] = ()
    p0: float = 0.0
    n: tuple[int, ...] = ()
    scores: tuple[Score, ...] = ()


class PartitionLine(TraceLine):
    """Which thoughts stay long, and the messages they make: (role, indices of its thoughts)."""

    step = "partition"
    long: tuple[bool, ...] = ()
    messages: tuple[tuple[str, tuple[int, ...]], ...] = ()


class RewriteLine(TraceLine):
    """The dialogue as (role, text, closing tag) messages; empty where it was dropped.

    Outcomes: "kept", "repaired" (a later try, or a closing answer that the trace lacked), or a reason: "wrong_answer",
    "no_answer", "role_tags", "empty_message", "bad_json", "bad_answer", "length", "context", "grading_<verdict>" where
    the grader could not decide.
    """

    step = "rewrite"
    tries: int = 0
    dialogue: tuple[tuple[str, str, str], ...] = ()


class RowsLine(TraceLine):
    """Both roles' training rows."""

    step = "rows"
    long: RoleRow = RoleRow(token_ids=(), learned=())
    short: RoleRow = RoleRow(token_ids=(), learned=())

    def of(self, role: str) -> RoleRow:
        return {"long": self.long, "short": self.short}[role]


LINES: dict[str, type[TraceLine]] = {
    line.step: line for line in (ChunkLine, RolloutLine, ImportanceLine, PartitionLine, RewriteLine, RowsLine)
}
"""The line class of every step, in the order in which the steps run."""


class Gain(_Record):
    """How much thoughts of one kind raised P: the mean over `n` thoughts."""

    n: int
    mean: float


class StepCounts(_Record):
    """What a step counted. Counts that only this step has are in `model_extra`."""

    model_config = ConfigDict(extra="allow")
    traces: int = 0
    outcomes: dict[str, int] = {}
    notes: dict[str, int] = {}
    gain_by_kind: dict[str, Gain] = {}


class StepManifest(_Record):
    """What a step was made with, how far it came, and what it counted."""

    complete: bool
    seconds: float = 0.0
    counts: StepCounts
    settings: dict[str, Any] = {}
    longshort: str = ""


class SftManifest(_Record):
    """One role's fine-tuning: what it was made from and, once complete, how it went."""

    base: str
    complete: bool
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = []
    sft: dict[str, Any] = {}
