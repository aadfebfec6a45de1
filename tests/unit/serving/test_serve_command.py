"""`longshort serve` apart from its requests: the port, what it prints, what it refuses to start with."""

import socket

import pytest

from longshort import cli
from longshort.serving import command
from longshort.serving.command import greeting, is_loopback, listen
from longshort.types import LongShortError
from tests.support.serve_cases import ScriptedTeam


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            LongShortError,
            match=f"^port {port} on 127.0.0.1 is in use; choose another with --port, or stop what listens",
        ):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("256.0.0.1", 8000), ("192.0.2.7", 8000)])
def test_an_address_that_is_not_ours_is_refused_in_one_sentence(host, port):
    with pytest.raises(LongShortError, match=f"--host {host}, --port {port}") as caught:
        listen(host, port)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(LongShortError, match=f"^--port {port} is not a port; give 0"):
        listen("127.0.0.1", port)


def test_a_bound_socket_answers_nobody_before_the_server_listens():
    with listen("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)


def test_loopback_is_told_from_the_rest():
    assert [
        host
        for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org")
        if is_loopback(host)
    ] == ["127.0.0.1", "127.9.9.9", "::1", "localhost"]


def test_the_greeting_tells_where_who_how_much_and_how():
    team = ScriptedTeam(max_queue=5)
    team.models = {"long": "models/a", "short": "models/b"}
    lines = list(greeting(team, "pair", "http://127.0.0.1:8000", key=True, loopback=True))
    assert lines[0].startswith("serving pair at http://127.0.0.1:8000 (OpenAI's API at http://127.0.0.1:8000/v1")
    assert lines[1:3] == ["  long: models/a, context 200, 2 at once", "  short: models/b, context 200, 2 at once"]
    assert lines[3] == "  6 answers at once, 5 more wait; 1048576 bytes a request, 600 s an answer; key: required"
    assert (
        lines[4].startswith("  curl http://127.0.0.1:8000/v1/chat/completions ")
        and '"model": "pair"' in lines[4]
        and len(lines) == 5
    )
    assert '"Authorization: Bearer $LONGSHORT_API_KEY"' in lines[4]
    warnings = [
        line
        for line in greeting(team, "pair", "http://0.0.0.0:8000", key=False, loopback=False)
        if line.startswith("!")
    ]
    assert ["LONGSHORT_API_KEY" in warnings[0], "serve.allowed_hosts" in warnings[1], len(warnings)] == [True, True, 2]


@pytest.mark.parametrize(("key", "warnings"), [(False, 1), (True, 0)])
def test_the_greeting_warns_of_pages_that_may_call_without_a_key(key, warnings):
    team = ScriptedTeam(allowed_origins=["https://app.example"])
    team.models = {"long": "models/a", "short": "models/b"}
    lines = greeting(team, "pair", "http://127.0.0.1:8000", key=key, loopback=True)
    assert len([line for line in lines if line.startswith("! whoever visits https://app.example may")]) == warnings


def test_a_folder_without_a_team_and_a_missing_package_are_refused(tmp_path, capsys, monkeypatch):
    assert cli.main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert f"{tmp_path} is no team" in capsys.readouterr().err
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else True)
    assert cli.main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert (
        capsys.readouterr().err
        == "longshort: longshort serve needs uvicorn, not installed; pip install -e '.[serve]'\n"
    )
