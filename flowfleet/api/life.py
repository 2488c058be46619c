"""Life: whether the API hears of runs and workers that the ledger does not hear of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


def cut_off_name(fleet: str, worker: str) -> str:
    """The name by which a worker that is cut off from Redis shows itself in its pools (`PresenceApi.online`)."""
    return f"flowfleet-{fleet} {worker} (cut off from Redis)"


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A started run that the ledger has not heard of for too long, its worker, and the pools of that one."""

    run_id: str
    worker: str
    pools: tuple[str, ...] = ()


class LifeApi(Protocol):
    """The part of a client that tells whether the API hears of what the ledger does not hear of."""

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """What the API has heard of these runs, by run id: a text that is another one after each sign of life.

        Prefect 1: the last heartbeat of the run's engine. Prefect 3: that of its worker under `cut_off_name` in one of
        its pools. A run of which the API has heard nothing is left out.
        """
