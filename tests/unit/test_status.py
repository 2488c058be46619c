"""Status: the JSON form as documented, the tables in 80 columns, explanations and checks from a hand-made snapshot."""

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from flowfleet import broker, certificate
from flowfleet.api.backlog import Place
from flowfleet.api.client import RunState, StateType
from flowfleet.api.life import LaunchedClaim
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import ApiUnavailable, LedgerUnavailable, SettingsError
from flowfleet.flow_run import Offer, Route
from flowfleet.ledger import connect
from flowfleet.ledger.api_troubles import ApiTrouble
from flowfleet.ledger.claims import CancelHow, State, Tomb
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.ledger_id import new_call
from flowfleet.ledger.roster import WorkerRow
from flowfleet.monitor import evidence, runs
from flowfleet.monitor.doctor import (
    NAMED,
    CheckStatus,
    _eviction,
    _persistence,
    _version,
    api_checks,
    fleet_checks,
    ledger_checks,
)
from flowfleet.monitor.explain import explain
from flowfleet.monitor.metrics import LedgerCollector, workers_wanted
from flowfleet.monitor.redis_server import queue_key
from flowfleet.monitor.run_output import local_log, read_local
from flowfleet.monitor.snapshot import RouteQueue, Snapshot, WorkerStatus
from flowfleet.monitor.status import status
from flowfleet.monitor.tables import span
from tests.unit.memory_ledger import POOL, ROUTE, a_claim
from tests.unit.poller_world import World
from workers.exit import Exit

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def _row(name="worker@host-1", *, pools=("flowfleet",), work_queues=(), **facts):
    offer = Offer(backend="prefect3", pools=pools, pool_ids=(POOL,), work_queues=work_queues)
    facts = {"slots": 4, "version": "0.1.0", **facts}
    return WorkerRow(worker=name, nonce="n", offer=offer, routes=(ROUTE,), **facts)


def _claim(state=State.RUNNING, *, run_id="22222222-2222-4222-8222-222222222222", worker="worker@host-1", **facts):
    due = datetime.fromtimestamp(AT - 60, UTC)
    return a_claim(run_id, state, worker=worker, name="brave-heron", due=due, since=AT - 5, **facts)


def _snapshot(*, claims=(), due=0, at_least=False, rows=None, leader=True, gate_open=True, eligible=1):
    rows = [_row()] if rows is None else rows
    busy = {row.worker: sum(claim.worker == row.worker for claim in claims) for row in rows}
    queue = RouteQueue(
        route=ROUTE, due=due, at_least=at_least, oldest_due_seconds=125.0 if due else None, depth=0,
        oldest_age_seconds=None, eligible_workers=eligible,
    )  # fmt: skip
    return Snapshot(
        at=AT,
        fleet="default",
        redis_version="9.1.0",
        gate_open=gate_open,
        leader=Leader(name="agent", host="host-1", nonce="n", term=3, beat=9) if leader else None,
        queues=(queue,),
        workers=tuple(WorkerStatus(row=row, busy=busy[row.worker], seen_seconds_ago=1.5) for row in rows),
        claims=tuple(claims),
    )


