"""Container: one container of a run at its engine, by its id: created, started once, signalled, looked at, removed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from flowfleet.errors import EngineRefused, StartFailed
from workers.containers.engine import Engine, is_conflict, is_missing, refused_text
from workers.containers.request import FLEET, VOLUME_LABEL, CreateRequest

logger = logging.getLogger(__name__)

_MOST_NAMES = 50
_NOWHERE = "0001-01-01"


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """What the engine says of a container now."""

    #: created, running, paused, restarting, removing, exited or dead
    status: str
    exit_code: int
    #: a process of it was killed for memory, at some time
    oom_killed: bool
    error: str
    started_at: float | None
    finished_at: float | None
    #: the signal of its image for a stop
    stop_signal: str
    tty: bool
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def never_began(self) -> bool:
        """Whether it was created and not started; one whose start has failed is such a one, too."""
        return self.status == "created"

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ("exited", "dead")


@dataclass(frozen=True)
class Container:
    """The container of this id."""

    engine: Engine
    id: str

    @classmethod
    def create(cls, engine: Engine, request: CreateRequest) -> tuple[Container, str]:
        """Create it, with its volumes and networks; returns it with its name.

        Raises `StartFailed` in the engine's words, and `EngineAway`.
        """
        for volume, any_maker in request.volumes.items():
            _ensure_volume(engine, volume, request.volume_labels, any_maker=any_maker)
        for name in _names(request.name):
            container = cls._create_as(engine, request, name)
            if container is not None:
                container.connect(request.connect)
                return container, name
        raise StartFailed(f"its container cannot be created: {_MOST_NAMES} containers have its name {request.name!r}")

    @classmethod
    def _create_as(cls, engine: Engine, request: CreateRequest, name: str) -> Container | None:
        """Create it under this name; None where that is taken."""
        try:
            made = engine.ask(lambda client: _create(client, request, name))
        except EngineRefused as exc:
            if is_conflict(exc) and _is_taken(engine, name):
                return None
            raise StartFailed(f"its container cannot be created: {refused_text(exc)}") from exc
        except (TypeError, ValueError, KeyError, AttributeError) as exc:  # the SDK looks at some values itself
            raise StartFailed(f"its container cannot be created: {exc}") from exc
        for warning in made.get("Warnings") or ():
            logger.info("container engine warns", extra={"container": name, "warning": str(warning)[:300]})
        return cls(engine, str(made["Id"]))

    def connect(self, networks: Sequence[str]) -> None:
        """Let it join these networks, before its start; one that cannot be joined removes it with `StartFailed`."""
        for network in networks:
            try:
                self.engine.ask(partial(self._join, network))
            except EngineRefused as exc:
                self.remove(force=True)
                raise StartFailed(f"its container cannot join {network!r}: {refused_text(exc)}") from exc

    def _join(self, network: str, client: Any) -> None:
        client.api.connect_container_to_network(self.id, network)

    def start(self) -> None:
        """Start it; called once in its life. Raises `EngineRefused` and `EngineAway`."""
        self.engine.ask(lambda client: client.api.start(self.id))

    def state(self) -> ContainerState | None:
        """Its state; None when it is not there any more. Raises `EngineAway`."""
        try:
            told = self.engine.ask(lambda client: client.api.inspect_container(self.id))
        except EngineRefused as exc:
            if is_missing(exc):
                return None
            raise
        return _state(told)

    def signal(self, name: str) -> bool:
        """Send this signal to its process 1, which is let go on if it was paused; False when there is none any more."""
        state = self.state()
        if state is None or state.status not in ("running", "paused", "restarting"):
            return False
        try:
            if state.status == "paused":
                self.engine.ask(lambda client: client.api.unpause(self.id))
            self.engine.ask(lambda client: client.api.kill(self.id, signal=name))
        except EngineRefused as exc:
            if is_missing(exc) or is_conflict(exc):
                return False  # it has ended meanwhile
            raise
        return True

    def remove(self, *, force: bool = False) -> bool:
        """Remove it with the volumes that are its alone; False where it runs and `force` is not said."""
        try:
            self.engine.ask(lambda client: client.api.remove_container(self.id, v=True, force=force))
        except EngineRefused as exc:
            if is_missing(exc):
                return True
            if is_conflict(exc):
                return self.state() is None  # it runs, or somebody else is removing it
            raise
        return True


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One container as a list of the engine has it."""

    container: Container
    status: str
    labels: Mapping[str, str]
    #: unix seconds by the engine's clock
    created_at: float


