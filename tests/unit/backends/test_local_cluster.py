"""The start of Ray against a fake of ray.init: a dead cluster is one sentence, signals and long folders work."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from longshort.backends import local_cluster
from longshort.interruption import Interrupted
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

pytestmark = pytest.mark.usefixtures("as_in_a_terminal")


@pytest.fixture
def init(monkeypatch):
    """The settings of each call of ray.init, which does nothing else; no cluster is named and the folder is /tmp."""
    calls = []
    monkeypatch.setattr(local_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(local_cluster.ray, "init", lambda **settings: calls.append(settings))
    monkeypatch.setattr(local_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(local_cluster.services, "resolve_ip_for_localhost", lambda host: host)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def head(monkeypatch):
    """A socket that accepts connections and never answers; RAY_ADDRESS names it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        yield server


def refusal(limit_s=5.0):
    with pytest.raises(LongShortError) as error:
        local_cluster.start(LongShortConfig(), limit_s)
    return str(error.value)


def test_an_address_where_nothing_listens_is_one_sentence_at_once(init, head):
    port = head.getsockname()[1]
    head.close()
    assert refusal() == (
        f"RAY_ADDRESS is 127.0.0.1:{port}, but this process cannot join a Ray cluster there: nothing listens at "
        f"127.0.0.1:{port} (Connection refused); start the cluster, correct RAY_ADDRESS (and RAY_AUTH_TOKEN), or unset "
        "RAY_ADDRESS to use this machine alone"
    )
    assert init == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "Invalid address format: 127.0.0.1"),
        ("127.0.0.1:head", "invalid literal for int() with base 10: 'head'"),
    ],
)
def test_what_is_no_address_is_a_sentence(init, monkeypatch, address, reason):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert reason in refusal()


def test_auto_with_no_cluster_on_this_machine_is_a_sentence(init, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(local_cluster.services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(local_cluster.services, "find_bootstrap_address", lambda folder: None)
    assert "cannot join a Ray cluster there: Could not find any running Ray instance" in refusal()


def test_auto_after_a_dead_cluster_names_where_that_one_was(init, head, monkeypatch):
    head.close()
    address = os.environ["RAY_ADDRESS"]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(local_cluster.services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(local_cluster.services, "find_bootstrap_address", lambda folder: address)
    assert (
        f"RAY_ADDRESS is auto, but this process cannot join a Ray cluster there: nothing listens at {address}"
        in refusal()
    )


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_the_address_of_another_protocol_is_refused_with_what_to_give_instead(init, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS is {address}, but longshort joins a cluster as one of its nodes: give host:port" in refusal()


def test_a_head_that_never_answers_is_given_up_at_the_limit(init, head, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(local_cluster.ray, "init", lambda **settings: forever.wait())
    assert "cannot join a Ray cluster there: no answer within 0.05 s" in refusal(limit_s=0.05)
    forever.set()


def test_the_reason_of_ray_is_told(init, head, monkeypatch):
    def unauthenticated(**settings):
        raise ConnectionError("Failed to connect") from RuntimeError("Traceback …\n  RpcError: token is incorrect\n")

    monkeypatch.setattr(local_cluster.ray, "init", unauthenticated)
    assert "cannot join a Ray cluster there: RpcError: token is incorrect; start" in refusal()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_a_cluster(init, head, monkeypatch, number):
    forever, before = threading.Event(), signal.getsignal(number)

    def signalled(**settings):
        os.kill(os.getpid(), number)
        forever.wait()

    monkeypatch.setattr(local_cluster.ray, "init", signalled)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; Ray's cluster had not answered yet"):
        local_cluster.start(LongShortConfig(), 20.0)
    forever.set()
    assert signal.getsignal(number) is before


def test_a_signal_that_this_process_ignores_stays_ignored(init, head, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(local_cluster.ray, "init", lambda **settings: os.kill(os.getpid(), signal.SIGHUP))
    local_cluster.start(LongShortConfig(), 5.0)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_cluster_that_answers_is_joined(init, head):
    local_cluster.start(LongShortConfig(), 5.0)
    assert len(init) == 1
    assert "address" not in init[0]


@pytest.mark.parametrize("value", ["", "local"])
def test_no_address_is_a_cluster_of_our_own_on_loopback(init, monkeypatch, value):
    monkeypatch.setenv("RAY_ADDRESS", value)
    local_cluster.start(LongShortConfig())
    assert (init[0]["address"], init[0]["_node_ip_address"]) == ("local", "127.0.0.1")


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_replaced_by_a_short_one_until_the_end(init, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "/" + "x" * 39)
    stop = local_cluster.start(LongShortConfig())
    folder = Path(init[0]["_temp_dir"])
    assert folder.is_dir()
    assert len(str(folder)) < 30
    said = f"{variable} has 40 characters, too many for Ray's sockets (at most 39): Ray's files go to {folder}"
    assert said in capsys.readouterr().out
    stop()
    assert not folder.exists()


def test_a_folder_that_is_short_enough_stays(init, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/" + "x" * 38)
    local_cluster.start(LongShortConfig())
    assert init[0]["_temp_dir"] is None


@pytest.mark.parametrize("kind", [OSError, RuntimeError, Exception])
def test_a_cluster_of_our_own_that_does_not_start_is_a_sentence(init, monkeypatch, kind):
    def late(**settings):
        raise kind("The current node timed out during startup")

    monkeypatch.setattr(local_cluster.ray, "init", late)
    assert refusal() == (
        "Ray does not start on this machine, with its files in /tmp: The current node timed out during startup; free "
        "memory, disk and cores, or set TMPDIR to a folder that can be written"
    )


def test_workers_search_the_working_folder_only_if_this_process_does(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if os.path.abspath(path) != os.getcwd()])
    config = local_cluster._JobConfig(_py_driver_sys_path=[os.getcwd(), "/scripts"])
    monkeypatch.setattr(sys, "path", ["/scripts", *sys.path, os.getcwd()])
    config._serialize()
    assert config._py_driver_sys_path == ["/scripts"]