def _printed(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(renderable)
    return out.getvalue()


def test_the_json_form_is_the_documented_one():
    claim = _claim(handle={"kind": "process", "host": "host-1", "id": "77", "pid": 5})
    form = json.loads(json.dumps(_snapshot(claims=[claim], due=50).to_json()))

    assert list(form) == [
        "schema", "at", "fleet", "redis", "gate", "leader", "queues", "workers", "runs", "counts", "lost",
        "api_troubles", "due_at",
    ]  # fmt: skip
    assert form["at"] == "2026-01-02T03:04:05.000Z"
    assert form["redis"] == {"ok": True, "version": "9.1.0"}
    assert (form["gate"], form["leader"]) == ("open", {"name": "agent", "host": "host-1", "term": 3})
    assert form["queues"] == [
        {"route": str(ROUTE), "due": 50, "at_least": False, "held": {"paused": 0, "limit": 0, "unserved": 0},
         "oldest_due_seconds": 125.0, "depth": 0, "oldest_age_seconds": None,
         "eligible_workers": 1}
    ]  # fmt: skip
    assert form["workers"] == [
        {"name": "worker", "host": "host-1", "state": "active", "wanted": "active",
         "routes": [str(ROUTE)], "labels": [],
         "pools": ["flowfleet"], "work_queues": [], "slots": 4, "busy": 1, "version": "0.1.0", "shut": None,
         "note": None, "seen_seconds_ago": 1.5}
    ]  # fmt: skip
    (run,) = form["runs"]
    assert list(run) == [
        "run_id", "name", "flow", "deployment", "route", "state", "claim", "attempt", "worker", "handle", "since",
        "started", "missing_since", "lingers",
    ]  # fmt: skip
    assert (run["flow"], run["deployment"], run["started"]) == (None, None, None), "as an older worker leaves it"
    assert run["lingers"] is None
    assert run["handle"] == {"kind": "process", "host": "host-1", "id": "77"}
    assert form["counts"] == {"due": 50, "outstanding": 0, "running": 1, "free_slots": 3, "outbox": 0}


def _tomb():
    return Tomb(
        run_id="22222222-2222-4222-8222-222222222222", claim="c", route=ROUTE, name="brave-heron", worker="w@host-2",
        attempt=1, policy="report", boot_id="b", machine="m", missed_at=AT - 90, buried_at=AT - 30,
    )  # fmt: skip


def test_a_lost_run_is_shown_with_its_host_and_what_to_do():
    snapshot = replace(_snapshot(), tombs=(_tomb(),))

    assert snapshot.to_json()["lost"][0]["host"] == "host-2"
    told = "1 told as lost, their processes may live on host-2: bring it back, or worker forget w@host-2"
    assert told in _printed(status(snapshot, width=160), 160)
    two = replace(snapshot, tombs=(_tomb(), replace(_tomb(), worker="v@host-3")))
    assert "host-2, host-3: bring them back, or worker forget v@host-3 w@host-2" in _printed(
        status(two, width=160), 160
    )
    due = RunState(run_id=_tomb().run_id, run_name="r", kind=StateType.SCHEDULED, name="Scheduled")
    sentence = explain(_tomb().run_id, snapshot, None, due).sentence
    assert "w@host-2 has not been heard of for 1m 30s" in sentence
    assert "is not started: its earlier process may live on host-2" in sentence
    assert "worker forget w@host-2" in sentence


@pytest.mark.parametrize("known", [True, False])
def test_a_lost_run_that_is_not_due_is_not_said_to_wait(known):
    state = RunState(run_id=_tomb().run_id, run_name="r", kind=StateType.CANCELLED, name="Cancelled") if known else None
    sentence = explain(_tomb().run_id, replace(_snapshot(), tombs=(_tomb(),)), None, state).sentence
    says = "The API says Cancelled, and it" if known else "It"
    assert f". {says} cannot be started again now: its earlier process may live on host-2." in sentence


def test_a_missing_run_is_explained_with_how_long_its_host_is_away():
    claim = _claim(State.MISSING, missed_at=AT - 70)
    sentence = explain(claim.run_id, _snapshot(claims=[claim]), None, None).sentence
    assert "worker@host-1, which has not been heard of for 1m 10s: it is told as lost after --adopt-grace" in sentence
    left = _snapshot(claims=[claim], rows=[_row(live=False, gone="stopped")])
    assert explain(claim.run_id, left, None, None).sentence == (
        "It was started on worker@host-1, which stopped 1s ago: the run is told as lost after --adopt-grace, "
        "unless that worker is started again."
    )
    proved = replace(claim, proof="forgotten")
    sentence = explain(claim.run_id, _snapshot(claims=[proved]), None, None).sentence
    assert sentence.endswith("for 1m 10s: it is told as lost at once (forgotten).")


def test_what_keeps_parts_from_the_api_is_told_by_status():
    troubles = [ApiTrouble(part=part, trouble="key-refused") for part in ("leader", "w@one")]
    snapshot = replace(_snapshot(), api_troubles=(*troubles, ApiTrouble(part="w@two", trouble="maintenance")))
    text = _printed(status(snapshot))
    assert "The Prefect API refuses the key of: the lead poller, w@one" in text
    assert "The Prefect API is in maintenance, waited for by: w@two" in text
    assert snapshot.to_json()["api_troubles"][0] == {"part": "leader", "trouble": "key-refused"}


def test_a_run_that_has_ended_while_its_process_has_not_is_told_by_status_and_explain():
    claim = _claim(lingers="Completed", lingers_since=AT - 70)
    snapshot = _snapshot(claims=[claim])
    assert snapshot.to_json()["runs"][0]["lingers"] == {"state": "Completed", "since": "2026-01-02T03:02:55.000Z"}
    text = " ".join(_printed(status(snapshot)).split())
    assert "22222222 - lingers worker@host-1" in text
    assert "lingers: it has ended at the API, and its process has not" in text
    assert "lingers" not in _printed(status(_snapshot(claims=[_claim()])))

    at = datetime.fromtimestamp(AT - 20, UTC)
    run = {"run_id": claim.run_id, "run_name": "n"}
    over = RunState(**run, kind=StateType.FAILED, name="Failed", at=at)
    on = RunState(**run, kind=StateType.RUNNING, name="Running")
    for live, at_api, words in (
        (claim, None, "It has ended (the API says Completed), and its process on worker@host-1 has not, for 1m 10s: "),
        (_claim(), over, "It has ended (the API says Failed), and its process on worker@host-1 has not, for 20s: "),
        (claim, on, "It runs on worker@host-1"),
        (_claim(), None, "It runs on worker@host-1"),
    ):
        assert explain(live.run_id, _snapshot(claims=[live]), None, at_api).sentence.startswith(words)


def test_counts_tell_waiting_from_running_and_do_not_promise_slots_twice():
    claims = [
        _claim(state, run_id=str(number), worker=None if state in (State.CLAIMING, State.QUEUED) else "worker@host-1")
        for number, state in enumerate([State.CLAIMING, State.QUEUED, State.TAKEN, State.STARTING, State.ENDED])
    ]
    snapshot = _snapshot(claims=claims[:4])
    assert snapshot.counts == {"due": 0, "outstanding": 3, "running": 1, "free_slots": 0, "outbox": 0}
    assert _snapshot(claims=claims[4:]).counts["outbox"] == 1


AWAY = "the container engine at unix:///run/docker.sock does not answer"


def test_a_worker_whose_engine_is_away_says_so_in_status_and_in_the_doctors_words():
    snapshot = _snapshot(rows=[_row(shut=AWAY), _row("other@host-2")])
    text = " ".join(_printed(status(snapshot)).split())
    assert [worker.row.takes_runs for worker in snapshot.workers] == [False, True], "the poller asks for none for it"
    assert "worker@host-1 shut 0/4" in text
    assert f"worker@host-1 takes no runs: {AWAY}" in text
    assert [(worker["state"], worker["shut"]) for worker in snapshot.to_json()["workers"]] == [
        ("shut", AWAY),
        ("active", None),
    ]
    (found,) = [check for check in fleet_checks(snapshot) if check.name == "shut"]
    assert (found.verdict, found.found) == ("warn", f"worker@host-1 takes no runs: {AWAY}.")
    for row, state in ((_row(shut=AWAY, wanted="paused"), "paused"), (_row(shut=AWAY, live=False), "lost")):
        assert _snapshot(rows=[row]).workers[0].state == state, "what the operator does about it comes first"
        assert "takes no runs" not in _printed(status(_snapshot(rows=[row])))


def test_notes_are_told_once_for_all_workers_that_have_the_same():
    rows = [
        _row("a@h", wanted="paused", note="new \x1bkernel"),
        _row("b@h", wanted="paused", note="new \x1bkernel"),
        _row("c@h", wanted="draining", note="moving", live=False, gone="stopped"),
        _row("d@h", wanted="draining", live=False, gone="lost"),
        _row("e@h", wanted="draining"),
    ]
    text = _printed(status(_snapshot(rows=rows), width=160), 160)
    back = "before they are started again: worker resume"
    assert text.splitlines()[-3:] == [
        f"drained: d@h; {back} d@h",
        f"drained (moving): c@h; {back} c@h",
        "paused (new \\x1bkernel): a@h, b@h",
    ]
    assert [worker["note"] for worker in _snapshot(rows=rows).to_json()["workers"]] == [
        row.note or None for row in rows
    ]


@pytest.mark.parametrize(
    ("facts", "ago", "busy", "listed"),
    [
        ({"gone": "stopped"}, 86_399, 0, True),
        ({"gone": "stopped"}, 86_401, 0, False),
        ({"gone": "stopped"}, 86_401, 1, True),
        ({"gone": "lost"}, 1e9, 0, True),
        ({"live": True}, 1e9, 0, True),
    ],
)
def test_one_that_stopped_in_order_is_listed_for_a_day_or_while_its_runs_go_on(facts, ago, busy, listed):
    worker = WorkerStatus(row=_row(**{"live": False, **facts}), busy=busy, seen_seconds_ago=ago)
    snapshot = replace(_snapshot(), workers=(worker,))
    assert [one["name"] for one in snapshot.to_json()["workers"]] == ["worker"] * listed
    text = _printed(status(snapshot))
    assert ("worker@host-1" in text) is listed
    assert ("1 that stopped more than a day ago is shown by worker list --all" in text) is not listed


def test_status_shows_the_queues_that_a_worker_takes():
    rows = [_row(pools=("a", "b"), work_queues=("fast", "slow")), _row("all@host-2")]
    text = " ".join(_printed(status(_snapshot(rows=rows), width=160), 160).split())
    assert "worker@host-1 active 0/4 a/fast,a/slow,b/fast,b/slow 0.1.0" in text
    assert "all@host-2 active 0/4 flowfleet 0.1.0" in text
    assert _snapshot(rows=rows).to_json()["workers"][0]["work_queues"] == ["fast", "slow"]


@pytest.mark.parametrize("row", [_row(live=False), _row(wanted="paused"), _row(wanted="draining"), _row(shut=AWAY)])
def test_only_active_live_workers_have_free_slots(row):
    assert _snapshot(rows=[row]).counts["free_slots"] == 0


def test_an_empty_fleet_has_a_page_too_and_at_least_is_said():
    text = _printed(status(_snapshot(rows=[], leader=False)))
    assert "No worker is known" in text
    assert "no lead poller" in text
    assert "No poller claims runs now: start one by poller start." in text
    assert "due at least 200" in _printed(status(_snapshot(due=200, at_least=True)))


def test_the_head_of_the_status_has_words_that_a_newcomer_knows_and_breaks_none_of_its_numbers():
    assert _printed(status(_snapshot(due=50))).splitlines()[:2] == [
        "fleet default   lead poller agent@host-1   Redis 9.1.0",
        "due 50   claimed 0   running 0   free slots 4   waiting to be reported 0",
    ]
    many = _printed(status(_snapshot(due=123456, at_least=True)))
    assert many.splitlines()[1:3] == [
        "due at least 123456   claimed 0   running 0   free slots 4",
        "waiting to be reported 0",
    ]
    assert "gate" not in many
    shut = " ".join(_printed(status(_snapshot(gate_open=False))).split())
    assert "No run starts now: the lead poller has not accepted this Redis yet (the gate is shut)." in shut
    assert [name for name in ("leader", "unreported", "outbox") if name in many + shut] == []


def test_the_page_names_50_due_runs_the_worker_and_its_slots_in_80_columns():
    claims = [_claim(run_id=f"{number:08d}-2222", worker="worker@" + "h" * 90) for number in range(30)]
    many = ("flowfleet", *(f"pool-{n}" for n in range(20)))
    rows = [_row(), _row("worker@" + "h" * 90), _row("other@host-2", pools=many)]
    text = _printed(status(_snapshot(claims=claims, due=50, rows=rows)))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("due 50", "flowfleet/default", "2m 5s", "worker@host-1", "0/4", "and 10 more"):
        assert word in text
    assert text.count("running") >= 20


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.9, "59s"), (200, "3m 20s"), (18600, "5h 10m"), (183600, "2d 3h"), (None, "-")]
)
def test_spans_are_for_people(seconds, words):
    assert span(seconds) == words


