"""Explain: why a run is, or is not, running, as one sentence with the evidence for it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowfleet import certificate
from flowfleet.api import traits
from flowfleet.api.backlog import Place
from flowfleet.api.client import RunState, StateType
from flowfleet.ledger.claims import CancelHow, Claim, State, Tomb
from flowfleet.ledger.roster import STOPPED
from flowfleet.logs import iso
from flowfleet.monitor import held
from flowfleet.monitor.runs import LOSING_MOVES
from flowfleet.monitor.snapshot import WAITING, RouteQueue, Snapshot, WorkerStatus, bracketed, claim_json
from flowfleet.monitor.tables import span


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The answer of `explain`: one sentence, and the evidence that it rests on."""

    run_id: str
    sentence: str
    evidence: Mapping[str, Any]


def explain(
    run_id: str,
    snapshot: Snapshot,
    record: Mapping[str, Any] | None,
    at_api: RunState | None,
    place: Place | None = None,
) -> Explanation:
    """Explain a run by its live claim, else by what the API says of it and where it waits there, else by its record."""
    claim = next((claim for claim in snapshot.claims if claim.run_id == run_id), None)
    end = _end(claim, record)
    evidence = _evidence(claim, at_api, record, end)
    tomb = next((tomb for tomb in snapshot.tombs if tomb.run_id == run_id), None)
    if tomb:
        evidence["lost"] = {"claim": tomb.claim, "worker": tomb.worker, "since": iso(tomb.missed_at)}
    if claim:
        sentence = _of_lingering(claim, snapshot, at_api) or f"{_of_claim(claim, snapshot)}{_told(end)}"
    elif tomb:
        sentence = _of_lost(tomb, snapshot, at_api)
    elif at_api and at_api.kind == StateType.SCHEDULED:
        sentence = _of_waiting(at_api, snapshot, place)
        evidence |= _waiting_json(snapshot, place)
    elif at_api:
        sentence = _of_unheld(at_api, snapshot, end)
    elif record:
        sentence = f"{_of_record(record)}{_told(end)}"
    else:
        sentence = f"The fleet {snapshot.fleet} knows nothing of it: it was never claimed here, or more than a day ago."
    return Explanation(run_id=run_id, sentence=sentence, evidence=evidence)


def _evidence(
    claim: Claim | None, at_api: RunState | None, record: Mapping[str, Any] | None, end: Mapping[str, Any] | None
) -> dict[str, Any]:
    evidence: dict[str, Any] = {}
    if claim:
        evidence["claim"] = claim_json(claim)
    if at_api:
        evidence["api"] = {
            "name": at_api.run_name,
            "state": at_api.name,
            "kind": str(at_api.kind),
            "message": at_api.message,
        }
    if record:
        evidence["record"] = dict(record)
    if end:
        evidence["exit"] = end
    return evidence


