"""What a cold start refuses before anything starts."""

import pytest

from longshort.coldstart.command import check
from longshort.recipe.schema import parse
from longshort.types import ROLES, LongShortError
from tests.support.cold_starts import cold_start_recipe


def test_what_cannot_be_carried_out_is_refused_before_anything_starts(tmp_path):
    base = cold_start_recipe(tmp_path, dict.fromkeys(ROLES, "x")).model_dump()
    for changes, says in [
        ({"coldstart": None}, "no section `coldstart:`"),
        (
            {"coldstart": {"traces": "t", "partition": {"rule": "metrik"}}},
            "'metrik' is not known; did you mean 'metric'?",
        ),
        (
            {"coldstart": {"traces": "t", "rewrite": {"rewriter": "rules"}}},
            "coldstart.rewrite.rewriter: 'rules' is not known",
        ),
        (
            {"coldstart": {"traces": "t"}},
            "coldstart.rewrite.rewriter is 'instruct' but coldstart.instruct.model is empty",
        ),
        ({"protocol": {"name": "solo"}}, "the cold start makes dialogues of the protocol long_short"),
    ]:
        with pytest.raises(LongShortError, match=says):
            check(parse(base | changes))
