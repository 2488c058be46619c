"""Container ask: what a run asks of the container that it is to run in, whichever Prefect API has told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowfleet.errors import UnsupportedRun

#: as the states of both APIs spell them; they are the names of Prefect 3's job variable `image_pull_policy`
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True, kw_only=True)
class ContainerAsk:
    """What one run asks of its container. None and empty: it asks for nothing, and the worker's own options hold."""

    image: str
    #: the command and its arguments; a program without a slash is looked for in the image
    command: tuple[str, ...]
    #: all variables of the container beside those of its image
    env: Mapping[str, str] = field(repr=False)
    #: which of them hold the address of the Prefect API
    api_variables: tuple[str, ...] = ()
    #: files of the worker's host that go in at the same paths; named by the worker's own settings, never by a run's
    files: tuple[str, ...] = ()
    #: the name that the container would like to have, as people wrote it
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    #: one of `PULL_POLICIES`
    pull: str | None = None
    #: `username`, `password` and `registry_url` of a block; more is left out of account
    credentials: Mapping[str, Any] | None = field(default=None, repr=False)
    #: each as PATH, PATH:PATH or PATH:PATH:MODE
    volumes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    network_mode: str | None = None
    #: ports inside that are reachable from its networks
    ports: tuple[str, ...] = ()
    user: str | None = None
    #: further settings by their names in the SDK of Docker, those of a container and of its side at the host together
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: where `options` stand, for messages
    options_name: str = "options"


def a_list(given: Any, what: str) -> tuple[Any, ...]:
    """The list that `what` of a run must be, empty where nothing is given; raises `UnsupportedRun`."""
    if given and not isinstance(given, list | tuple):
        raise UnsupportedRun(f"{what} must be a list, not {type(given).__name__}")
    return tuple(given or ())


def a_table(given: Any, what: str) -> dict[str, Any]:
    """The table that `what` of a run must be, empty where nothing is given; raises `UnsupportedRun`."""
    if given and not isinstance(given, Mapping):
        raise UnsupportedRun(f"{what} must be a table of names and values, not {type(given).__name__}")
    return dict(given or {})
