"""What a fresh process loads: the trainer without pages and servers, and everything without its extras."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "longshort").rglob("*.py")
)
SERVER = ("admission", "errors", "guard", "metrics", "page", "replies", "requests", "server")
NEED_AN_EXTRA = {
    "longshort.backends.learners.deepspeed_learner",  # gpu
    *(f"longshort.serving.{name}" for name in SERVER),  # serve
}
"""Modules that import an extra's package as they are loaded; everything else loads without extras."""
"""Packages that are looked for with find_spec before they are imported, and that no extra installs."""
WITHOUT_EXTRAS = """
import importlib, sys
from importlib.machinery import PathFinder
blocked = set(sys.argv[1].split(","))

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""


def python(code, *arguments):
    """Run code in a fresh process; returns its output lines."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def declared(*extras):
    """Return the distributions that longshort asks for: its own, and those of the extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def imported(source):
    """Return the top-level modules that a file imports, at its head or in a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"longshort"}


def test_the_trainer_loads_nothing_of_pages_servers_and_datasets():
    annexes = "{'matplotlib', 'jinja2', 'starlette', 'datasets', 'uvicorn'}"
    code = f"import sys, longshort.trainer; print(sorted({annexes} & {{*sys.modules}}))"
    assert python(code) == ["[]"]


def test_without_extras_everything_loads_that_needs_none():
    extras = declared("cpu", "gpu", "tracking", "serve", "dev") - declared()
    assert {"vllm", "deepspeed", "starlette", "uvicorn", "openai", "wandb"} <= extras
    names = {
        module for module, owners in packages_distributions().items() if {*map(canonicalize_name, owners)} & extras
    }
    missing = dict(line.split() for line in python(WITHOUT_EXTRAS, ",".join(sorted(names | extras)), *MODULES))
    assert set(missing) == NEED_AN_EXTRA