def listed(engine: Engine, labels: Mapping[str, str]) -> list[Listed]:
    """All containers with these labels; raises `EngineAway` and `EngineRefused`."""
    filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
    rows = engine.ask(lambda client: client.api.containers(all=True, filters=filters))
    return [
        Listed(
            container=Container(engine, str(row["Id"])),
            status=str(row.get("State") or "").lower(),
            labels=dict(row.get("Labels") or {}),
            created_at=_seconds(row.get("Created")),
        )
        for row in rows
    ]


def _seconds(created: Any) -> float:
    # Podman writes a time where Docker has a number
    return float(created) if isinstance(created, int | float) else moment(created) or 0.0


def _create(client: Any, request: CreateRequest, name: str) -> Mapping[str, Any]:
    api = client.api
    networking = None
    if request.network is not None:
        networking = api.create_networking_config({request.network: api.create_endpoint_config()})
    made: Mapping[str, Any] = api.create_container(
        request.image,
        name=name,
        host_config=api.create_host_config(**request.host),
        networking_config=networking,
        **request.create,
    )
    return made


def _names(wanted: str) -> Iterator[str]:
    yield wanted
    for number in itertools.islice(itertools.count(1), _MOST_NAMES - 1):
        yield f"{wanted}-{number}"


def _is_taken(engine: Engine, name: str) -> bool:
    try:
        engine.ask(lambda client: client.api.inspect_container(name))
    except EngineRefused as exc:
        if is_missing(exc):
            return False
        raise
    return True


def _ensure_volume(engine: Engine, name: str, labels: Mapping[str, str], *, any_maker: bool) -> None:
    """Make this volume unless it is there; raises `StartFailed` for one that was not made for runs of this fleet."""
    try:
        found = engine.ask(lambda client: client.api.inspect_volume(name))
    except EngineRefused as exc:
        if not is_missing(exc):
            raise StartFailed(f"its volume {name!r} cannot be looked at: {refused_text(exc)}") from exc
        try:
            engine.ask(lambda client: client.api.create_volume(name, driver="local", labels=labels))
        except EngineRefused as refused:
            raise StartFailed(f"its volume {name!r} cannot be made: {refused_text(refused)}") from refused
        return
    there = found.get("Labels") or {}
    if not any_maker and (there.get(VOLUME_LABEL) != "true" or there.get(FLEET, labels[FLEET]) != labels[FLEET]):
        raise StartFailed(
            f"its volume {name!r} was made by somebody else, and its worker does not allow it: start the worker with "
            f"--allow-mount {name}"
        )


def _state(told: Mapping[str, Any]) -> ContainerState:
    state, config = told.get("State") or {}, told.get("Config") or {}
    return ContainerState(
        status=str(state.get("Status") or "").lower(),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        started_at=moment(state.get("StartedAt")),
        finished_at=moment(state.get("FinishedAt")),
        stop_signal=str(config.get("StopSignal") or "SIGTERM"),
        tty=bool(config.get("Tty")),
        labels=dict(config.get("Labels") or {}),
    )


def moment(text: Any) -> float | None:
    """The unix time of the engine's text, to the microsecond; None for none, or for the year 1."""
    if not text or str(text).startswith(_NOWHERE):
        return None
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
