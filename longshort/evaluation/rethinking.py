"""Phrases with which a model reconsiders what it just wrote: "Wait,", "Let me double-check", "Alternatively, …".

The paper counts such "aha" phrases (arXiv 2505.11827, section 4) but did not publish its list. This list is our own, so
compare its numbers with each other, not with the paper's. It counts words, not thoughts: a model may rethink silently,
or announce it and not do it.
"""

from __future__ import annotations

import re
from collections import Counter

_LET_ME = r"(?:let me|let[’']s|let us|i should|i[’']ll)(?: just| also| now| quickly)?"

PHRASES = {
    "wait": r"(?<!to )wait(?! for| time| until)",  # not the bus of a word problem
    "hmm": r"hmm+",
    "hold on": r"hold on(?! to)",
    "actually": r"(?:(?<!\w )|(?<=but )|(?<=no ))actually",  # opening a clause, not "is actually 5"
    "on second thought": r"on second thoughts?",
    "let me check": rf"{_LET_ME} check",
    "let me verify": rf"{_LET_ME} (?:verify|confirm)",
    "double-check": r"(?:double|cross)[- ]?check(?:ing)?|re-?check(?:ing)?",
    "recalculate": r"re-?(?:calculat|comput)(?:e|ing)|re-?do(?:ing)?",
    "reconsider": r"(?<![</])re-?(?:(?:consider|think|visit)(?:ing)?|(?:examin|evaluat)(?:e|ing))",  # no </rethink>
    "think again": r"(?:think|look|check|try)(?: (?:about|at|over))?(?: (?:it|this|that))? again",
    "alternatively": r"alternatively",
    "another way": r"(?:another|a different) (?:way|approach|method)",
    "start over": r"start(?:ing)? over|from scratch|back-?track(?:ing)?",
    "mistake": r"i(?:[’']ve| (?:must |may |might )?have)? "
    r"(?:made an? (?:\w+ )?(?:mistake|error)|miscalculated|misread|overlooked)",
    "oops": r"oops|whoops",
}
"""Name -> regular expression, matched as whole words in any case, without capturing groups. If two phrases begin at the
same place, the earlier one here counts; no word counts twice."""

_ANY = re.compile(rf"\b(?=[a-z])(?:{'|'.join(f'({pattern})' for pattern in PHRASES.values())})\b", re.IGNORECASE)
"""The look-ahead skips the ends of words, where \\b matches too: twice as fast, a few million characters per second."""
_NAMES = tuple(PHRASES)


def rethinking_phrases(text: str) -> Counter[str]:
    """Count the phrases of `PHRASES` in `text`; phrases that do not occur are left out.

    "Hmm, 12. Wait, let me double-check: wait." -> {"wait": 2, "hmm": 1, "double-check": 1}
    """
    return Counter(_NAMES[(match.lastindex or 0) - 1] for match in _ANY.finditer(text))
