"""The algorithm half knows no engine, cluster or trainer library."""

import subprocess
import sys

PROBE = """
import importlib, pkgutil, sys
import longshort.learning, longshort.dialogue
for room in (longshort.learning, longshort.dialogue):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
print("loaded:", sorted({"ray", "vllm", "deepspeed", "trl"} & sys.modules.keys()))
"""


def test_learning_and_team_load_no_heavy_library():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *modules, loaded = done.stdout.splitlines()
    assert {"longshort.learning.loop", "longshort.learning.step", "longshort.dialogue.rollout"} <= set(modules)
    assert loaded == "loaded: []"
