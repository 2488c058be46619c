"""Presence: the part of a client that knows what workers offer, and shows the fleet to people."""

from typing import Protocol

from flowfleet.flow_run import Offer, Route


class PresenceApi(Protocol):
    """What workers offer at the API, and what the API shows of the fleet; raises as `ApiClient` says."""

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        """Fill in the server's ids of the offer (pool uuids, tenant); `create` makes missing pools, no queues."""

    def missing_pools(self, offer: Offer) -> tuple[str, ...]:
        """The pools of the offer that do not exist; raises `SettingsError` for one that nobody can make."""

    def work_queues(self, offer: Offer) -> tuple[str, ...]:
        """The names of all work queues that exist in the pools of the offer."""

    def routes(self, offer: Offer) -> list[Route]:
        """The routes that exist now in the offer's pools, served or not (Prefect 3: one for each of their queues)."""

    def changed(self, offer: Offer) -> bool:
        """Whether other answers have shown since the last call of `routes` that there are other routes by now."""

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        """Show the fleet as one online worker of the pool (Prefect 3: a worker's heartbeat with the given name)."""

    def offline(self, pool: str, name: str) -> None:
        """Remove the worker that `online` shows from the pool; it may be gone already."""
