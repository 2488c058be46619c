"""Pace: how often the loop does what, and how long before its time a run is claimed."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The intervals of the loop."""

    idle_seconds: float = 10.0  # longest pause between two listings
    busy_seconds: float = 4.0  # first pause after something happened; doubles up to idle_seconds
    linger_seconds: float = 20.0  # no doubling so soon after a claim: where one run came the next one often follows
    glance_seconds: float = 2.0  # how often the loop looks into the ledger, which costs the API nothing
    fresh_seconds: float = 2.0  # nothing is proposed from a listing older than this
    gap_seconds: float = 0.25  # shortest time between two listings
    gather_seconds: float = 0.06  # slots freed within it make one claim
    #: how long before its time a run is claimed: covers the start of the engine, which waits by itself; a slot is used
    #: meanwhile
    lead_seconds: float = 5.0
    sweep_seconds: float = 600.0  # time between two sweeps
    shun_seconds: float = 5.0  # how long a refused run is not proposed again

    @classmethod
    def of(cls, backend: str, *, idle_seconds: float) -> Pace:
        """The pace for an API of this backend.

        Prefect 1's queue costs one request, and after each run its own agents ask again within 0.25 s
        (prefect 1.4.1): runs that are created one after the other should not wait longer with us.
        """
        pace = cls(idle_seconds=idle_seconds)
        return replace(pace, busy_seconds=1.0) if backend == "prefect1" else pace
