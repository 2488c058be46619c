"""Takeover: how this worker becomes the keeper of what dead workers of other names on this host have left.

A run's folder stays where it was made, since its shim writes there by path. Who looks after the run is told by a record
in that folder, its keeper: the worker whose state folder is named, and who holds the lock of that for life. The one
rule: who changes a keeper holds the lock of the keeper before, so that this one is dead and no other can be at it. The
lock is let go at once, so the old name starts again at any time: it finds its runs kept by a living worker and leaves
them alone, or by a dead one and takes them back. A crash anywhere leaves each run with exactly one keeper.

A worker whose host has got another name is another one to the ledger, and names itself the keeper of its own runs. What
a worker of another host name has left is not taken from it: it may be that of a container which has the same volume,
whose runs nobody else can see.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.errors import LedgerError
from flowfleet.flow_run import Offer
from flowfleet.ledger.roster import Roster
from workers.shim import atomic_files
from workers.state.run_folders import OutboxFolder, RunFolder, RunFolders
from workers.state.state_folder import StateFolder, StateLocked

logger = logging.getLogger(__name__)


def scopes_of(offer: Offer) -> frozenset[str]:
    """The heads (`BACKEND/SCOPE`) of all routes that this offer can serve, made of the API's own ids."""
    return frozenset(f"{offer.backend}/{scope}" for scope in (*offer.pool_ids, offer.tenant) if scope)


def _host(worker: str) -> str:
    return worker.rpartition("@")[2]


def _scope(route: object) -> str:
    return "/".join(str(route).split("/")[:2])


@dataclass(frozen=True, kw_only=True)
class Takeover:
    """The takeover from dead workers of other names on this host, once, before the first message is fetched."""

    #: the state folder of this worker
    own: StateFolder
    #: who this worker is to the ledger, NAME@HOST
    worker: str
    fleet: str
    #: the API's address, as it may be shown; hosts may reach one API by several, so the scope of a route counts too
    api: str
    #: `scopes_of` our offer
    scopes: frozenset[str]
    #: moves the reports of such a worker into our own outbox, and tells how many
    take_reports: Callable[[OutboxFolder], int]
    #: whether the worker of this record (of another boot) may live on another machine, of whose disk this is a copy
    may_live: Callable[[Mapping[str, Any]], bool]

    def take_over(self) -> list[RunFolder]:
        """Become the keeper of all runs that we may take; returns every unsettled run that is ours to look after."""
        for path in self.own.siblings():
            try:
                sibling = StateFolder.open_path(path)
            except StateLocked:
                continue
            except OSError as exc:
                logger.warning("folder of another worker not opened", extra={"name_was": path.name, "error": str(exc)})
                continue
            try:
                self._take_from(sibling)
            finally:
                sibling.close()
        self._take_back()
        return self._kept_by(self.own.path.name)

    def _take_from(self, dead: StateFolder) -> None:
        last = dead.last or {}
        if self.own.last and dead.boot_changed(str(self.own.last.get("boot_id"))) and self.may_live(last):
            logger.warning("runs of another boot of this host are left alone", extra={"name_was": dead.path.name})
            return
        runs = [folder for folder in self._kept_by(dead.path.name) if self._ours(folder)]
        was = str(last.get("worker", self.worker))
        if _host(was) != _host(self.worker):
            if runs:
                logger.warning(
                    "runs of a worker of another host name are left alone",
                    extra={"name_was": dead.path.name, "worker_was": was, "runs": len(runs)},
                )
            return
        for folder in runs:
            folder.keep_for(self.own.path.name)
        reports = self.take_reports(dead.outbox) if self._same(last) else 0
        if runs or reports:
            logger.info(
                "runs of a dead worker taken over",
                extra={"name_was": dead.path.name, "runs": len(runs), "reports": reports},
            )

    def _take_back(self) -> None:
        # runs in our folder whose keeper has no state folder any more, since somebody has removed it, and those that we
        # have begun under another host name, so that the ledger has them as another worker's
        for folder in self.own.runs.unsettled():
            nobody = not (self.own.path.parent / folder.keeper() / "lock").exists()
            begun_by = (folder.intent() or {}).get("worker", self.worker)
            if nobody or (begun_by != self.worker and not folder.changed_hands()):
                folder.keep_for(self.own.path.name)

    def _kept_by(self, name: str) -> list[RunFolder]:
        homes: list[Path] = sorted(path for path in self.own.path.parent.iterdir() if (path / "runs").is_dir())
        folders = [folder for home in homes for folder in RunFolders(home / "runs").unsettled()]
        return [folder for folder in folders if folder.keeper() == name]

    def _ours(self, folder: RunFolder) -> bool:
        if folder.state_folder == self.own.path:
            return True
        intent = folder.intent() or {}
        home = atomic_files.read_json(folder.state_folder / "worker.json") or {}
        return self._same({**home, **intent})

    def _same(self, facts: Mapping[str, Any]) -> bool:
        """Whether these facts name our fleet and our API."""
        same_api = (self.api != "" and facts.get("api") == self.api) or _scope(facts.get("route")) in self.scopes
        return facts.get("fleet") == self.fleet and same_api


def may_live(roster: Roster, last: Mapping[str, Any]) -> bool:
    """Whether a worker that no lock proves dead may live: the roster has it as live, or Redis does not answer."""
    try:
        rows = roster.rows()
    except LedgerError:
        return True
    return any(row.worker == last.get("worker") and row.nonce == last.get("nonce") and row.live for row in rows)
