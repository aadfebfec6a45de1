"""Two evaluations of one name would write the same files."""

import pytest

from longshort.evaluation.command import evaluate_recipe
from longshort.runs import lock
from longshort.runs.layout import RunFolder
from longshort.types import LongShortError
from tests.support import tiny_models


def test_a_second_evaluation_of_one_name_is_refused(tmp_path):
    config = tiny_models.config(tmp_path, tiny_models.make(tmp_path))
    folder = RunFolder.of(config).evaluations / "results"
    with lock.hold(folder), pytest.raises(LongShortError, match="eval/results belongs to another run"):
        evaluate_recipe(config)