def test_the_queue_key_is_the_brokers():
    store = connect("redis://127.0.0.1:1/0", "blue").store
    assert queue_key(store, ROUTE) == broker.queue_key("blue", ROUTE)


def _state(kind=StateType.SCHEDULED, *, scheduled=AT - 90, name="Scheduled", message=""):
    when = datetime.fromtimestamp(scheduled, UTC)
    return RunState(run_id="r", run_name="n", kind=kind, name=name, message=message, scheduled=when)


FULL = [_claim(run_id=str(number)) for number in range(4)]


@pytest.mark.parametrize(
    ("snapshot", "record", "state", "words"),
    [
        (_snapshot(claims=[_claim(run_id="r")]), None, None, "It runs on worker@host-1, for 5s."),
        (_snapshot(claims=[_claim(State.QUEUED, run_id="r", worker=None)]), None, None, "flowfleet/default"),
        (_snapshot(claims=[_claim(State.TAKEN, run_id="r")], gate_open=False), None, None, "the gate is shut"),
        (_snapshot(claims=[_claim(run_id="r", cancel=CancelHow.ASKED)]), None, None, "A cancel was asked for."),
        (
            _snapshot(claims=[_claim(run_id="r", cancel=CancelHow.OVER, cancel_why="u@h: now")]),
            None,
            None,
            "A cancel at once was asked for (u@h: now).",
        ),
        (_snapshot(), None, _state(scheduled=AT + 90), "to start in 1m 30s"),
        (_snapshot(leader=False), None, _state(), "due for 1m 30s and no poller is running"),
        (_snapshot(gate_open=False), None, _state(), "the gate is shut"),
        (_snapshot(rows=[]), None, _state(), "no active worker"),
        (_snapshot(claims=FULL, due=50), None, _state(), "waits for a free slot: all 4 are taken and 50 runs are due"),
        (_snapshot(due=3, eligible=0), None, _state(), "no active worker serves flowfleet/default"),
        (_snapshot(), None, _state(), "may be paused"),
        (
            _snapshot(),
            {"reason": "reported"},
            _state(StateType.FAILED, name="Failed", message="Oh."),
            "ended: the API says Failed (Oh)",
        ),
        (_snapshot(), None, _state(StateType.RUNNING, name="Running"), "another executor may have it"),
        (
            _snapshot(),
            None,
            _state(StateType.PAUSED, name="Suspended"),
            "The API says Suspended: it has left its worker, and is due again when somebody resumes it.",
        ),
        (_snapshot(), {"reason": "queued too long", "worker": "w@h"}, None, "(queued too long), on w@h"),
        (
            _snapshot(),
            {"outcome": "gone", "worker": "w@h"},
            None,
            "It was deleted at the API; its last attempt here was on w@h.",
        ),
        (_snapshot(), {"outcome": "crashed", "worker": "w@h"}, None, "Its last attempt here on w@h ended as crashed."),
        (_snapshot(), None, None, "knows nothing of it"),
    ],
)
def test_an_explanation_is_one_sentence_about_what_hinders(snapshot, record, state, words):
    assert words in explain("r", snapshot, record, state).sentence


