"""Rules that hold for every file: what a newcomer must read stays short, and no test module imports another."""

import re

from tests.support import ROOT


def test_what_a_newcomer_must_read_first_stays_short():
    """dialogue/ and learning/ are the method; what is not needed to understand it belongs in another room."""
    files = [path for room in ("dialogue", "learning") for path in (ROOT / "longshort" / room).glob("*.py")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 2300


def test_no_test_module_imports_another():
    files = [path for path in (ROOT / "tests").rglob("*.py") if "benchmarks" not in path.parts]
    assert len(files) > 100
    importing = [
        path.name for path in files if re.search(r"^ *(from|import) tests\.[\w.]*\btest_", path.read_text(), re.M)
    ]
    assert importing == []
