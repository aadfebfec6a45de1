"""One run per folder, whatever became of the last one."""

import errno
import fcntl

import pytest

from longshort.runs import lock
from longshort.types import LongShortError


def test_a_second_run_is_refused_and_named_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["longshort", "train", "x.yaml"])
    monkeypatch.setattr("os.getpid", lambda: 4711)
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    with lock.hold(tmp_path), pytest.raises(LongShortError) as caught, lock.hold(tmp_path):
        pass
    assert str(caught.value).startswith(f"{tmp_path} belongs to another run (process 4711 on node7, since 20")
    assert str(caught.value).endswith(
        ": longshort train x.yaml); wait for its end or stop it, or choose another output_dir"
    )


def test_the_first_run_keeps_the_folder_when_a_second_was_refused(tmp_path):
    with lock.hold(tmp_path):
        for _ in range(2):
            with pytest.raises(LongShortError, match="belongs to another run"), lock.hold(tmp_path):
                pass


def test_a_folder_is_free_after_its_run(tmp_path):
    with lock.hold(tmp_path):
        (tmp_path / "metrics.jsonl").write_text("")
    with lock.hold(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_dead_run_keeps_nothing(tmp_path):
    (tmp_path / lock.LOCK).write_text("4711 on node7\n")
    with lock.hold(tmp_path):
        assert "4711" not in (tmp_path / lock.LOCK).read_text()


def test_a_run_that_made_nothing_leaves_no_folder(tmp_path):
    with lock.hold(tmp_path / "run"):
        assert (tmp_path / "run" / lock.LOCK).is_file()
    assert not (tmp_path / "run").exists()


def test_a_file_that_was_removed_before_it_was_locked_is_not_the_lock(tmp_path, monkeypatch):
    """The run before ends between our opening of its file and our locking."""
    real, calls = fcntl.flock, []

    def flock(file, how):
        if not calls:
            (tmp_path / lock.LOCK).unlink()
        calls.append(how)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.hold(tmp_path), pytest.raises(LongShortError, match="belongs to another run"), lock.hold(tmp_path):
        pass
    assert len(calls) == 3


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.hold(tmp_path):
        pass
    assert "this file system has no locks (No locks available); let no second run write here" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    run = lock.hold(tmp_path / "file" / "run")
    with pytest.raises(LongShortError, match=r"run\.lock cannot be written \(.*\); choose another"), run:
        pass


def test_a_look_at_a_folder_changes_nothing(tmp_path):
    assert lock.check(tmp_path / "run") is None
    assert list(tmp_path.iterdir()) == []
    with lock.hold(tmp_path), pytest.raises(LongShortError, match="belongs to another run"):
        lock.check(tmp_path)
