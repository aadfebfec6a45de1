"""Settings of every test, the data and models that an environment variable names, and what a run prints at its end."""

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.support.plugins import seven_plugin  # noqa: F401 - a fixture

# Set before a test module imports a library that reads it.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}

FOLDERS = ("engines", "journeys", "learners", "pages", "unit", "nightly")  # the order of a run: long files start first
ONE_PROCESS = ("tests/engines/", "tests/journeys/quickstart/")
"""Folders whose files share what takes long to make (a Ray cluster, a run): one worker runs all their files."""


def folder_named(variable: str, what: str) -> Path:
    """The folder that an environment variable names; skips the test where it names none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of {what}")
    if not Path(folder).is_dir():
        pytest.fail(f"{variable} is {folder!r}, which is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark files, graded responses and traces that LONGSHORT_TEST_DATA names."""
    return folder_named("LONGSHORT_TEST_DATA", "benchmark files")


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder of pretrained models that LONGSHORT_TEST_MODELS names."""
    return folder_named("LONGSHORT_TEST_MODELS", "pretrained models")


@pytest.fixture
def as_in_a_terminal():
    """Let Ctrl-C and a hang-up end this process, as they do in a terminal; under nohup or `&` they are ignored."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def folder_of(nodeid: str) -> str:
    """The folder of a test below tests/."""
    return nodeid.split("/")[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest: the folders that one worker runs, then the others in the order of FOLDERS."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        return not item.nodeid.startswith(ONE_PROCESS), FOLDERS.index(folder_of(item.nodeid))

    items.sort(key=place)
    for item in items:
        if item.nodeid.startswith(ONE_PROCESS):  # the first test waits for what all share
            item.add_marker(pytest.mark.timeout(900))


class ByFile(LoadFileScheduling):
    """Gives a worker whole files, and one worker all files of a folder in ONE_PROCESS."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in ONE_PROCESS if nodeid.startswith(folder)), super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how long the tests of each folder took, set-up of fixtures included."""
    seconds, tests = defaultdict(float), defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[folder_of(report.nodeid)] += report.duration
                tests[folder_of(report.nodeid)] += report.when == "call"
    if seconds:
        terminalreporter.section("seconds by folder")
        for folder in sorted(seconds, key=seconds.get, reverse=True):
            terminalreporter.write_line(f"{seconds[folder]:7.1f} s  {tests[folder]:5d} tests  tests/{folder}")
