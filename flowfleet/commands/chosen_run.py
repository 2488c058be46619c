"""Chosen run: the run that a command is given, by its id, a part of that which no other has, or its name."""

import getpass
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import click

from flowfleet.api.client import ApiClient
from flowfleet.api.found import FoundRuns
from flowfleet.errors import ApiError, FleetError, SettingsError
from flowfleet.flow_run import ID_PART, UUID
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim
from flowfleet.logs import redact
from flowfleet.monitor.runs import fitting, names
from flowfleet.printable import printable
from flowfleet.settings.common import CommonSettings

#: as many claims that are gone as the ledger keeps
RECORDS = 10_000
_SHOWN = 5
T = TypeVar("T")
_REASON = 200


class NoSuchRun(FleetError):
    """Neither the fleet nor the API knows such a run."""


@dataclass(frozen=True)
class ChosenRun:
    """The run's id and its name, fit for a sentence; the name is the id where nobody knows one."""

    run_id: str
    name: str

    @classmethod
    def of(cls, run_id: str, name: str | None) -> "ChosenRun":
        """The run with this name as somebody has given it."""
        return cls(run_id, printable(name or run_id))


@dataclass
class HalfApi:
    """The API of a command that has half an answer without it: an API that cannot be asked does not end the command."""

    connect: Callable[[], ApiClient]
    #: why the API could not be asked; it is not asked again then
    trouble: str = field(default="", init=False)

    def ask(self, question: Callable[[ApiClient], T]) -> T | None:
        """The answer to a question; None when the API could not be asked."""
        if self.trouble:
            return None
        try:
            return question(self._client)
        except (ApiError, SettingsError) as error:
            self.trouble = str(error)
            return None

    @cached_property
    def _client(self) -> ApiClient:
        return self.connect()

    def find(self, given: str) -> FoundRuns | None:
        """What the API finds by a name or a part of an id; None when it could not be asked."""
        return self.ask(lambda api: api.orders.find(given))

    def told(self, sentence: str) -> str:
        """The sentence, and why the API could not be asked, if so."""
        return f"{sentence} The API could not be asked: {self.trouble}" if self.trouble else sentence


def find(
    given: str,
    ledger: Ledger,
    ask: Callable[[str], FoundRuns | None],
    on_disk: Callable[[], dict[str, str]] | None = None,
    *,
    sure: bool = False,
) -> ChosenRun:
    """The run with this name, or whose id begins so: among live claims, else at the API and among those gone.

    Where there is none, the run with this part of an id among all of these. `ask` asks the API, and returns None when
    it could not. `on_disk` gives run id → run name of this host's files: the API is asked only for what neither they
    nor the ledger know. `sure` is for orders: there a part of an id is not enough where the API could not tell all
    runs that have it. Raises `NoSuchRun`, `SettingsError` when several fit or may, and the errors of Redis and API.
    """
    if not given.strip():
        raise SettingsError("RUN is empty: give the name or the id of a run.")
    known = names((), ledger.claims.live())
    found = fitting(given, known)
    at_api: FoundRuns | None = FoundRuns()
    if not found:
        # a claim that has gone tells parts of ids of runs that have ended; the API has no question for these
        known = names(ledger.claims.records(limit=RECORDS), ()) | (on_disk() if on_disk else {}) | known
        found = _anywhere(given, known) if on_disk else {}
    if not found:
        at_api = ask(given)
        known |= at_api.names if at_api else {}
        found = _anywhere(given, known)
    if not found:
        raise NoSuchRun(_unknown(given, at_api))
    cut_at = at_api.cut_at if at_api else None
    if len(found) > 1:
        raise SettingsError(_several(given, found, at_least=cut_at is not None))
    ((run_id, name),) = found.items()
    if cut_at is not None and name != given:
        others = f"others may have {given!r} in their id, too: {_cut(cut_at)}"
        if sure:
            raise SettingsError(f"{run_id} ({name}) has it, but {others}. Give the whole id.")
        click.echo(f"{others[0].upper()}{others[1:]}.", err=True)
    return ChosenRun.of(run_id, name)


def _anywhere(given: str, known: Mapping[str, str]) -> dict[str, str]:
    # a name anywhere comes before a part of an id: a name may be one
    part = given.lower()
    with_part = {run_id: name for run_id, name in known.items() if part in run_id} if ID_PART.fullmatch(part) else {}
    return fitting(given, known) or with_part


def _several(given: str, found: Mapping[str, str], *, at_least: bool) -> str:
    shown = ", ".join(f"{run_id} ({name})" for run_id, name in list(found.items())[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    number = f"At least {len(found)}" if at_least else str(len(found))
    return f"{number} runs are named {given!r} or have it in their id: {shown}{more}; give a whole id."


def _unknown(given: str, at_api: FoundRuns | None) -> str:
    if UUID.fullmatch(given.lower()):
        return f"No run{'' if at_api else ' of this fleet'} has the id {given}."
    in_fleet = "" if at_api else " of this fleet"
    if not ID_PART.fullmatch(given.lower()):
        return f"No run{in_fleet} is named {given!r}: give its name or its id, as the Prefect UI shows them."
    cut = f" ({_cut(at_api.cut_at)})" if at_api and at_api.cut_at is not None else ""
    return (
        f"No run{in_fleet} is named {given!r} or has it in its id{cut}: give its whole id, as the Prefect UI shows it."
    )


def _cut(cut_at: int) -> str:
    return f"of the unfinished runs at the API only the {cut_at:,} that are due first were looked at"


def host_of(claim: Claim) -> str:
    """The host of the claim's worker."""
    return (claim.worker or "").rpartition("@")[2]


def by_whom(settings: CommonSettings, reason: str) -> str:
    """Who orders this, and why: bounded, and without secrets."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "somebody"
    told = " ".join(reason.split())
    return redact(f"by {user}@{settings.host}" + (f": {told}" if told else ""))[:_REASON]
