"""Pace: how often the loop does what, and how long before its time a run is claimed."""

from __future__ import annotations

from dataclasses import dataclass

from flowfleet.api.traits import Traits


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
    #: how long before its time a run is claimed: covers the start of an engine that waits by itself; a slot is used
    #: meanwhile
    lead_seconds: float = 5.0
    sweep_seconds: float = 600.0  # time between two sweeps
    leaving_seconds: float = 0.5  # how often a leader that was told to leave looks into the ledger
    shun_seconds: float = 5.0  # how long a refused run is not proposed again

    @classmethod
    def of(cls, traits: Traits, *, idle_seconds: float) -> Pace:
        """The pace for an API with these traits."""
        return cls(
            idle_seconds=idle_seconds,
            busy_seconds=traits.busy_seconds,
            lead_seconds=cls.lead_seconds if traits.engine_waits else 0.0,
        )