def _evidence(snapshot, record=None, at_api=None, place=None, run_id="r"):
    explanation = explain(run_id, snapshot, record, at_api, place)
    told = evidence.lines(explanation, snapshot)
    assert len(told) <= 10
    assert not any("\n" in line or "{" in line for line in told)
    return "\n".join(told)


def test_the_evidence_of_a_run_that_runs_is_a_few_lines_about_it_its_claim_and_its_worker():
    names = {"flow": "orders", "deployment": "nightly"}
    claim = _claim(began_at=AT - 75, handle={"kind": "process", "host": "host-1", "id": "77"}, **names)
    state = _state(StateType.RUNNING, name="Running", message="two\nlines\x1b[31m")
    record = {"name": "brave-heron", "worker": "w@h", "move": "drop (leader)", "reason": "too late", "gone_at": AT - 90}
    assert _evidence(_snapshot(claims=[claim]), record, state, run_id=claim.run_id).splitlines() == [
        "run         brave-heron, 22222222-2222-4222-8222-222222222222",
        "flow        orders, deployment nightly",
        r"at the API  Running: two\nlines\x1b[31m",
        "queue       flowfleet/default",
        "claim       running for 5s, attempt 1, claim",
        "started     2026-01-02T03:02:50.000Z, 1m 15s ago",
        "worker      worker@host-1: active, 1 of 4 slots busy, seen 1s ago",
        "process     process 77 on host-1",
        "last claim  handed back on w@h, 1m 30s ago (2026-01-02T03:02:35.000Z): too late",
    ]


