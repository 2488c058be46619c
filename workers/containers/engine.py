"""Engine: the container engine of this host (Docker, or Podman by its Docker API), and its errors told apart.

The SDK of Docker raises three families of errors for an engine that is away: its own, those of requests, and plain
timeouts. All become `EngineAway` here, which says nothing about any container. A definite no is `EngineRefused`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import urllib3

from flowfleet import logs
from flowfleet.errors import EngineAway, EngineRefused, SettingsError

if TYPE_CHECKING:
    from docker import DockerClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: seconds that one request may take, as in the reference (prefect 1.4.1: docker_client_timeout)
REQUEST_SECONDS = 60.0
_CONNECTIONS = 64
_WORDS_LIMIT = 500
#: the first engine that writes host-gateway as its own address on a container's bridge
_HOST_GATEWAY_SINCE = (20, 10)
#: where engines listen, in the order in which they are looked for: Docker as root and rootless, then Podman
_SOCKETS = (
    "/var/run/docker.sock",
    "{runtime}/docker.sock",
    "/run/podman/podman.sock",
    "{runtime}/podman/podman.sock",
)
#: of its API, for a client that asks for the engine's own alone
_ANY_VERSION = "1.41"
#: answers of a proxy before the engine, and of an engine that is not ready yet
_LATER = frozenset({502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What this engine is; it may be another one after each outage."""

    #: "docker" or "podman"
    product: str
    version: str
    api: str
    #: the control groups' version, 1 or 2; 0 = not told
    cgroups: int
    rootless: bool
    #: how many processors it has for containers; 0 = not told
    cpus: int = 0
    #: it has a small process 1 for containers, which hands signals on and reaps
    has_init: bool

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers."""
        return tuple(map(int, re.findall(r"\d+", self.version)[:3]))

    @property
    def knows_host_gateway(self) -> bool:
        """Whether an extra host `host-gateway` becomes the host's address; Podman writes the word as it stands."""
        return self.product == "docker" and self.numbers >= _HOST_GATEWAY_SINCE


@dataclass
class Engine:
    """The engine at one address; connects at the first call, and again after each outage. Safe in many threads."""

    #: None: DOCKER_HOST, else the current context of the `docker` command, else the first usual socket that is there
    base_url: str | None
    environ: Mapping[str, str] = field(repr=False)
    request_seconds: float = REQUEST_SECONDS
    _client: DockerClient | None = field(default=None, init=False, repr=False)
    _facts: EngineFacts | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def address(self) -> str:
        """The address as people know it, without secrets."""
        return logs.redact(self._target())

    def shares_files(self) -> bool:
        """Whether a path means the same file to the engine as to us, as far as can be told.

        Not with an engine of another host, nor for a worker in a container that was given the engine's socket.
        """
        if self._socket_path is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self.request_seconds)
                probe.connect(self._socket_path)
                credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            process = struct.unpack("3i", credentials)[0]
            # 0: a process that we do not see, since it is in another process namespace
            theirs, ours = Path(f"/proc/{process}/root").stat(), Path("/").stat()
            return bool(process) and (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
        except (OSError, AttributeError):
            return not _in_container()

    def check_address(self) -> None:
        """Raise `SettingsError` where the address can be none of an engine; nobody is asked yet."""
        from docker.errors import DockerException  # noqa: PLC0415 - as above
        from docker.utils import parse_host  # noqa: PLC0415

        try:
            parse_host(self._target())
        except (DockerException, ValueError) as exc:
            raise SettingsError(
                f"{self.address!r} of --base-url or DOCKER_HOST is no address of an engine ({exc}): write "
                "unix:///PATH or tcp://HOST:PORT"
            ) from exc

    def sockets(self) -> list[str]:
        """The sockets of this host by which an engine is reached: this one's, and the usual ones that are there."""
        usual = [path for path in _usual_paths(self.environ) if Path(path).is_socket()]
        return [*filter(None, [self._socket_path]), *usual]

    @property
    def _socket_path(self) -> str | None:
        address = self._target()
        return address.removeprefix("unix://") if address.startswith("unix://") else None

    def _target(self) -> str:
        return (
            self.base_url or self.environ.get("DOCKER_HOST") or _of_context(self.environ) or usual_socket(self.environ)
        )

    def ping(self) -> EngineFacts:
        """Ask whether it answers, and which engine it is; raises `EngineAway`."""
        self.ask(lambda client: client.ping())
        return self.facts()

    def facts(self) -> EngineFacts:
        """Which engine it is, asked once until the next outage; raises `EngineAway`."""
        if self._facts is None:
            self._facts = self.ask(_facts_of)
        return self._facts

    def ask(self, question: Callable[[DockerClient], T]) -> T:
        """Send one request; raises `EngineAway` and `EngineRefused`."""
        with self.errors():
            return question(self._connected())

    def stream(self, path: str, params: Mapping[str, Any], *, idle_seconds: float | None) -> requests.Response:
        """Open a stream of the engine, whose reader gives up where nothing comes for so long; None = it never does.

        The caller closes it. Raises `StreamIdle`, `EngineAway` and `EngineRefused`.
        """

        def opened(client: DockerClient) -> requests.Response:
            self._knock()  # a stream has a connection of its own
            return _open(client.api, path, params, (self.request_seconds, idle_seconds))

        return self.ask(opened)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """The errors of the SDK inside this block, as ours."""
        from docker.errors import APIError, DockerException  # noqa: PLC0415 - only workers of containers need the SDK

        try:
            yield
        except APIError as exc:
            status = exc.response.status_code if exc.response is not None else 0
            words = logs.redact(str(exc.explanation or exc))[:_WORDS_LIMIT]
            if status in _LATER:
                raise self._away(words) from exc
            raise EngineRefused(words, status=status) from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise self._away(str(exc)) from exc
        except DockerException as exc:
            # the SDK itself says no: to a value, or since a helper for passwords fails
            raise EngineRefused(logs.redact(str(exc))[:_WORDS_LIMIT], status=int(requests.codes.bad_request)) from exc

    def _away(self, words: str) -> EngineAway:
        with self._lock:
            # after an upgrade it may speak another version of its API
            client, self._client, self._facts = self._client, None, None
        if client is not None:
            client.close()
        return EngineAway(f"the container engine at {self.address} does not answer ({logs.redact(words)[:200]})")

    def _connected(self) -> DockerClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> DockerClient:
        self._knock()
        # the SDK can ask for the version by itself, and leaves its connection open where that fails
        asking = self._client_of(_ANY_VERSION)
        try:
            version = str(asking.api.version(api_version=False)["ApiVersion"])
        finally:
            asking.close()
        return self._client_of(version)

    def _client_of(self, version: str) -> DockerClient:
        import docker  # noqa: PLC0415 - as above

        how = {"version": version, "timeout": self.request_seconds, "max_pool_size": _CONNECTIONS}
        if not self.base_url and (self.environ.get("DOCKER_HOST") or _of_context(self.environ)):
            return docker.DockerClient.from_env(environment=dict(self.environ), **how)  # these may name certificates
        return docker.DockerClient(base_url=self._target(), **how)

    def _knock(self) -> None:
        """Connect to a socket of this host and leave: the SDK leaves a connection open that it cannot make."""
        if self._socket_path is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self.request_seconds)
                probe.connect(self._socket_path)


