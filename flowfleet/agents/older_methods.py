"""Older methods: what Prefect 1's agents had in some years only, on top of the methods of every year."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flowfleet.agents import overrides
from flowfleet.agents.flow_run_records import graphql_of
from flowfleet.flow_run import Offer

if TYPE_CHECKING:
    from flowfleet.api.client import ApiClient


class OlderMethods:
    """The methods of 2019, and others that the documents of a single year name."""

    if TYPE_CHECKING:  # what `Agent` has
        labels: list[str]
        heartbeat_period: float

        @property
        def client(self) -> ApiClient: ...
        @property
        def deploy_kind(self) -> str: ...
        def heartbeat(self) -> None: ...
        def deploy_flow(self, flow_run: Any) -> str: ...
        def update_state(self, flow_run: Any) -> None: ...

    def _deploy(self, flow_run: Any) -> str:
        if overrides.is_overridden(self, "deploy_flow") or not overrides.is_overridden(self, "deploy_flows"):
            return self.deploy_flow(flow_run)
        self.deploy_flows([flow_run])  # a program of 2019 has overridden this one instead
        return ""

    def deploy_flows(self, flow_runs: Iterable[Any]) -> None:
        """Call `deploy_flow` for each of these flow runs (2019).

        Your program may call this method. Flowfleet calls an override where `deploy_flow` is not overridden, with one
        flow run.
        """
        for flow_run in flow_runs:
            self.deploy_flow(flow_run)

    def update_states(self, flow_runs: Iterable[Any]) -> None:
        """Call `update_state` for each of these flow runs (2019). Your program may call this method."""
        for flow_run in flow_runs:
            self.update_state(flow_run)

    def query_tenant_id(self) -> str | None:
        """The id of the tenant whose flow runs this agent gets (2019). Your program may call this method."""
        offer = Offer(backend="prefect1", labels=tuple(sorted(set(self.labels))), deploy=self.deploy_kind)
        return self.client.presence.resolve(offer, create=False).tenant or None

    @property
    def flow_run_api_key(self) -> str | None:
        """The key that flow runs get (since 0.15); a secret. None where there is none."""
        return graphql_of(self.client).key

    def run_heartbeat_thread(self) -> None:
        """Start a thread that calls `heartbeat` each `heartbeat_period` seconds (0.13), beside the one of `start`.

        Your program may call this method. Flowfleet does not.
        """
        from flowfleet.agents import start  # noqa: PLC0415 - Celery is heavy, and only a start needs it

        start.HeartbeatThread(self.heartbeat, lambda: self.heartbeat_period).start()
