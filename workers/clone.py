"""Clone: another machine with our state folder, a copy of it or the same one, told from our own past by watching it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flowfleet.ledger.roster import Roster
from workers.host import Host
from workers.lifecycle.sign_on import NameTaken, moves, predecessor
from workers.records import StateFolder

logger = logging.getLogger(__name__)


def dead_predecessor(
    roster: Roster,
    state: StateFolder,
    host: Host,
    worker: str,
    *,
    watch_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> str | None:
    """The nonce of the process that had our folder before us, which is certainly dead; None when there was none.

    Under another boot id the host has restarted, or the disk was copied, or two machines share the folder. Only the
    first leaves the old process silent, so it is watched; `NameTaken` is raised when it, or a later process of its
    worker, moves. `worker` is who we are: whoever else has that name is seen to by the sign-on.
    """
    if state.last is None or not state.boot_changed(host.boot_id):
        return predecessor(state, host)
    nonce, before = state.last.get("nonce"), state.last.get("worker")
    for row in roster.rows():
        if not row.live or not (row.nonce == nonce or (row.worker == before != worker)):
            continue
        logger.warning(
            "the state folder was last used under another boot, watching its worker for a sign of life",
            extra={"worker": row.worker, "seconds": watch_seconds},
        )
        if moves(roster, row, watch_seconds, clock, wait):
            raise NameTaken(
                f"The state folder {state.path} belongs to the worker {row.worker}, which is alive under another boot: "
                "this machine is a clone of that one or shares its disk, so give this worker another --name "
                "or a --state-dir of its own."
            )
    return nonce if isinstance(nonce, str) else None
