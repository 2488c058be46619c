"""Status: a snapshot as tables for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flowfleet.flow_run import telling_ids
from flowfleet.ledger.api_troubles import LEADER, STARTING
from flowfleet.ledger.claims import Claim, State
from flowfleet.monitor import held
from flowfleet.monitor.snapshot import Snapshot, WorkerStatus
from flowfleet.monitor.tables import PLAIN_WIDTH, coloured, filled, span, table
from flowfleet.printable import printable

#: shown in place of the state of a run that has ended at the API while its process lives
LINGERS = "lingers"
_NO_LEAD = "No poller claims runs now: start one by poller start."
_LEAD_WAITS = "No poller claims runs now: one that starts waits for the Prefect API."
_GATE_SHUT = "No run starts now: the lead poller has not accepted this Redis yet (the gate is shut)."
#: what its operator wanted of a worker that a drain has ended
DRAINED = "drained"
_PARTS = {LEADER: "the lead poller", STARTING: "a poller that starts"}
_TROUBLES = {
    "key-refused": "The Prefect API refuses the key of",
    "maintenance": "The Prefect API is in maintenance, waited for by",
    "away": "The Prefect API does not answer",
}


def status(snapshot: Snapshot, *, runs: int = 20, width: int = PLAIN_WIDTH) -> RenderableType:
    """The whole status: head, queues, workers, and at most `runs` runs."""
    return Group(head(snapshot, width), *body(snapshot, runs=runs, width=width))


def body(snapshot: Snapshot, *, runs: int = 20, width: int = PLAIN_WIDTH) -> list[RenderableType]:
    """What stands below the head, each part after a blank line: queues, workers, and at most `runs` runs."""
    parts: list[RenderableType] = []
    if snapshot.queues:
        parts += ["", _queues(snapshot, width)]
    parts += [
        "",
        workers_table(snapshot.listed, width) if snapshot.listed else Text("No worker is known in this fleet."),
    ]
    parts += [*worker_lines(snapshot.listed), *past_line(snapshot)]
    if snapshot.claims:
        parts += ["", _runs(snapshot, runs, width)]
    if snapshot.tombs:
        hosts = sorted({tomb.host for tomb in snapshot.tombs})
        told = f"{len(snapshot.tombs)} told as lost, their processes may live on {', '.join(hosts)}"
        which = " ".join(sorted({tomb.worker for tomb in snapshot.tombs}))
        parts += ["", Text(f"{told}: bring {'it' if len(hosts) == 1 else 'them'} back, or worker forget {which}")]
    return parts


def head(snapshot: Snapshot, width: int = PLAIN_WIDTH) -> Text:
    """Who leads, the numbers of the fleet, and a sentence for each trouble."""
    counts, leader = snapshot.counts, snapshot.leader
    leads = f"lead poller {leader.name}@{leader.host}" if leader else "no lead poller"
    numbers = (
        held.waiting(snapshot),
        f"claimed {counts['outstanding']}",
        f"running {counts['running']}",
        f"free slots {counts['free_slots']}",
        f"waiting to be reported {counts['outbox']}",
    )
    made = Text(filled((f"fleet {snapshot.fleet}", leads, f"Redis {snapshot.redis_version}"), width))
    made.append(f"\n{filled(numbers, width)}")
    if leader is None:
        made.append(f"\n{_LEAD_WAITS if held.api_trouble(snapshot) else _NO_LEAD}", style="red")
    elif not snapshot.gate_open:
        made.append(f"\n{_GATE_SHUT}", style="red")
    for sentence in _troubles(snapshot):
        made.append(f"\n{sentence}", style="red")
    for sentence in held.sentences(snapshot):
        made.append(f"\n{printable(sentence)}", style="yellow")
    return made


def _troubles(snapshot: Snapshot) -> list[str]:
    """What keeps parts of the fleet from the Prefect API, a sentence for each kind of trouble."""
    parts: dict[str, list[str]] = {}
    for one in snapshot.api_troubles:
        parts.setdefault(one.trouble, []).append(_PARTS.get(one.part, one.part))
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
            coloured(worker.state),
            f"{worker.busy}/{worker.row.slots}",
            ",".join(worker.serves) or "(no labels)",
            worker.row.version,
            span(worker.seen_seconds_ago),
        )
        for worker in workers
    ]
    return table(columns, rows, right=("BUSY", "SEEN"), names=("WORKER", "SERVES"), width=width)


def worker_lines(workers: Sequence[WorkerStatus]) -> list[RenderableType]:
    """What the table does not say: why workers that live can start no run now, and what their operators have noted."""
    shut: list[RenderableType] = [
        Text(f"{worker.row.worker} takes no runs: {printable(worker.row.shut)}", style="red")
        for worker in workers
        if worker.state == "shut"
    ]
    words: dict[tuple[str, str], list[str]] = {}
    for worker in workers:
        row = worker.row
        drained = row.wanted == "draining" and not row.live
        if row.note or drained:
            words.setdefault((DRAINED if drained else row.wanted, row.note), []).append(row.worker)
    return [*shut, *(_noted(*word, names) for word, names in sorted(words.items()))]


def _noted(wanted: str, note: str, names: Sequence[str]) -> Text:
    """What the operator wants of these workers, and why; of those that a drain has ended, how they come back."""
    said = f"{wanted}{f' ({printable(note)})' if note else ''}: {', '.join(names)}"
    if wanted != DRAINED:
        return Text(said)
    return Text(f"{said}; before they are started again: worker resume {' '.join(names)}")


def past_line(snapshot: Snapshot) -> list[RenderableType]:
    """How many workers are not listed, and how they are shown; empty where all are."""
    past = len(snapshot.workers) - len(snapshot.listed)
    if not past:
        return []
    return [Text(f"{past} that stopped more than a day ago {'is' if past == 1 else 'are'} shown by worker list --all")]


def runs_table(claims: Sequence[Claim], snapshot: Snapshot, width: int = PLAIN_WIDTH) -> Table:
    """These runs of the snapshot as a table."""
    ids = telling_ids(claim.run_id for claim in claims)
    rows = [
        (
            claim.name,
            ids[claim.run_id],
            claim.flow or "-",
            coloured(LINGERS if claim.lingers and claim.state is State.RUNNING else str(claim.state)),
            claim.worker or "-",
            span(max(0.0, snapshot.at - claim.since)),
        )
        for claim in claims
    ]
    columns = ("RUN", "ID", "FLOW", "STATE", "WORKER", "SINCE")
    return table(columns, rows, right=("SINCE",), names=("RUN", "FLOW", "WORKER"), least=("FLOW",), width=width)


def _runs(snapshot: Snapshot, limit: int, width: int) -> RenderableType:
    more = len(snapshot.claims) - limit
    below = [f"and {more} more, see flowfleet runs"] if more > 0 else []
    if any(claim.lingers for claim in snapshot.claims):
        below.append("lingers: it has ended at the API, and its process has not; see flowfleet explain")
    return Group(runs_table(snapshot.claims[:limit], snapshot, width), *map(Text, below))
