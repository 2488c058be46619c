"""Life: whether the API hears of runs and workers that the ledger does not hear of, and whose such runs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


def shown_name(fleet: str) -> str:
    """The name by which a fleet shows itself as one online worker of its pools (`PresenceApi.online`)."""
    return f"flowfleet-{fleet}"


def is_of_fleet(fleet: str, name: str) -> bool:
    """Whether the fleet itself, or a worker of it that is cut off from Redis, shows itself by this name."""
    return name == shown_name(fleet) or name.startswith(f"{shown_name(fleet)} ")


def cut_off_name(fleet: str, worker: str) -> str:
    """The name by which a worker that is cut off from Redis shows itself in its pools (`PresenceApi.online`)."""
    return f"{shown_name(fleet)} {worker} (cut off from Redis)"


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A started run that the ledger has not heard of for too long, its worker, and the pools of that one."""

    run_id: str
    worker: str
    pools: tuple[str, ...] = ()
    #: the id of the run's own pool, for a worker whose pools nobody knows any more (Prefect 3)
    pool_id: str = ""


@dataclass(frozen=True, kw_only=True)
class LaunchedClaim:
    """The claim under which a run was launched, as the API tells it."""

    claim: str
    call: str
    #: `NAME@HOST` of the worker that has launched it; None where the API does not tell (Prefect 1)
    worker: str | None = None


class LifeApi(Protocol):
    """The part of a client that tells what the API knows of runs that the ledger does not hear of."""

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """What the API has heard of these runs, by run id: a text that is another one after each sign of life.

        Prefect 1: the last heartbeat of the run's engine. Prefect 3: that of its worker under `cut_off_name` in one of
        its pools. A run of which the API has heard nothing is left out.
        """

    def origin(self, run_id: str, fleet: str) -> LaunchedClaim | None:
        """The claim of this fleet under which a run was launched that has not ended since, by the run's history.

        None where it was launched by somebody else, has been claimed by somebody else since, or has ended.
        """
