"""Ray's start: a cluster of our own with a secret token, or the one that RAY_ADDRESS names. Import this before ray."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from longshort.recipe.schema import LongShortConfig

if "ray" not in sys.modules and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
    # Anyone who can talk to Ray can run code, so our own cluster gets a token. Ray reads both when it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray

ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's default of 15, engines and learners starve beside any ordinary process
}


def start(config: LongShortConfig) -> Callable[[], None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine; return the function that undoes it."""
    if ray.is_initialized():
        return lambda: None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM)
    private = {} if os.environ.get("RAY_ADDRESS") else _private_cluster()
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **private)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # ray.init installs its own, which exits without saving
    return ray.shutdown


def _private_cluster() -> dict[str, Any]:
    """Return ray.init's settings for a cluster that listens on loopback only, without a dashboard (it runs code).

    Ray replaces 127.0.0.1 with the machine's outside address. No setting prevents that (ray 2.60), so we replace the
    private function that does it.
    """
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    return {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
