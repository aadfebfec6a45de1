"""A process killed at any point of a save leaves a checkpoint that loads."""

import os
import signal
import subprocess
import sys

import pytest

from longshort.runs import checkpoint


def save(output_dir, step, content="weights"):
    folder = checkpoint.begin(output_dir, step)
    (folder / "long").mkdir()
    (folder / "long" / "model.safetensors").write_text(content)
    (folder / "state" / "x.json").write_text("{}")
    return checkpoint.commit(folder, {"step": step})


WRITER = """
import sys
from pathlib import Path
from longshort.runs import checkpoint
out = Path(sys.argv[1])
print("ready", flush=True)
for step in range(2, 10_000):
    folder = checkpoint.begin(out, step)
    for name in "abcdefgh":
        (folder / "state" / name).write_bytes(name.encode() * 200_000)
    checkpoint.commit(folder, {"step": step})
    checkpoint.prune(out, 2)
"""


@pytest.mark.parametrize("delay_ms", range(0, 200, 10))
def test_a_kill_at_any_point_of_a_save_leaves_a_checkpoint_that_loads(tmp_path, delay_ms):
    save(tmp_path, 1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    writer.stdout.readline()
    try:
        writer.wait(timeout=delay_ms / 1000)
    except subprocess.TimeoutExpired:
        os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    newest = checkpoint.latest(tmp_path)
    assert checkpoint.verify(newest)["step"] == int(newest.name.split("-")[1])
