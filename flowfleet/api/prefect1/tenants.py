"""Tenants: the tenant whose runs a Prefect 1 API shows us, and with it what workers offer there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flowfleet.api.prefect1.graphql import GraphQL
from flowfleet.api.prefect1.runs import Runs, literal
from flowfleet.api.prefect1.states import Run
from flowfleet.api.transport.reading import reading, rows
from flowfleet.api.transport.session import ASKED_TRIES
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import Offer, Route


@dataclass
class Tenants:
    """The tenants of one client: its own, given or asked for once, and those of the offers that it has seen."""

    graphql: GraphQL
    runs: Runs
    server_backend: str
    _seen: set[str] = field(default_factory=set, init=False)

    def own(self) -> str:
        """Our own tenant: the given one, else that of our key, else the server's first."""
        return self.graphql.tenant_id(self._of_key if self.server_backend == "cloud" else self._first)

    def _of_key(self) -> str:
        answer = self.runs.ask("query { auth_info { tenant_id } }", "auth_info", tries=ASKED_TRIES)
        tenant = answer.get("tenant_id") if isinstance(answer, Mapping) else None
        if not tenant:
            raise ApiRejected(f"{self.graphql.session.address.api} tells no tenant for our key: give it by --tenant-id")
        return str(tenant)

    def _first(self) -> str:
        answer = self.runs.ask("query { tenant { id } }", "tenant", tries=ASKED_TRIES)
        with reading("for its tenants"):
            found = [str(row["id"]) for row in rows(answer)]
        if not found:
            where = self.graphql.session.address.shown
            raise ApiRejected(
                f"the Prefect Server at {where} has no tenant: create one by `prefect server create-tenant`"
            )
        return found[0]

    def check(self) -> None:
        """Raises `ApiRejected` when the tenant that was given does not exist."""
        tenant = self.own()
        where = literal({"id": {"_eq": tenant}})
        if not self.runs.ask_first(f"query {{ tenant(where: {where}) {{ id }} }}", "tenant"):
            raise ApiRejected(f"{self.graphql.session.address.api} has no tenant {tenant}: correct --tenant-id")

    def by_tenant(self, offers: Sequence[Offer]) -> dict[str, list[Offer]]:
        """The offers by their workers' tenants: a server that was set up anew has another for workers started since."""
        found: dict[str, list[Offer]] = {}
        for offer in offers:
            found.setdefault(offer.tenant or self.own(), []).append(offer)
        self._seen.update(found)
        return found

    def all(self) -> list[str]:
        """Our own tenant and those of the offers."""
        return sorted({*self._seen, self.own()})

    def route(self, run: Run) -> Route:
        """The route of a run."""
        return Route.of_labels(str(run.row.get("tenant_id") or self.own()), run.labels)

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        # only the tenant has to be filled in
        del create
        labels = tuple(sorted(set(offer.labels)))
        return Offer(backend=offer.backend, labels=labels, tenant=self.own(), deploy=offer.deploy)

    def missing_pools(self, offer: Offer) -> tuple[str, ...]:
        # there are no pools
        del offer
        return ()

    def work_queues(self, offer: Offer) -> tuple[str, ...]:
        # and no work queues
        del offer
        return ()

    def routes(self, offer: Offer) -> list[Route]:
        # none beforehand: only the listed runs tell which label sets there are, and the poller keeps those
        del offer
        return []

    def changed(self, offer: Offer) -> bool:
        # never: `routes` tells none
        del offer
        return False

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        # nothing to do: an agent shows as alive by asking for runs
        pass

    def offline(self, pool: str, name: str) -> None:
        # nothing to do: an agent that no longer asks counts as gone after a minute
        pass
