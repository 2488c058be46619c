"""Held: what people are told of runs that wait: how many, and what holds them back."""

from collections.abc import Callable, Sequence

from flowfleet.flow_run import Held
from flowfleet.monitor.snapshot import RouteQueue, Snapshot

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
        "They start when others end; raise the limit if you want more at once.",
    ),
    (lambda held: held.unserved, "which no worker takes now", "Start a worker for it."),
)


def waiting(snapshot: Snapshot) -> str:
    """The runs that wait, in the head of the status; it never says that none is due while some are held back."""
    due, beside = snapshot.counts["due"], snapshot.held.paused + snapshot.held.limit
    more = any(queue.at_least for queue in snapshot.queues)
    # without any: all of a full answer is claimed by now, and the API was not yet asked for more
    shown = f"due {'at least ' if more else ''}{due}" if due or not more else "due ?"
    if not beside:
        return shown
    return f"{shown}   held {beside}" if due else f"held {beside}"


def cell(held: Held) -> str:
    """The cell of a queue's row: how many are held back beside those that are due, `-` for none."""
    return str(held.paused + held.limit) if held.paused or held.limit else "-"


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