def _open(api: Any, path: str, params: Mapping[str, Any], timeout: tuple[float, float | None]) -> requests.Response:
    # the SDK has streams of its own, which cannot be closed by another thread, and take their time-out away
    from docker.errors import create_api_error_from_http_exception  # noqa: PLC0415 - only these workers need it

    url = f"{api.base_url}/v{api.api_version}{path}"
    try:
        answer: requests.Response = api.get(url, params=params, stream=True, timeout=timeout)
    except requests.exceptions.ReadTimeout as exc:
        raise StreamIdle from exc  # Podman sends nothing at all before the first entry
    try:
        answer.raise_for_status()
    except requests.HTTPError as exc:
        raise create_api_error_from_http_exception(exc) from exc
    return answer


def _of_context(environ: Mapping[str, str]) -> str | None:
    """The engine of the current context of the `docker` command; None = the context is the default one."""
    from docker.context import ContextAPI  # noqa: PLC0415 - as above
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        host = ContextAPI.kwargs_from_context(environment=environ).get("base_url")
    except (DockerException, OSError, ValueError, KeyError, TypeError) as exc:
        logger.warning("the context of the docker command cannot be read", extra={"error": str(exc)})
        return None
    found = str(host or "").removeprefix("http+")
    return None if found in ("", "unix:///var/run/docker.sock", "unix://var/run/docker.sock") else found


def usual_socket(environ: Mapping[str, str]) -> str:
    """The first socket of an engine that is there, else Docker's own."""
    paths = _usual_paths(environ)
    return f"unix://{next((path for path in paths if Path(path).is_socket()), paths[0])}"


def _usual_paths(environ: Mapping[str, str]) -> list[str]:
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return [path.format(runtime=runtime) for path in _SOCKETS]


def _in_container() -> bool:
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


class StreamIdle(Exception):
    """Nothing has come over a stream for the time that its reader waits; the engine may be quite well."""


def require_sdk() -> None:
    """Raise `SettingsError` where the extra `docker` is not installed."""
    try:
        import docker  # noqa: F401, PLC0415
    except ImportError as exc:
        raise SettingsError(
            "--deploy docker needs the Docker SDK: install it with pip install 'flowfleet[docker]'"
        ) from exc


def _facts_of(client: DockerClient) -> EngineFacts:
    told, info = client.version(), client.info()
    names = [str(part.get("Name", "")) for part in told.get("Components") or ()]
    security = [str(option) for option in info.get("SecurityOptions") or ()]
    return EngineFacts(
        product="podman" if any("podman" in name.lower() for name in names) else "docker",
        version=str(told.get("Version", "")),
        api=str(told.get("ApiVersion", "")),
        cgroups=int(str(info.get("CgroupVersion") or "0")),
        rootless=any("rootless" in option for option in security),
        cpus=int(info.get("NCPU") or 0),
        # Podman does not tell, and needs a further package for it
        has_init=any("init" in name for name in names),
    )


def refused_text(error: EngineRefused) -> str:
    """The engine's own words, as the end of a sentence."""
    return str(error).strip().rstrip(".")


def is_missing(error: EngineRefused) -> bool:
    """Whether the engine has said that what was asked for is not there."""
    return error.status == int(requests.codes.not_found)


def is_conflict(error: EngineRefused) -> bool:
    """Whether the engine has said no because of how things are now: a name that is taken, a container that runs.

    Podman answers 500 there (measured with 4.3.1).
    """
    return error.status in (int(requests.codes.conflict), int(requests.codes.server_error))