def test_the_evidence_of_a_run_that_has_ended_repeats_nothing_of_its_sentence():
    record = {"name": "n", "worker": "w@h", "outcome": "crashed", "exit": CERTIFICATE, "gone_at": AT - 90}
    at_api = _state(StateType.CRASHED, name="Crashed", message=f"The flow run's process{TOLD[11:]}")
    text = _evidence(_snapshot(), record, at_api)
    assert "at the API  Crashed\n" in text
    assert "its end     was killed by SIGKILL: the kernel ran out of memory for it (ended by: oom)" in text
    assert "took" not in text


def test_the_evidence_of_a_run_that_waits_is_its_place_its_queue_and_the_fleet():
    text = _evidence(_snapshot(due=50, at_least=True), None, _state(), replace(_HERE, paused="queue", limit="full"))
    assert text.splitlines()[1:] == [
        "at the API  Scheduled",
        "waits in    flowfleet/default, the queue is paused, full",
        "queue       flowfleet/default: at least 50 due, the oldest for 2m 5s; 1 worker takes runs of it",
        "fleet       default: lead poller agent@host-1, 4 free slots, runs may start",
    ]
    nowhere = _evidence(_snapshot(leader=False, gate_open=False, rows=[]), None, _state())
    assert "no lead poller, 0 free slots, the gate is shut" in nowhere
    assert "lost        w@host-2 was last heard of before" in _evidence(
        replace(_snapshot(), tombs=(_tomb(),)), run_id=_tomb().run_id
    )


_HERE = Place(route=ROUTE, pool="flowfleet")
_ELSEWHERE = Route("prefect3", "99999999-9999-4999-8999-999999999999", "other")


@pytest.mark.parametrize(
    ("snapshot", "place", "words"),
    [
        (_snapshot(), replace(_HERE, paused="pool"), "It has waited for 9s: its pool flowfleet is paused."),
        (_snapshot(), replace(_HERE, paused="queue"), "It has waited for 9s: its queue flowfleet/default is paused."),
        (_snapshot(), replace(_HERE, limit="the pool flowfleet is at its limit of 3"), "at its limit of 3."),
        (
            _snapshot(),
            Place(route=_ELSEWHERE, pool="far"),
            "no live worker of the fleet default serves its queue far/other.",
        ),
        (_snapshot(rows=[_row(live=False)]), _HERE, "no live worker of the fleet default serves its queue flowfleet/"),
        (_snapshot(rows=[_row(wanted="paused")]), _HERE, "takes new runs: worker@host-1 (paused)."),
        (
            _snapshot(rows=[_row(wanted="paused", note="kernel")]),
            _HERE,
            "takes new runs: worker@host-1 (paused: kernel).",
        ),
        (_snapshot(rows=[_row(shut=AWAY)]), _HERE, f"takes new runs: worker@host-1 ({AWAY})."),
        (
            _snapshot(claims=FULL, due=50, at_least=True),
            _HERE,
            "all 4 slots of the workers that serve it are taken, and at least 50 runs are due on flowfleet/default.",
        ),
        (_snapshot(leader=False), _HERE, "no poller is running in the fleet default."),
        (_snapshot(gate_open=False), _HERE, "the gate is shut"),
        (_snapshot(due=1), _HERE, "It has been due for 9s and will be claimed at the next poll: nothing hinders it."),
    ],
)
def test_the_explanation_of_a_due_run_is_about_its_own_queue(snapshot, place, words):
    explanation = explain("r", snapshot, None, _state(scheduled=AT - 9), place)
    assert words in explanation.sentence
    assert explanation.evidence["place"]["pool"] == place.pool


def test_a_run_that_is_not_due_or_waits_for_a_limit_of_its_deployment_says_so():
    later = _state(scheduled=AT + 90)
    sentence = explain("r", _snapshot(), None, later, replace(_HERE, paused="pool")).sentence
    assert "It is scheduled to start in" in sentence
    limited = replace(later, name="AwaitingConcurrencySlot")
    assert "concurrency limit" in explain("r", _snapshot(), None, limited, _HERE).sentence


