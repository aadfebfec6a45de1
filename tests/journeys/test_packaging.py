"""The package: its layers, what its wheel holds and declares, and what a fresh process loads of it."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from longshort.version import __version__
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "longshort").rglob("*.py")
)
SERVER = ("admission", "errors", "guard", "keys", "metrics", "page", "replies", "requests", "responses", "server")
NEED_AN_EXTRA = {
    "longshort.backends.learners.deepspeed_learner",  # gpu
    *(f"longshort.serving.{name}" for name in SERVER),  # serve
}
"""Modules that import an extra's package as they are loaded; everything else loads without extras."""
USERS_OWN = {"flash_attn"}
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources; returns it opened."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "longshort", source / "longshort", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source]
    subprocess.run(command, check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_import_of_the_wheel_is_declared(wheel):
    """`tabulate` was imported and declared nowhere; it was there only because the lock file had it."""
    known = declared("cpu", "gpu", "tracking", "serve")
    files = [name for name in wheel.namelist() if name.endswith(".py")]
    assert len(files) > 100
    owners = packages_distributions()
    undeclared = [
        f"{file}: {module}"
        for file in files
        for module in imported(wheel.read(file)) - USERS_OWN
        if not known & {canonicalize_name(name) for name in [*owners.get(module, []), module]}
    ]
    assert undeclared == []


def test_the_wheel_holds_every_file_of_the_package(wheel):
    package = [path for path in (ROOT / "longshort").rglob("*.*") if "__pycache__" not in path.parts and path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in package} <= set(wheel.namelist())
    metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    assert f"\nVersion: {__version__}\n" in metadata


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


def test_the_layers_hold_and_there_is_no_circle():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("room", ["learning", "dialogue"])
def test_the_algorithm_loads_no_engine_cluster_or_trainer_library(room):
    modules = [name for name in MODULES if name.startswith(f"longshort.{room}")]
    assert len(modules) > 5
    heavy = "{'ray', 'vllm', 'deepspeed', 'trl', 'transformers', 'datasets'}"
    load = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    assert python(f"{load}print(sorted({heavy} & {{*sys.modules}}))", *modules) == ["[]"]


def test_the_mixer_loads_no_heavy_library():
    heavy = "{'torch', 'ray', 'vllm', 'deepspeed', 'transformers'}"
    assert python(f"import sys, longshort.mixture.reweighting; print(sorted({heavy} & {{*sys.modules}}))") == ["[]"]


def test_asking_for_help_loads_no_heavy_library():
    heavy = "{'torch', 'ray', 'vllm', 'datasets', 'transformers', 'pyarrow'}"
    modules = "longshort.cli, longshort.planning.doctor, longshort.recipe.schema, longshort.data"
    assert python(f"import sys, {modules}; print(sorted({heavy} & {{*sys.modules}}))") == ["[]"]
