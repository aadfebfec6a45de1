"""Unit tests start no process and do not sleep for long: a test that does belongs to another folder."""

import subprocess

import pytest


@pytest.fixture(autouse=True)
def no_process(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a unit test starts no process; move it to engines/ or journeys/")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
