"""Reach: whether containers can reach a Prefect API that listens on this host, looked at once at a worker's start."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from flowfleet.errors import EngineError
from workers.containers.engine import Engine
from workers.containers.request import LOOPBACK, ContainerOptions

_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}


def trouble(engine: Engine, api: str, options: ContainerOptions) -> str | None:
    """Why containers of this worker will not reach the API at this address, as a sentence; None where nothing says so.

    Looked at is what can be seen from here: an API on the loopback interface alone, for containers with a network of
    their own.
    """
    parts = urlsplit(api)
    if not parts.hostname or not LOOPBACK.fullmatch(parts.hostname) or not engine.shares_files():
        return None
    if (options.host_network and not options.networks) or "host" in options.networks:
        return None  # they share the host's network
    try:
        gateway = engine.ask(lambda client: client.api.inspect_network("bridge"))["IPAM"]["Config"][0]["Gateway"]
    except (EngineError, KeyError, IndexError, TypeError):
        return None
    port = parts.port or _PORTS.get(parts.scheme, 0)
    try:
        with socket.create_connection((gateway, port), timeout=_SECONDS):
            return None
    except OSError:
        return (
            f"containers reach this host as {gateway}, where the Prefect API of {api} does not listen: have it listen "
            "there, or on 0.0.0.0, or leave --network and --no-host-network out"
        )
