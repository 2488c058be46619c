"""Starts: the runs that a worker is just starting through an agent's methods, and what the methods leave there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an agent is made where nothing is started
    from workers.deployment import StartedRun, StartSpec
    from workers.environment import EnvironmentLayers


@dataclass(kw_only=True)
class StartUnderWay:
    """One start, from the worker's call of the agent's methods to their end.

    Methods of the agent that meet their run here leave the API alone: the run is Submitted already, and the worker
    reports how the start went.
    """

    spec: StartSpec
    #: of what the run's environment is made
    layers: EnvironmentLayers
    #: starts the run as a process of this host
    below: Callable[[StartSpec], StartedRun]
    #: until when the run may begin by its lease as it is now; None = it has none
    not_after: Callable[[], float | None] = lambda: None
    started: list[StartedRun] = field(default_factory=list)
    #: what `deploy_flow` has returned
    texts: list[str] = field(default_factory=list)
    #: what the user's code has raised
    errors: list[BaseException] = field(default_factory=list)
    #: by which it has told that the run is another agent's
    of_another: list[BaseException] = field(default_factory=list)


class Starts:
    """The starts of one agent that are under way, by run: whatever thread of the user's asks, it finds them."""

    def __init__(self) -> None:
        self._by_run: dict[str, StartUnderWay] = {}

    def of(self, run_id: str) -> StartUnderWay | None:
        """The start of this run that is under way."""
        return self._by_run.get(run_id)

    @contextlib.contextmanager
    def hold(self, start: StartUnderWay) -> Iterator[StartUnderWay]:
        """The time in which this start is under way."""
        self._by_run[start.spec.run_id] = start
        try:
            yield start
        finally:
            del self._by_run[start.spec.run_id]
