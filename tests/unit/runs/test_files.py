"""Files are whole or not there; a disk that takes no more is one sentence."""

import pytest

from longshort.recipe.schema import LongShortConfig
from longshort.runs.files import open_whole, write_json
from longshort.runs.tracking import open_trackers
from longshort.types import LongShortError


@pytest.fixture
def full(tmp_path):
    """A file that has no room."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    return tmp_path


def test_metrics_on_a_full_disk_are_one_sentence(full):
    log = open_trackers(LongShortConfig(output_dir=str(full)))
    with pytest.raises(LongShortError) as caught:
        log(1, {"team/accuracy": 0.5})
    assert str(caught.value) == (
        f"{full}/metrics.jsonl cannot be written (No space left on device); make room and start the same command again"
    )


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "episodes").write_text("")
    with pytest.raises(LongShortError, match=r"episodes/x\.json cannot be written \(.*\); make room"):
        write_json(tmp_path / "episodes" / "x.json", {})


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="half"), open_whole(tmp_path / "x.json") as stream:
        stream.write("2")
        raise ValueError("half")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "1\n")]
