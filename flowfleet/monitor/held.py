"""Held: what people are told of runs that wait: how many, and what holds them back."""

from collections.abc import Callable, Sequence

from flowfleet.flow_run import Held
from flowfleet.ledger.api_troubles import LEADER, STARTING
from flowfleet.monitor.snapshot import RouteQueue, Snapshot
from flowfleet.monitor.tables import span

#: so many queues are named in one sentence, the rest are counted
NAMED = 3
#: what keeps the lead poller from the API, in the words of one run that waits
TROUBLES = {
    "key-refused": "the Prefect API refuses the key of the poller",
    "maintenance": "the Prefect API is in maintenance, and the poller waits for its end",
    "away": "the Prefect API does not answer the poller",
}
#: what holds runs back: the number of them, the sentence after it, and the remedy
_Cause = tuple[Callable[[Held], int], str, str]
_CAUSES: tuple[_Cause, ...] = (
    (lambda held: held.paused, "whose pool or queue is paused", "Resume the pool or queue in the UI."),
    (
        lambda held: held.limit,
        "where a limit of the pool, the queue or the deployment is reached",
        "Such runs start when others end; raise the limit if you want more at once.",
    ),
    (lambda held: held.unserved, "which no worker takes now", "Start a worker for it."),
)


def waiting(snapshot: Snapshot) -> str:
    """The runs that wait, in the head of the status; it never says that none is due while some are held back.

    Nor does it while nobody knows: the numbers are old, or all of a full answer is claimed by now.
    """
    due, beside, stale = snapshot.counts["due"], snapshot.held.not_due, snapshot.stale_seconds
    more = any(queue.at_least for queue in snapshot.queues)
    unknown = more or stale or snapshot.due_at is None
    shown = f"due {'at least ' if more else ''}{due}" if due or not unknown else "due ?"
    if beside:
        shown = f"{shown}   held {beside}" if due else f"held {beside}"
    return f"{shown} (as of {span(stale)} ago)" if stale else shown


def api_trouble(snapshot: Snapshot) -> str | None:
    """What keeps the poller from the API, in the words of one run that waits; None when nothing does."""
    part = STARTING if snapshot.leader is None else LEADER
    trouble = next((one.trouble for one in snapshot.api_troubles if one.part == part), None)
    return trouble and TROUBLES.get(trouble, f"the Prefect API is in trouble ({trouble}) for the poller")


def due_cell(queue: RouteQueue) -> str:
    """The cell of a queue's row for what is due: `200+` where more may be, `?` where nobody knows of any yet."""
    if not queue.at_least:
        return str(queue.due)
    return f"{queue.due}+" if queue.due else "?"


def cell(held: Held) -> str:
    """The cell of a queue's row: how many are held back beside those that are due, `-` for none."""
    return str(held.not_due or "-")


def sentences(snapshot: Snapshot) -> list[str]:
    """What holds runs back, a sentence for each cause."""
    return [found for found, _ in _told(snapshot, _CAUSES)]


def causes(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What a pause or a limit holds back, a sentence for each cause, with the remedy."""
    return _told(snapshot, _CAUSES[:2])


def _told(snapshot: Snapshot, among: Sequence[_Cause]) -> list[tuple[str, str]]:
    told = []
    for number, says, remedy in among:
        queues = [queue for queue in snapshot.queues if number(queue.held)]
        if queues:
            total = sum(number(queue.held) for queue in queues)
            runs = "1 run waits" if total == 1 else f"{total} runs wait"
            told.append((f"{runs} on {_names(snapshot, queues)}, {says}.", remedy))
    return told


def _names(snapshot: Snapshot, queues: list[RouteQueue]) -> str:
    names = [snapshot.route_name(queue.route) for queue in queues[:NAMED]]
    more = len(queues) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
