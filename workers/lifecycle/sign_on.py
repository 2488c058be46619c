"""Sign-on: a worker's row in the roster, its state folder, and the proof that no other process has its name."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial

from flowfleet.errors import FleetError, SettingsError
from flowfleet.ledger.roster import Roster, WorkerRow
from flowfleet.retry import REPEAT_SECONDS, Retry, RetrySchedule
from flowfleet.settings.classes import WorkerSettings
from workers.host import Host
from workers.state.state_folder import StateFolder, StateLocked, state_root

logger = logging.getLogger(__name__)

#: how a worker that starts waits for Redis and the API; its earlier runs wait for it, whatever pause an API asks for
RETRY = Retry(
    schedule=partial(RetrySchedule, first_seconds=2.0, longest_seconds=2.0, longest_asked_seconds=REPEAT_SECONDS)
)
#: seconds that another worker of our name is watched for a sign of life, where the leader has written no other TTL
WATCH_SECONDS = 20.0
_LOOK_SECONDS = 0.5
#: seconds to wait for our lock: a sibling worker that starts holds it for a moment, to take over runs (takeover.py)
LOCK_SECONDS = 2.0


class NameTaken(FleetError):
    """Another live worker has this identity."""

    exit_code = 2


def open_state(
    settings: WorkerSettings,
    host: Host,
    environ: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> StateFolder:
    """Lock the state folder; raises `NameTaken` while another worker has it, `SettingsError` when it cannot be used."""
    root = state_root(settings, environ)
    deadline = clock() + LOCK_SECONDS
    while True:
        try:
            return StateFolder.open(root, settings.machine_id or host.machine_id, settings.own_name)
        except StateLocked as exc:
            if clock() >= deadline:
                raise NameTaken(str(exc)) from exc
            wait(LOCK_SECONDS / 20)
        except OSError as exc:
            raise SettingsError(
                f"the state folder {root} cannot be used ({exc.strerror}): name another with --state-dir"
            ) from exc


def sign_on(
    roster: Roster,
    row: WorkerRow,
    *,
    predecessor: str | None,
    watch_seconds: float = WATCH_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Write our row into the roster; raises `NameTaken` when another process with our name gives a sign of life.

    `predecessor` is the nonce that our locked state folder was last used with under this boot: that process is dead,
    since we hold its lock, so nothing needs to be watched.
    """
    watch = {"worker": row.worker, "seconds": watch_seconds}
    other = roster.sign_on(row)
    while other is not None:
        if other.nonce != predecessor:
            logger.warning("a worker of this name has not signed off; watching it for a sign of life", extra=watch)
            if gives_sign_of_life(roster, other, watch_seconds, clock, wait):
                raise NameTaken(
                    f"another worker named {row.worker} is alive in this fleet; give this one another --name"
                )
        other = roster.sign_on(row, over=other)


def gives_sign_of_life(
    roster: Roster, other: WorkerRow, seconds: float, clock: Callable[[], float], wait: Callable[[float], None]
) -> bool:
    """Whether the worker of the row `other` gives a sign of life within `seconds`."""
    deadline = clock() + seconds
    while clock() < deadline:
        wait(_LOOK_SECONDS)
        now = next((row for row in roster.rows() if row.worker == other.worker), None)
        if now is None or not now.live:
            return False
        if (now.nonce, now.beat) != (other.nonce, other.beat):
            return True
    return False


def new_nonce() -> str:
    """A random id, by which the roster tells this process from others of its name."""
    return uuid.uuid4().hex


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

    Under our boot id it is dead, since we hold its lock, so nothing needs to be watched. Under another one the host has
    restarted, or the disk was copied, or two machines share the folder: only the first leaves the old process silent,
    so it is watched; `NameTaken` is raised when it, or a later process of its worker, moves. `worker` is our own
    identity: `sign_on` deals with any other process that has it.
    """
    last = state.last or {}
    nonce, before = last.get("nonce"), last.get("worker")
    for row in roster.rows() if state.boot_changed(host.boot_id) else ():
        if not row.live or not (row.nonce == nonce or (row.worker == before != worker)):
            continue
        logger.warning(
            "the state folder was last used under another boot, watching its worker for a sign of life",
            extra={"worker": row.worker, "seconds": watch_seconds},
        )
        if gives_sign_of_life(roster, row, watch_seconds, clock, wait):
            raise NameTaken(
                f"The state folder {state.path} belongs to the worker {row.worker}, which is alive under another boot: "
                "this machine is a clone of that one or shares its disk, so give this worker another --name "
                "or a --state-dir of its own."
            )
    return nonce if isinstance(nonce, str) else None
