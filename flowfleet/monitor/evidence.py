"""Evidence: what an explanation rests on, as a few lines for people; `explain --json` has all of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from flowfleet import certificate
from flowfleet.ledger.claims import Claim
from flowfleet.logs import iso
from flowfleet.monitor.explain import Explanation
from flowfleet.monitor.runs import ending
from flowfleet.monitor.snapshot import RouteQueue, Snapshot
from flowfleet.monitor.tables import span
from flowfleet.printable import printable

#: as many lines as people are shown
MOST_LINES = 10
#: as many queues as a run may be waiting in, where nobody knows which
_QUEUES = 3
_LABEL = 11
#: lines about an end, which the sentence may have told already
_OF_END = ("its end", "took", "last line")

Line = tuple[str, str]


def lines(explanation: Explanation, snapshot: Snapshot) -> list[str]:
    """The evidence as lines with a label each, at most `MOST_LINES`, what tells most first."""
    claim = next((claim for claim in snapshot.claims if claim.run_id == explanation.run_id), None)
    found = explanation.evidence
    made = [*_run(explanation), *_at_api(found, explanation.sentence), *_of_claim(claim, snapshot)]
    made += [*_lost(found), *_end(found), *_record(found, snapshot.at), *_waiting(found, snapshot)]
    kept = [(label, words) for label, words in made if label not in _OF_END or words not in explanation.sentence]
    return [f"{label:<{_LABEL}} {printable(words)}" for label, words in kept[:MOST_LINES]]


def _run(explanation: Explanation) -> Iterator[Line]:
    found = explanation.evidence
    known: Mapping[str, Any] = found.get("claim") or found.get("record") or found.get("api") or {}
    yield "run", f"{known['name']}, {explanation.run_id}" if known.get("name") else explanation.run_id
    if known.get("flow"):
        deployment = f", deployment {known['deployment']}" if known.get("deployment") else ""
        yield "flow", f"{known['flow']}{deployment}"


def _at_api(found: Mapping[str, Any], sentence: str) -> Iterator[Line]:
    if at_api := found.get("api"):
        message = str(at_api["message"] or "")
        new = message and message.rstrip(".") not in sentence
        yield "at the API", f"{at_api['state']}: {message}" if new else str(at_api["state"])


def _of_claim(claim: Claim | None, snapshot: Snapshot) -> Iterator[Line]:
    if claim is None:
        return
    yield "queue", snapshot.route_name(claim.route)
    yield "claim", f"{claim.state} for {_ago(claim.since, snapshot.at)}, attempt {claim.attempt}, {claim.claim}"
    if claim.began_at:
        yield "started", f"{iso(claim.began_at)}, {_ago(claim.began_at, snapshot.at)} ago"
    for worker in snapshot.workers:
        if worker.row.worker == claim.worker:
            busy = f"{worker.busy} of {worker.row.slots} slots busy"
            yield "worker", f"{claim.worker}: {worker.state}, {busy}, seen {span(worker.seen_seconds_ago)} ago"
    if claim.handle:
        yield "process", f"{claim.handle.get('kind')} {claim.handle.get('id')} on {claim.handle.get('host')}"


def _lost(found: Mapping[str, Any]) -> Iterator[Line]:
    if lost := found.get("lost"):
        yield "lost", f"{lost['worker']} was last heard of before {lost['since']}"


def _end(found: Mapping[str, Any]) -> Iterator[Line]:
    end = found.get("exit")
    if end and end["sentence"]:
        code = f", code {end['code']}" if end.get("code") is not None else ""
        yield "its end", f"{end['sentence']} (ended by: {end['ended_by']}{code})"
        if took := certificate.usage(end):
            yield "took", took.removeprefix("It took ").rstrip(".")
        if end.get("last_line"):
            yield "last line", str(end["last_line"])


def _record(found: Mapping[str, Any], now: float) -> Iterator[Line]:
    if record := found.get("record"):
        where = f" on {record['worker']}" if record.get("worker") else ""
        gone_at = float(record.get("gone_at") or 0)
        how, reason = ending(record), str(record.get("reason") or "")
        why = f": {reason}" if reason and reason not in (how, record.get("outcome")) else ""
        yield "last claim", f"{how}{where}, {_ago(gone_at, now)} ago ({iso(gone_at)}){why}"


def _waiting(found: Mapping[str, Any], snapshot: Snapshot) -> Iterator[Line]:
    place = found.get("place")
    if place:
        names = place.get("labels")
        where = f"labels {', '.join(names) or '(none)'}" if names is not None else f"{place['pool']}/{place['queue']}"
        paused = f"the {place['paused']} is paused" if place["paused"] else None
        yield "waits in", ", ".join(filter(None, (where, paused, place["limit"])))
    if "queues" not in found:
        return
    for queue in _likely(snapshot, place):
        least = "at least " if queue.at_least else ""
        oldest = f", the oldest for {span(queue.oldest_due_seconds)}" if queue.oldest_due_seconds is not None else ""
        able, beside = queue.eligible_workers, queue.held.not_due
        waiting = f"{least}{queue.due} due{oldest}{f', {beside} held' if beside else ''}"
        workers = f"{able} {'worker takes' if able == 1 else 'workers take'} runs of it"
        yield "queue", f"{snapshot.route_name(queue.route)}: {waiting}; {workers}"
    leader, gate = snapshot.leader, "runs may start" if snapshot.gate_open else "the gate is shut"
    lead = f"lead poller {leader.name}@{leader.host}" if leader else "no lead poller"
    yield "fleet", f"{snapshot.fleet}: {lead}, {snapshot.counts['free_slots']} free slots, {gate}"


def _likely(snapshot: Snapshot, place: Mapping[str, Any] | None) -> list[RouteQueue]:
    """The queue of the run's place; where nobody knows that, those in which most runs wait."""
    if place and place.get("queue"):
        own = f"{place['pool']}/{place['queue']}"
        return [queue for queue in snapshot.queues if snapshot.route_name(queue.route) == own]
    if place:
        return [queue for queue in snapshot.queues if list(queue.route.labels) == place["labels"]]
    return sorted((queue for queue in snapshot.queues if queue.due), key=lambda queue: -queue.due)[:_QUEUES]


def _ago(moment: float, now: float) -> str:
    return span(max(0.0, now - moment))
