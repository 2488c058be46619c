"""Status: a snapshot as tables for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flowfleet.ledger.api_troubles import STARTING
from flowfleet.ledger.claims import State
from flowfleet.monitor import held
from flowfleet.monitor.snapshot import Snapshot, WorkerStatus
from flowfleet.monitor.tables import PLAIN_WIDTH, span, table
from flowfleet.printable import printable

#: shown in place of the state of a run that has ended at the API while its process lives
LINGERS = "lingers"
_TROUBLES = {
    "key-refused": "The Prefect API refuses the key of",
    "maintenance": "The Prefect API is in maintenance, waited for by",
    "away": "The Prefect API does not answer",
}
_COLOURS = {
    "active": "green",
    "open": "green",
    "paused": "yellow",
    "draining": "yellow",
    "shut": "red",
    "offline": "red",
    str(State.RUNNING): "green",
    str(State.MISSING): "red",
    LINGERS: "yellow",
    str(State.JUDGED): "red",
}


def status(snapshot: Snapshot, *, runs: int = 20, width: int = PLAIN_WIDTH) -> RenderableType:
    """The whole status: head, queues, workers, and at most `runs` runs."""
    parts: list[RenderableType] = [_head(snapshot)]
    if snapshot.queues:
        parts += ["", _queues(snapshot, width)]
    parts += [
        "",
        workers_table(snapshot.workers, width) if snapshot.workers else Text("No worker is known in this fleet."),
    ]
    parts += shut_lines(snapshot.workers)
    if snapshot.claims:
        parts += ["", _runs(snapshot, runs, width)]
    if snapshot.tombs:
        hosts = sorted({tomb.host for tomb in snapshot.tombs})
        told = f"{len(snapshot.tombs)} told as lost, their processes may live on {', '.join(hosts)}"
        workers = sorted({tomb.worker for tomb in snapshot.tombs})
        which = workers[0] if len(workers) == 1 else f"each of {', '.join(workers)}"
        parts += ["", Text(f"{told}: bring {'it' if len(hosts) == 1 else 'them'} back, or worker forget {which}")]
    return Group(*parts)


def _coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def _head(snapshot: Snapshot) -> RenderableType:
    counts, leader = snapshot.counts, snapshot.leader
    head = Text(f"fleet {snapshot.fleet}   gate ")
    head.append_text(_coloured("open" if snapshot.gate_open else "shut"))
    waits = "a poller waits for the API" if held.api_trouble(snapshot) else "is a poller running?"
    head.append(f"   leader {leader.name}@{leader.host}" if leader else f"   no leader: {waits}")
    head.append(f"   Redis {snapshot.redis_version}\n")
    head.append(
        f"{held.waiting(snapshot)}   claimed {counts['outstanding']}   running {counts['running']}   "
        f"free slots {counts['free_slots']}   unreported {counts['outbox']}"
    )
    for sentence in _troubles(snapshot):
        head.append(f"\n{sentence}", style="red")
    for sentence in held.sentences(snapshot):
        head.append(f"\n{printable(sentence)}", style="yellow")
    return head


def _troubles(snapshot: Snapshot) -> list[str]:
    """What keeps parts of the fleet from the Prefect API, a sentence for each kind of trouble."""
    parts: dict[str, list[str]] = {}
    for one in snapshot.api_troubles:
        parts.setdefault(one.trouble, []).append("a poller that starts" if one.part == STARTING else one.part)
    return [
        f"{_TROUBLES.get(trouble, f'The Prefect API: {trouble}')}: {', '.join(names)}"
        for trouble, names in sorted(parts.items())
    ]


def _queues(snapshot: Snapshot, width: int) -> Table:
    numbers = ("DUE", "HELD", "OLDEST", "IN REDIS", "WORKERS")
    rows = [
        (
            snapshot.route_name(queue.route),
            held.due_cell(queue),
            Text(held.cell(queue.held), style="yellow"),
            span(queue.oldest_due_seconds),
            str(queue.depth),
            Text(str(queue.eligible_workers), style="red" if queue.due and not queue.eligible_workers else ""),
        )
        for queue in snapshot.queues
    ]
    return table(("QUEUE", *numbers), rows, right=numbers, names=("QUEUE",), width=width)


def workers_table(workers: tuple[WorkerStatus, ...], width: int = PLAIN_WIDTH) -> Table:
    """The roster as a table, with slots as busy/total."""
    columns = ("WORKER", "STATE", "BUSY", "SERVES", "VERSION", "SEEN")
    rows = [
        (
            worker.row.worker,
            _coloured(worker.state),
            f"{worker.busy}/{worker.row.slots}",
            ",".join(worker.row.offer.pools or worker.row.offer.labels) or "(no labels)",
            worker.row.version,
            span(worker.seen_seconds_ago),
        )
        for worker in workers
    ]
    return table(columns, rows, right=("BUSY", "SEEN"), names=("WORKER", "SERVES"), width=width)


def shut_lines(workers: Sequence[WorkerStatus]) -> list[RenderableType]:
    """Why workers that live can start no run now, a line for each."""
    return [
        Text(f"{worker.row.worker} takes no runs: {printable(worker.row.shut)}", style="red")
        for worker in workers
        if worker.state == "shut"
    ]


def _runs(snapshot: Snapshot, limit: int, width: int) -> RenderableType:
    rows = [
        (
            claim.name,
            claim.run_id[:8],
            _coloured(LINGERS if claim.lingers and claim.state is State.RUNNING else str(claim.state)),
            claim.worker or "-",
            span(max(0.0, snapshot.at - claim.since)),
        )
        for claim in snapshot.claims[:limit]
    ]
    columns = ("RUN", "ID", "STATE", "WORKER", "SINCE")
    made = table(columns, rows, right=("SINCE",), names=("RUN", "WORKER"), width=width)
    more = len(snapshot.claims) - limit
    below = [f"and {more} more, see flowfleet runs"] if more > 0 else []
    if any(claim.lingers for claim in snapshot.claims):
        below.append("lingers: it has ended at the API, and its process has not; see flowfleet explain")
    return Group(made, *map(Text, below))
