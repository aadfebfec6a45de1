"""Commands of longshort as processes: start one, wait for its first step, see which of its processes are left."""

import subprocess
import sys
import time

import psutil

LONGSHORT = [sys.executable, "-m", "longshort.cli"]


def started_until_a_step(*arguments):
    """Start a command; return its process once it has printed a line that begins with "step"."""
    command = [*LONGSHORT, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            return process
    raise AssertionError(process.stderr.read())


def still_running(processes, seconds=20.0):
    """The processes that run after they had this long to end."""
    end = time.monotonic() + seconds
    while True:
        left = [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)