def _end(claim: Claim | None, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the run's process ended, of its live claim if there is one, else of the last that is gone."""
    if claim:
        return certificate.shown(claim.exit, lost=claim.state is State.JUDGED)
    return certificate.shown(record.get("exit"), lost=record.get("move") in LOSING_MOVES) if record else None


def _told(end: Mapping[str, Any] | None, said: str | None = None) -> str:
    """The end as further sentences; empty where the API's message says it already."""
    words = certificate.told(end)
    return f" {words}" if end and words and end["sentence"] not in (said or "") else ""


def _waiting_json(snapshot: Snapshot, place: Place | None) -> dict[str, Any]:
    where = {"place": {**_place_json(place), "paused": place.paused, "limit": place.limit}} if place else {}
    queues = [
        {
            "route": str(queue.route),
            "due": queue.due,
            "held": asdict(queue.held),
            "eligible_workers": queue.eligible_workers,
        }
        for queue in snapshot.queues
    ]
    return {**where, "queues": queues}


def _of_unheld(at_api: RunState, snapshot: Snapshot, end: Mapping[str, Any] | None) -> str:
    if at_api.kind.terminal:
        return f"It has ended: the API says {at_api.name}{_because(at_api.message)}.{_told(end, at_api.message)}"
    if at_api.kind is StateType.PAUSED and at_api.waits:
        return f"The API says {at_api.name}: it has left its worker, and is due again when somebody resumes it."
    return (
        f"No worker of the fleet {snapshot.fleet} holds it, and the API says {at_api.name}: "
        "another executor may have it."
    )


def _place_json(place: Place) -> dict[str, Any]:
    if traits.of(place.route.backend).by_labels:
        return {"labels": list(place.route.labels)}
    return {"pool": place.pool, "queue": place.route.name}


def _of_claim(claim: Claim, snapshot: Snapshot) -> str:
    since = span(max(0.0, snapshot.at - claim.since))
    route = snapshot.route_name(claim.route)
    where = claim.worker or "no worker"
    words = {
        State.CLAIMING: f"It is being claimed at the API, for {since}.",
        State.QUEUED: f"It is claimed and waits in the queue {route} for a worker to take it, for {since}.",
        State.TAKEN: f"The worker {where} has taken it and prepares its start, for {since}.",
        State.STARTING: f"The worker {where} is starting it, for {since}.",
        State.RUNNING: f"It runs on {where}, for {since}.",
        State.ENDED: f"It has ended on {where}, and its end is not yet accepted by the API, for {since}.",
        State.RETURNING: f"It is being handed back to the API{_because(claim.reason)}.",
        State.MISSING: f"It was started on {where}, which {_silence(claim, snapshot)}",
        State.JUDGED: f"It was started on {where} and is counted as lost{_because(claim.reason)}.",
    }
    sentence = words[claim.state]
    if not snapshot.gate_open and claim.state in (State.QUEUED, State.TAKEN):
        sentence += " Nothing starts now, since the gate is shut: Redis was restarted or replaced."
    if claim.cancel:
        how = "A cancel at once" if claim.cancel is CancelHow.OVER else "A cancel"
        sentence += f" {how} was asked for{_because(claim.cancel_why)}."
    return sentence


def _silence(claim: Claim, snapshot: Snapshot) -> str:
    """What is known of the worker of a missing run, and what becomes of the run."""
    since = f" for {span(max(0.0, snapshot.at - claim.missed_at))}" if claim.missed_at else ""
    if claim.proof:
        return f"has not been heard of{since}: it is told as lost at once ({claim.proof})."
    owner = next((worker for worker in snapshot.workers if worker.row.worker == claim.worker), None)
    if owner is not None and owner.state == STOPPED:
        return (
            f"stopped {span(owner.seen_seconds_ago)} ago: the run is told as lost after --adopt-grace, "
            "unless that worker is started again."
        )
    return f"has not been heard of{since}: it is told as lost after --adopt-grace, unless its host comes back."


def _of_lost(tomb: Tomb, snapshot: Snapshot, at_api: RunState | None) -> str:
    told = (
        f"It was told as lost: {tomb.worker} has not been heard of for {span(max(0.0, snapshot.at - tomb.missed_at))}"
    )
    waits = "It is due again, and is not started"
    if at_api is None or at_api.kind is not StateType.SCHEDULED:
        waits = f"{f'The API says {at_api.name}, and it' if at_api else 'It'} cannot be started again now"
    return (
        f"{told}. {waits}: its earlier process may live on {tomb.host}. "
        f"Bring that host back, or, if it is gone for good, `worker forget {tomb.worker}`."
    )


def _of_lingering(claim: Claim, snapshot: Snapshot, at_api: RunState | None) -> str | None:
    """The sentence about a run that has ended at the API while its process lives; None for any other."""
    if claim.state is not State.RUNNING or (at_api and not at_api.kind.terminal) or not (at_api or claim.lingers):
        return None
    name = at_api.name if at_api else claim.lingers
    at = at_api.at.timestamp() if at_api and at_api.at else claim.lingers_since
    since = f", for {span(max(0.0, snapshot.at - at))}" if at else ""
    return (
        f"It has ended (the API says {name}), and its process on {claim.worker} has not{since}: "
        "a thread, a hook or an exit handler of the flow may hold it up, and it keeps its slot. "
        "A worker with --linger SECONDS kills such a process."
    )


def _of_waiting(state: RunState, snapshot: Snapshot, place: Place | None) -> str:
    if state.name == "AwaitingConcurrencySlot":
        return "It waits for a slot at the API: its deployment has reached its concurrency limit."
    due = state.scheduled.timestamp() if state.scheduled else snapshot.at
    if due > snapshot.at:
        return f"It is scheduled to start in {span(due - snapshot.at)}."
    waited, at_api = span(snapshot.at - due), _hindrance_at_api(place) if place else None
    if at_api and place and not traits.of(place.route.backend).by_labels:
        # what a pause or a limit holds back is not due: the API would not hand it out
        return f"It has waited for {waited}: {at_api}."
    return f"It has been due for {waited} and {at_api or _hindrance(snapshot, place)}."


def _hindrance(snapshot: Snapshot, place: Place | None) -> str:
    """The reason why a due run is not claimed; reasons that its user can change come first."""
    if place and not any(worker.row.live and worker.row.offer.serves(place.route) for worker in snapshot.workers):
        return _unserved(snapshot, place)
    trouble = held.api_trouble(snapshot)
    if trouble:
        return trouble
    if snapshot.leader is None:
        return f"no poller is running in the fleet {snapshot.fleet}"
    if not snapshot.gate_open:
        return "the gate is shut, since Redis was restarted or replaced"
    return _hindrance_of_route(snapshot, place) if place else _hindrance_anywhere(snapshot)


def _unserved(snapshot: Snapshot, place: Place) -> str:
    if not traits.of(place.route.backend).by_labels:
        return f"no live worker of the fleet {snapshot.fleet} serves its queue {place.pool}/{place.route.name}"
    offers = [worker.row.offer for worker in snapshot.workers if worker.row.live]
    there = sorted({offer.labels for offer in offers if offer.tenant == place.route.scope})
    have = f"live ones have: {', '.join(map(bracketed, there))}" if there else "none lives for its tenant"
    if not place.route.labels:
        return (
            "has no labels: such a run goes only to a worker without labels (worker start --no-hostname-label), "
            f"and no live one of the fleet {snapshot.fleet} is without; {have}"
        )
    return f"no live worker of the fleet {snapshot.fleet} has {_labels(place)}; {have}"


def _labels(place: Place) -> str:
    labels = place.route.labels
    return f"the label{'s' if len(labels) > 1 else ''} {bracketed(labels)}"


def _hindrance_at_api(place: Place) -> str | None:
    if place.paused == "pool":
        return f"its pool {place.pool} is paused"
    if place.paused == "queue":
        return f"its queue {place.pool}/{place.route.name} is paused"
    return place.limit


def _hindrance_of_route(snapshot: Snapshot, place: Place) -> str:
    """The reason when live workers serve the route: they take no new runs, or no slot is free, or nothing hinders."""
    if not traits.of(place.route.backend).by_labels:
        able, where = f"serves its queue {place.pool}/{place.route.name}", f"on {place.pool}/{place.route.name}"
    elif place.route.labels:
        able, where = f"has {_labels(place)}", f"with {_labels(place)}"
    else:
        able, where = "has no labels, as it has none,", "without labels"
    serving = [worker for worker in snapshot.workers if worker.row.live and worker.row.offer.serves(place.route)]
    active = [worker for worker in serving if worker.state == "active"]
    if not active:
        return f"no worker that {able} takes new runs: {_each_with_its_reason(serving)}"
    claimed = sum(claim.state in WAITING and claim.route == place.route for claim in snapshot.claims)
    if sum(worker.free for worker in active) <= claimed:
        slots = sum(worker.row.slots for worker in active)
        queue = next((queue for queue in snapshot.queues if queue.route == place.route), None)
        due = _ahead([queue]) if queue and queue.due else "it is due"
        return f"waits for a free slot: all {slots} slots of the workers that serve it are taken, and {due} {where}"
    return "will be claimed at the next poll: nothing hinders it"


def _each_with_its_reason(workers: Sequence[WorkerStatus]) -> str:
    return ", ".join(f"{worker.row.worker} ({_reason(worker)})" for worker in workers)


def _reason(worker: WorkerStatus) -> str:
    return worker.row.shut or f"{worker.state}{f': {worker.row.note}' if worker.row.note else ''}"


def _hindrance_anywhere(snapshot: Snapshot) -> str:
    """The broadest reason, for a run whose place at the API is unknown."""
    alive = [worker for worker in snapshot.workers if worker.state == "active"]
    if not alive:
        there = _each_with_its_reason([worker for worker in snapshot.workers if worker.row.live])
        return f"the fleet {snapshot.fleet} has no active worker{f': {there}' if there else ''}"
    waiting = [queue for queue in snapshot.queues if queue.due]
    if waiting and snapshot.counts["free_slots"] == 0:
        slots = sum(worker.row.slots for worker in alive)
        return f"waits for a free slot: all {slots} are taken and {_ahead(waiting)}"
    if waiting and not any(queue.eligible_workers for queue in waiting):
        names = ", ".join(snapshot.route_name(queue.route) for queue in waiting)
        return f"no active worker serves {names}"
    told = " ".join(held.sentences(snapshot)).rstrip(".")
    maybe = "its pool or queue may be paused, at its limit, or not one that this fleet serves"
    return f"is not claimed yet: {maybe}{f' ({told})' if told else ''}"


def _ahead(waiting: list[RouteQueue]) -> str:
    least = "at least " if any(queue.at_least for queue in waiting) else ""
    number = sum(queue.due for queue in waiting)
    return f"{least}{number} {'run is' if number == 1 else 'runs are'} due"


def _of_record(record: Mapping[str, Any]) -> str:
    outcome = str(record.get("outcome") or record.get("reason") or "no longer claimed")
    where = f" on {record['worker']}" if record.get("worker") else ""
    if outcome == "gone":
        return f"It was deleted at the API; its last attempt here was{where or ' never taken by a worker'}."
    if outcome.upper() in StateType.__members__ and StateType[outcome.upper()].terminal:
        return f"Its last attempt here{where} ended as {outcome}."
    return f"Its last claim here has gone ({outcome}){where and f',{where}'}."


def _because(reason: str | None) -> str:
    return f" ({reason.rstrip('.')})" if reason else ""