def test_idle_workers_of_other_pools_do_not_hide_that_its_own_are_busy():
    idle = replace(_row("idle@host-2"), offer=Offer(backend="prefect3", pools=("far",), pool_ids=(_ELSEWHERE.scope,)))
    busy = _snapshot(claims=FULL, due=5, rows=[_row(), idle])
    sentence = explain("r", busy, None, _state(scheduled=AT - 9), _HERE).sentence
    assert "all 4 slots of the workers that serve it are taken, and 5 runs are due on flowfleet/default" in sentence


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (_version({"redis_version": "6.0.9"}), CheckStatus.FAIL),
        (_persistence({"aof_enabled": 1}, None, None), CheckStatus.OK),
        (_persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, None, None), CheckStatus.FAIL),
        (_persistence({"aof_enabled": 0}, "no", ""), CheckStatus.WARN),
        (_eviction({"maxmemory_policy": "allkeys-lru", "maxmemory": 100}), CheckStatus.FAIL),
        (_eviction({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}), CheckStatus.WARN),
        (_eviction({"maxmemory_policy": "noeviction", "maxmemory": 100}), CheckStatus.OK),
    ],
)
def test_checks_of_redis_tell_what_is_wrong_with_it(check, verdict):
    assert check.verdict == verdict


def test_a_valkey_is_called_by_its_own_version():
    assert _version({"redis_version": "7.2.4", "valkey_version": "9.1.0"}).found == "Valkey 9.1.0."


def test_checks_of_the_api_tell_its_absence_and_its_clock():
    def away():
        raise ApiUnavailable("No answer.")

    (check,) = api_checks(away)
    assert (check.verdict, check.found) == (CheckStatus.FAIL, "No answer.")
    skewed = list(api_checks(lambda: ServerInfo(backend="prefect3", version="3.8", skew_seconds=-30)))
    assert [check.verdict for check in skewed] == [CheckStatus.OK, CheckStatus.WARN]
    assert "30 s behind" in skewed[1].found


@pytest.mark.parametrize(
    ("leader", "rows", "verdicts"),
    [
        (False, [], ["fail", "fail"]),
        (False, [_row(live=False)], ["fail", "fail"]),
        (False, [_row()], ["warn", "ok"]),
        (True, [], ["ok", "warn"]),
        (True, [_row()], ["ok", "ok"]),
    ],
)
def test_a_fleet_without_a_poller_or_a_worker_is_warned_of_and_one_without_both_fails(leader, rows, verdicts):
    found = {check.name: check for check in fleet_checks(_snapshot(rows=rows, leader=leader))}
    assert [str(found[name].verdict) for name in ("leader", "workers")] == verdicts


def test_checks_of_the_fleet_tell_what_lacks():
    found = fleet_checks(_snapshot(due=3, eligible=0))
    assert {check.name for check in found if check.verdict == CheckStatus.WARN} == {"unserved"}
    assert "versions" in {check.name for check in fleet_checks(_snapshot(rows=[_row(version="0.0.1")]))}


@pytest.fixture
def restored():
    """A poller's world whose ledger knows none of the runs of the API."""
    world = World.of()
    world.leadership.tend()
    return world


def _launched(world, ledger, name="run"):
    run_id = world.api.add(name=name)
    world.api.be(run_id, StateType.RUNNING, "Running")
    world.api.origins[run_id] = LaunchedClaim(claim="claim", call=new_call(ledger))
    return run_id


def test_the_doctor_names_a_run_that_was_claimed_through_another_redis_and_looks_at_few(restored):
    look = lambda: list(ledger_checks(restored.api, restored.ledger, _snapshot(claims=[_claim(run_id=ours)])))  # noqa: E731
    ours = _launched(restored, "0a0b0c0d")
    _launched(restored, restored.leadership.ledger)
    assert look() == []
    _launched(restored, "0a0b0c0d", "calm-otter")
    (check,) = look()
    assert check.verdict is CheckStatus.WARN
    assert (
        check.found
        == "The run calm-otter of the fleet default was claimed through another Redis, or before this one was emptied."
    )
    assert "--fleet" in check.remedy

    for _ in range(20):
        _launched(restored, "0a0b0c0d")
    restored.api.asked.clear()
    look()
    assert restored.api.count("origin") == NAMED


def test_the_doctor_does_not_look_at_what_was_claimed_after_its_snapshot(restored):
    run_id = _launched(restored, "0a0b0c0d")
    restored.claims.by_run[run_id] = a_claim(run_id)
    assert list(ledger_checks(restored.api, restored.ledger, _snapshot())) == []


def test_the_doctor_says_nothing_of_a_ledger_that_has_no_id_yet(restored):
    _launched(restored, "0a0b0c0d")
    restored.gate.lose()
    assert list(ledger_checks(restored.api, restored.ledger, _snapshot())) == []


def test_the_doctor_says_that_the_api_does_not_tell_of_unfinished_runs(restored):
    restored.api.fail("unfinished")
    (check,) = ledger_checks(restored.api, restored.ledger, _snapshot())
    assert (check.verdict, check.found) == (
        CheckStatus.WARN,
        "Unfinished runs could not be asked for: no answer to unfinished",
    )


def _gauges(take, **how):
    registry = CollectorRegistry()
    registry.register(LedgerCollector(take, **how))
    return generate_latest(registry).decode()


def _away():
    raise LedgerUnavailable("gone")


