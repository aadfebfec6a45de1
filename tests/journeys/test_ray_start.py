"""Ray's start as a user meets it: in a folder full of odd files, below a long TMPDIR, beside a head that is dead."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support import ROOT

WORKER = """
import asyncio, json, os, signal
from longshort.backends import ray_cluster
from longshort.recipe.schema import parse

def imported(config):
    import colorsys, math_verify, random, subprocess, sys
    import mine_plugin
    child = [sys.executable, "-c", "import colorsys; print(colorsys.__file__)"]
    child = subprocess.run(child, capture_output=True, text=True).stdout.strip()
    return [colorsys.__file__, math_verify.__file__, random.__file__, child, mine_plugin.__file__]

config = parse({"plugins": ["mine_plugin"]})
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
stop = ray_cluster.start(config)
os.kill(os.getpid(), signal.SIGTERM)
facts = {
    "received": received,
    "files": asyncio.run(ray_cluster.in_process(imported, config)),
    "has a token": bool(os.environ.get("RAY_AUTH_TOKEN")),
}
stop()
print(json.dumps(facts))
"""
JOINING = """
import sys
from longshort import interruption
from longshort.backends import ray_cluster
from longshort.recipe.schema import LongShortConfig

async def main():
    ray_cluster.start(LongShortConfig())

try:
    interruption.run(main())
except interruption.Interrupted as error:
    print(error)
    sys.exit(error.code)
"""


def without_ray(**changes):
    """This process's environment without what names or configures a Ray cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | changes


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """What a worker imports, and what was printed, where the working folder has files named as libraries are."""
    folder = tmp_path_factory.mktemp("started")
    for name in ("colorsys", "math_verify", "random", "token"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the working folder')")
    (folder / "mine_plugin.py").write_text("")
    (folder / "bin").mkdir()  # a command lies elsewhere than the folder it is called in
    (folder / "bin" / "worker.py").write_text(WORKER)
    scratch = folder / ("x" * 93)
    scratch.mkdir()
    environment = without_ray(RAY_ADDRESS="", TMPDIR=str(scratch))
    command = [sys.executable, "bin/worker.py"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    said, facts = result.stdout.splitlines()
    return folder, said, json.loads(facts)


def test_a_worker_imports_libraries_and_no_files_of_the_working_folder_that_are_named_alike(started):
    folder, _, facts = started
    assert [file for file in facts["files"][:-1] if str(folder) in file] == []


def test_a_worker_imports_the_plug_ins_of_the_working_folder(started):
    folder, _, facts = started
    assert facts["files"][-1] == str(folder / "mine_plugin.py")


def test_a_long_temporary_folder_is_replaced_by_a_short_one_that_is_gone_afterwards(started):
    _, said, _ = started
    short = said.partition("Ray's files go to ")[2].partition(" ")[0]
    assert said.startswith("TMPDIR has ")
    assert short.startswith("/tmp/longshort-")
    assert not os.path.exists(short)


def test_a_cluster_of_our_own_has_a_token_where_the_address_is_empty_too(started):
    assert started[2]["has a token"]


def test_the_start_of_ray_leaves_the_handling_of_sigterm_alone(started):
    assert started[2]["received"] == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_head_that_never_answers(number):
    with socket.create_server(("0.0.0.0", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        command = [sys.executable, "-c", JOINING]
        hears = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731 - it may be ignored here
        process = subprocess.Popen(
            command, cwd=ROOT, env=without_ray(RAY_ADDRESS=address), stdout=subprocess.PIPE, text=True, preexec_fn=hears
        )
        assert process.stdout
        assert process.stdout.readline() == f"joining the Ray cluster at {address} (RAY_ADDRESS)\n"
        head.accept()
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
    assert output == f"stopped by {number.name}; Ray's cluster had not answered yet\n"
    assert process.returncode == 128 + number
