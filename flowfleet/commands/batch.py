"""Batch: all runs of a route or of a worker, which one command is to order (`--all-of`)."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import click

from flowfleet.errors import SettingsError
from flowfleet.flow_run import Route
from flowfleet.monitor.snapshot import route_name
from flowfleet.printable import printable

_NAMED = 10


@dataclass(frozen=True)
class RouteOrWorker:
    """What `--all-of` is given: a route, by its text or as people name it, or a worker, by NAME or NAME@HOST."""

    given: str
    #: pool uuid → pool name
    pool_names: Mapping[str, str]

    def has(self, route: Route | None, worker: str | None) -> bool:
        """Whether a run of this route and this worker is meant; None where the run has none that is known."""
        names = {worker, worker.rpartition("@")[0]} if worker else set()
        if route is not None:
            names |= {str(route), route_name(route, self.pool_names)}
        # an empty text, as of a variable that is not set, means no run
        return bool(self.given) and self.given in names

    def others(self, runs: Iterable[tuple[Route | None, str | None]]) -> str:
        """The routes and workers of these runs, for a sentence: what could have been given; empty for no runs."""
        routes, workers = set(), set()
        for route, worker in runs:
            routes |= {route_name(route, self.pool_names)} if route else set()
            workers |= {worker} if worker else set()
        return ", ".join([*sorted(routes), *sorted(workers)])


def check_choice(run: str | None, all_of: str | None) -> None:
    """Raise click's error unless a command was given either one run or a route or worker."""
    if run is None and all_of is None:
        raise click.UsageError("Which run? Give RUN, or --all-of ROUTE or WORKER.")
    if run is not None and all_of is not None:
        raise click.UsageError(f"Give {run} or --all-of {all_of}, not both.")


def agreed(sentence: str) -> bool:
    """Whether the batch that the sentence tells of is really to be ordered; asks on a terminal, refuses elsewhere."""
    if not sys.stdin.isatty():
        raise SettingsError(f"{sentence}: say --yes, since nobody can be asked here.")
    return click.confirm(f"{sentence}. Go on?", err=True)


def counted(number: int) -> str:
    """So many runs, in words."""
    return "1 run" if number == 1 else f"{number} runs"


def named(names: Sequence[str]) -> str:
    """The names in one line: the first ones, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more
