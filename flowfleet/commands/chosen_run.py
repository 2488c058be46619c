"""Chosen run: the run that a command is given, by its id, a part of that which no other has, or its name."""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass

from flowfleet.api.client import ApiClient
from flowfleet.errors import FleetError, SettingsError
from flowfleet.flow_run import ID_PART
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim
from flowfleet.logs import redact
from flowfleet.monitor.runs import fitting, names
from flowfleet.settings.common import CommonSettings

#: as many claims that are gone as the ledger keeps
RECORDS = 10_000
_SHOWN = 5
_REASON = 200


class NoSuchRun(FleetError):
    """Neither the fleet nor the API knows such a run."""


@dataclass(frozen=True)
class ChosenRun:
    """The run's id and its name; the name is the id where nobody knows one."""

    run_id: str
    name: str


def find(given: str, ledger: Ledger, api: ApiClient) -> ChosenRun:
    """The run with this name, or whose id begins so: among live claims, else at the API and among those gone.

    Where there is none, the run with this part of an id among all of these. Raises `NoSuchRun`, `SettingsError` when
    several fit, and the errors of Redis and API.
    """
    live = names((), ledger.claims.live())
    found = fitting(given, live)
    if not found:
        # a claim that has gone tells parts of ids of runs that have ended; the API has no question for these
        known = names(ledger.claims.records(limit=RECORDS), ())
        known |= {state.run_id: state.run_name for state in api.orders.find(given)} | live
        # a name anywhere comes before a part of an id: a name may be one
        found = fitting(given, known) or _with_part(given.lower(), known)
    if len(found) > 1:
        shown = ", ".join(f"{run_id} ({name})" for run_id, name in list(found.items())[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise SettingsError(
            f"{len(found)} runs are named {given!r} or have it in their id: {shown}{more}; give a whole id."
        )
    if not found:
        raise NoSuchRun(
            f"No run is named {given!r} or has it in its id: give its whole id, as the Prefect UI shows it."
        )
    ((run_id, name),) = found.items()
    return ChosenRun(run_id, name or run_id)


def _with_part(text: str, known: Mapping[str, str]) -> dict[str, str]:
    return {run_id: name for run_id, name in known.items() if ID_PART.fullmatch(text) and text in run_id}


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