def test_metrics_are_the_ledgers_gauges_without_run_ids():
    text = _gauges(lambda: _snapshot(claims=[_claim(), _claim(State.ENDED, run_id="e")], due=9))
    for line in (
        f'runs_due{{route="{ROUTE}"}} 9.0',
        f'workers_wanted{{route="{ROUTE}"}} 3.0',
        'worker_slots{worker="worker@host-1"} 4.0',
        "outbox_length 1.0",
        "gate_open 1.0",
        "redis_up 1.0",
    ):
        assert f"flowfleet_{line}" in text
    assert _claim().run_id not in text


def test_metrics_without_redis_say_just_that_and_a_standby_leaves_the_ledger_to_the_leader():
    text = _gauges(_away)
    assert "flowfleet_redis_up 0.0" in text
    assert "flowfleet_gate_open" not in text
    text = _gauges(_snapshot, leads=lambda: False)
    assert "flowfleet_build_info" in text
    assert "flowfleet_runs_due" not in text


def test_workers_wanted_counts_due_and_running_over_the_usual_size():
    snapshot = _snapshot(claims=FULL, due=5)
    assert workers_wanted(snapshot, snapshot.queues[0]) == 3


def test_runs_are_live_ones_and_gone_ones_filtered():
    facts = {"flow": "Orders", "deployment": "nightly", "reason": "completed", "move": "release", "began_at": AT - 760}
    record = {"run_id": "g", "name": "old", "route": str(ROUTE), "worker": "w@h", "gone_at": AT - 700, **facts}
    snapshot = _snapshot(claims=[_claim(flow="greeting")])

    def ids(**wanted):
        return [run["run_id"] for run in runs.collect(snapshot, [record], runs.Wanted(**wanted))]

    assert ids() == [_claim().run_id, "g"]
    assert ids(state="ended") == ids(end="Complet") == ids(flow="ORDERS") == ids(deployment="Night") == ["g"]
    assert ids(state="running") == ids(flow="greet") == [_claim().run_id]
    assert ids(end="crashed") == []
    assert ids(worker="W@H") == ["g"]
    assert ids(worker="w") == ["g"]
    assert ids(worker="worker@host-1") == [_claim().run_id]
    assert ids(since_seconds=600) == [_claim().run_id]
    assert ids(route="Flowfleet/def") == [_claim().run_id, "g"]
    assert ids(route="nothing") == []
    assert max(map(len, _printed(runs.table(runs.collect(snapshot, [record]), AT)).splitlines())) <= 80


CERTIFICATE = Exit(
    signal=9, oom=True, oom_kills=1, wall_seconds=200.0, cpu_seconds=41.0, max_rss_kib=524288, tree_peak_kib=716800
).certificate()
TOLD = (
    "Its process was killed by SIGKILL: the kernel ran out of memory for it. It took 3 min 20 s, 41 s of CPU time and "
    "up to 512 MiB of memory (700 MiB with all its processes and files)."
)


def test_how_a_run_has_ended_is_told_by_runs_under_names_that_stay():
    gone = {"run_id": "g", "name": "old", "route": str(ROUTE), "worker": "w@h", "gone_at": AT - 700}
    records = [
        {**gone, "exit": CERTIFICATE, "outcome": "crashed", "reason": "crashed"},
        {**gone, "exit": None, "move": "bury", "outcome": "cancelled", "reason": "The flow run was lost: its host …"},
        {**gone, "exit": None, "reason": "superseded"},
    ]
    snapshot = _snapshot(claims=[_claim(State.ENDED, exit=CERTIFICATE), _claim(State.JUDGED), _claim()])
    found = runs.collect(snapshot, records)
    ends = [run["exit"] for run in json.loads(json.dumps(runs.to_json(found)))]
    assert [end and end["ended_by"] for end in ends] == [None, "host-lost", "oom", "oom", "host-lost", None]
    assert list(ends[2]) == list(certificate.NAMES)
    assert ends[2] == ends[3]
    assert (ends[1]["sentence"], ends[1]["code"], ends[1]["cpu_seconds"]) == ("none, host lost", None, None)
    assert [run["end"] for run in found[3:]] == ["crashed", "cancelled", "superseded"]

    narrow, wide = _printed(runs.table(found, AT)), _printed(runs.table(found, AT, 140), width=140)
    assert max(map(len, narrow.splitlines())) <= 80
    assert ("crashed" in narrow, "gone" in narrow) == (True, False)
    for word in ("BY", "oom", "host-lost", "3m 20s", "41 s", "700 MiB"):
        assert word in wide


