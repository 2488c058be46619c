"""Status picture: what `flowfleet status` prints in the documents; `python -m tests.status_picture` renews it."""

import io
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from flowfleet.flow_run import NOTHING_HELD, Held, Route
from flowfleet.ledger.claims import Claim, State
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.roster import Offer, WorkerRow
from flowfleet.monitor.snapshot import RouteQueue, Snapshot, WorkerStatus
from flowfleet.monitor.status import status
from flowfleet.monitor.tables import console

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "several-machines.md")
#: the picture's place in a page
PLACE = re.compile(r"(<!-- picture: status -->\n```text\n)(.*?)(```\n)", flags=re.DOTALL)
_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
_CPU, _GPU = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
_ROUTES = {pool: Route("prefect3", pool, "default") for pool in (_CPU, _GPU)}
#: name, beginning of the id, flow, state, worker, seconds since
_RUNS = (
    ("brave-heron", "3f9c2a10", "sales-report", State.RUNNING, "worker@b", 312.0),
    ("calm-otter", "a41d07be", "load-orders", State.RUNNING, "worker@c", 95.0),
    ("keen-lynx", "07e5518c", "load-orders", State.STARTING, "worker@c", 1.0),
    ("warm-finch", "c2b86f43", "", State.QUEUED, "", 0.4),
)


def _worker(
    name: str, pool: str, uuid: str, slots: int, *, wanted: str = "active", busy: int, seen: float
) -> WorkerStatus:
    offer = Offer(backend="prefect3", pools=(pool,), pool_ids=(uuid,))
    row = WorkerRow(
        worker=name,
        nonce="n",
        offer=offer,
        routes=(_ROUTES[uuid],),
        slots=slots,
        version="0.1.0",
        wanted=wanted,
        live=True,
    )
    return WorkerStatus(row=row, busy=busy, seen_seconds_ago=seen)


def _queue(pool: str, due: int, oldest: float | None, depth: int, workers: int) -> RouteQueue:
    return RouteQueue(
        route=_ROUTES[pool],
        due=due,
        at_least=False,
        oldest_due_seconds=oldest,
        depth=depth,
        oldest_age_seconds=0.4 if depth else None,
        eligible_workers=workers,
        held=NOTHING_HELD if workers else Held(unserved=due),
    )


def snapshot() -> Snapshot:
    """A fleet of three hosts: two serve one pool, and the one for the other pool is about to be taken down."""
    due = datetime.fromtimestamp(_AT - 320, UTC)
    claims = [
        Claim(
            run_id=f"{begin}-0000-4000-8000-000000000000",
            state=state,
            claim="c",
            call="c",
            route=_ROUTES[_CPU],
            name=name,
            flow=flow,
            due=due,
            worker=worker,
            since=_AT - seconds,
        )
        for name, begin, flow, state, worker, seconds in _RUNS
    ]
    return Snapshot(
        at=_AT,
        fleet="default",
        redis_version="9.1.2",
        gate_open=True,
        leader=Leader(name="agent", host="a", nonce="n", term=3, beat=9),
        queues=(_queue(_CPU, 0, None, 1, 2), _queue(_GPU, 5, 80.0, 0, 0)),
        workers=(
            _worker("worker@b", "cpu", _CPU, 2, busy=1, seen=2.0),
            _worker("worker@c", "cpu", _CPU, 4, busy=2, seen=1.0),
            _worker("worker@d", "gpu", _GPU, 1, wanted="draining", busy=0, seen=3.0),
        ),
        claims=tuple(claims),
    )


def picture() -> str:
    """What `flowfleet status` prints of that fleet, in a pipe."""
    out = io.StringIO()
    console(out, {}).print(status(snapshot()))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def renew() -> None:
    """Write it into the pages."""
    shown = picture()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(PLACE.sub(lambda found: found[1] + shown + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    renew()
    sys.stdout.write(picture())
