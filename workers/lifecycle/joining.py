"""Joining: how a worker comes into its fleet: its name first, then what it serves, which may have to be made.

Nothing is made at the API for a worker that the roster refuses.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata

from flowfleet.api.client import ApiClient
from flowfleet.errors import ApiError, FleetError, SettingsError
from flowfleet.flow_run import Offer
from flowfleet.ledger import Ledger
from flowfleet.ledger.roster import WorkerRow
from flowfleet.retry import Retry
from flowfleet.settings.classes import WorkerSettings
from workers.host import Host
from workers.lifecycle import sign_on
from workers.state.state_folder import StateFolder

logger = logging.getLogger(__name__)

_API = "the Prefect API"


@dataclass(frozen=True)
class Joining:
    """The way of one worker into the roster."""

    ledger: Ledger
    settings: WorkerSettings
    api: ApiClient
    state: StateFolder
    host: Host
    retry: Retry
    #: says on the worker's page what is waited for, until the block is done
    waiting_for: Callable[[str], AbstractContextManager[None]]

    def join(self) -> WorkerRow:
        """Sign on, make the pools that do not exist, and return the worker's row.

        Raises `NameTaken`, and `SettingsError` for a pool that is missing and is not to be made, or cannot be served.
        """
        with self.waiting_for("Redis"):
            self.retry.ask("Redis", self.ledger.check)
        with self.waiting_for(_API):
            self.retry.ask(_API, self.api.probe)
            wanted = self._wanted()
            missing = self._missing(wanted)
            there = replace(wanted, pools=tuple(pool for pool in wanted.pools if pool not in missing))
            row = self._row(self._resolved(there))
        with self.waiting_for("Redis, or the end of an earlier worker of its name"):
            self.retry.ask("Redis", lambda: self._prove_and_sign_on(row))
        # at once: by it the next worker of this name knows that the row is that of its own predecessor
        ids = {"boot_id": self.host.boot_id, "nonce": row.nonce, "fleet": self.ledger.store.fleet}
        self.state.remember(**ids, api=self.api.address, worker=row.worker)
        if missing:
            row = self._made(row, wanted, missing)
        offer = row.offer
        serves: Mapping[str, object] = (
            {"labels": sorted(offer.labels)} if self.api.traits.by_labels else {"pools": ", ".join(offer.pools)}
        )
        logger.info("worker joins the fleet", extra={"worker": row.worker, "slots": row.slots, **serves})
        self._tell_queues(offer)
        return row

    def _wanted(self) -> Offer:
        settings, by_labels = self.settings, self.api.traits.by_labels
        return Offer(
            backend=self.api.backend,
            pools=() if by_labels else settings.pools,
            work_queues=settings.work_queues,
            labels=settings.agent_labels if by_labels else settings.labels,
            tenant=settings.tenant_id,
            deploy=settings.deploy,
        )

    def _missing(self, wanted: Offer) -> tuple[str, ...]:
        missing = self.retry.ask(_API, lambda: self.api.presence.missing_pools(wanted))
        if missing and not self.settings.create_pool:
            raise SettingsError(
                f"there is no work pool {missing[0]!r}, and --no-create-pool keeps this worker from making it: "
                "correct --pool, make the pool in Prefect, or start the worker with --create-pool"
            )
        return missing

    def _resolved(self, offer: Offer, *, create: bool = False) -> Offer:
        return self.retry.ask(_API, lambda: self.api.presence.resolve(offer, create=create))

    def _row(self, offer: Offer) -> WorkerRow:
        settings = self.settings
        return WorkerRow(
            worker=settings.identity,
            nonce=sign_on.new_nonce(),
            offer=offer,
            routes=(),
            slots=settings.slots,
            version=metadata.version("flowfleet"),
            address=settings.agent_address,
            deploy=settings.deploy,
            boot_id=self.host.boot_id,
            machine=self.host.fingerprint,
        )

    def _prove_and_sign_on(self, row: WorkerRow) -> None:
        seconds, roster = self.ledger.gate.lease().ttl_seconds, self.ledger.roster
        predecessor = sign_on.dead_predecessor(roster, self.state, self.host, row.worker, watch_seconds=seconds)
        sign_on.sign_on(roster, row, predecessor=predecessor, watch_seconds=seconds)

    def _made(self, row: WorkerRow, wanted: Offer, missing: tuple[str, ...]) -> WorkerRow:
        """Make the missing pools, and write what the worker serves now; the row goes again where one cannot be made."""
        roster = self.ledger.roster
        try:
            with self.waiting_for(_API):
                offer = self._resolved(wanted, create=True)
        except FleetError:
            self.retry.ask("Redis", lambda: roster.sign_off(row.worker, row.nonce))
            raise
        for pool in missing:
            logger.info(
                "there was no such work pool, so it is made: --no-create-pool refuses instead",
                extra={"pool": pool, "worker": row.worker},
            )
        whole = replace(row, offer=offer)
        if not self.retry.ask("Redis", lambda: roster.update(whole)):
            raise sign_on.NameTaken(
                f"another worker named {row.worker} was started meanwhile; give this one another --name"
            )
        return whole

    def _tell_queues(self, offer: Offer) -> None:
        """Say which of the worker's work queues do not exist, and which do: none is ever made by us."""
        if not offer.work_queues:
            return
        try:
            there = self.api.presence.work_queues(offer)
        except ApiError as exc:  # the worker serves what there is, whether it can tell it or not
            logger.info("the work queues of its pools cannot be listed now", extra={"error": str(exc)})
            return
        for queue in offer.work_queues:
            if queue not in there:
                logger.warning(
                    "there is no such work queue: its runs are taken once somebody has made it",
                    extra={"work_queue": queue, "pools": ", ".join(offer.pools), "exist": ", ".join(there)},
                )