@pytest.mark.parametrize(
    ("claims", "record", "message", "words"),
    [
        ([_claim(State.ENDED, run_id="r", exit=CERTIFICATE)], None, None, f"for 5s. {TOLD}"),
        ([_claim(State.JUDGED, run_id="r")], None, None, "counted as lost. Nobody has seen its process end"),
        ([], {"reason": "crashed", "exit": CERTIFICATE}, None, f"ended as crashed. {TOLD}"),
        ([], {"reason": "crashed", "exit": {"code": 3}}, None, "Its last attempt here ended as crashed."),
        ([], {"reason": "lost", "move": "bury", "exit": None}, None, "has seen its process end: its host is lost."),
        ([], {"reason": "x", "exit": CERTIFICATE}, "It failed.", f"the API says Failed (It failed). {TOLD}"),
        ([], {"reason": "x", "exit": CERTIFICATE}, f"The flow run's process{TOLD[11:]}", "processes and files))."),
    ],
)  # fmt: skip
def test_how_a_run_has_ended_is_told_by_explain_once(claims, record, message, words):
    state = message and _state(StateType.FAILED, name="Failed", message=message)
    explanation = explain("r", _snapshot(claims=claims), record, state or None)
    assert explanation.sentence.endswith(words) or words in explanation.sentence
    assert explanation.sentence.count("Its process") <= 1
    assert explanation.sentence.count("ran out of memory") <= 1
    if "exit" in explanation.evidence:
        assert set(explanation.evidence["exit"]) == set(certificate.NAMES)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"move": "release", "outcome": "completed", "reason": "completed"}, "completed"),
        ({"move": "release", "outcome": "gone"}, "deleted"),
        ({"move": "inherit", "outcome": "again"}, "to run again"),
        ({"move": "bury", "outcome": "crashed"}, "crashed"),
        ({"move": "bury", "outcome": "nobody knows"}, "lost"),
        ({"move": "drop (leader)", "reason": "no worker took it for 60 s"}, "handed back"),
        ({"move": "refuse", "reason": "no longer Scheduled"}, "not claimed"),
        ({"move": "release", "reason": "A sentence of a later version."}, "ended"),
        ({}, "ended"),
    ],
)
def test_how_a_claim_has_gone_is_told_in_a_word_or_two(record, words):
    assert runs.ending(record) == words


def test_a_run_is_listed_with_its_flow_its_deployment_its_start_and_how_long_it_took():
    told = {"flow": "orders", "deployment": "nightly"}
    ended = {"run_id": "g", "name": "old", "route": str(ROUTE), "worker": "w@h", "move": "release", "outcome": "failed"}
    records = [
        {**ended, **told, "began_at": AT - 200, "gone_at": AT - 100, "exit": {"wall_seconds": 41.0}},
        {**ended, "gone_at": AT - 100, "exit": {"started_at": AT - 2 * 86400, "ended_at": AT - 100}},
    ]
    live = _claim(began_at=AT - 75, **told)
    found = runs.collect(_snapshot(claims=[live]), records)
    rows = [" ".join(line.split()) for line in _printed(runs.table(found, AT, 200), 200).splitlines()]
    assert rows[0] == "RUN ID FLOW DEPLOYMENT POOL STATE WORKER START UTC TOOK BY CPU MEMORY"
    assert rows[1].startswith(
        "brave-heron 22222222 orders nightly flowfleet/default running worker@host-1 03:02:50 1m 15s -"
    )
    assert rows[2].startswith("old g orders nightly flowfleet/default failed w@h 03:00:45 41.0s - - -")
    assert rows[3].startswith("old g - - flowfleet/default failed w@h 12-31 03:04 1d 23h -")
    form = runs.to_json(found)
    assert (form[0]["flow"], form[0]["deployment"], form[0]["started"]) == (*told.values(), "2026-01-02T03:02:50.000Z")
    assert (form[1]["state"], form[1]["end"], form[1]["queue"]) == ("ended", "failed", "flowfleet/default")


@pytest.mark.parametrize(("width", "left_out"), [(80, {"POOL", "BY"}), (100, {"BY"}), (200, set())])
def test_a_narrow_list_of_runs_leaves_out_what_matters_least_and_keeps_names_readable(width, left_out):
    names = {"flow": "nightly-orders-of-all", "deployment": "production-cluster", "worker": "worker@" + "h" * 20}
    claim = _claim(began_at=AT - 75, **names)
    text = _printed(runs.table(runs.collect(_snapshot(claims=[claim]), []), AT, width), width)
    titles = text.splitlines()[0].split()
    assert max(map(len, text.splitlines())) <= width
    assert not left_out & set(titles)
    assert {"RUN", "ID", "FLOW", "STATE", "WORKER", "TOOK"} <= set(titles)
    assert "nightly-or" in text


def test_a_span_that_is_none_is_one_sentence():
    assert runs.parse_since("10m") == 600
    with pytest.raises(SettingsError, match="--since"):
        runs.parse_since("soon")


def test_local_output_is_the_newest_attempts_and_is_followed_to_the_runs_end(tmp_path):
    for claim, text in (("old", "first"), ("new", "second")):
        folder = tmp_path / "machine" / "worker" / "runs" / f"r.{claim}"
        folder.mkdir(parents=True)
        (folder / "log").write_text(text)
    os.utime(tmp_path / "machine/worker/runs/r.old/log", (1, 1))
    log = local_log(tmp_path, "r")
    assert log.read_text() == "second"
    ends = iter([False, True])

    def wait(seconds):
        with log.open("a") as file:
            file.write(" more")

    assert b"".join(read_local(log, follow=True, ended=lambda: next(ends), wait=wait)) == b"second more"
    assert local_log(tmp_path, "other") is None


def test_local_output_begins_behind_the_hole_that_its_cap_has_left(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"\0" * 100 + b"kept\0line\n")
    assert b"".join(read_local(log, follow=False, ended=lambda: True)) == b"kept\0line\n"
