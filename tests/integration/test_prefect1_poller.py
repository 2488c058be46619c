"""The poller's rounds with the real client, on a local Prefect 1 API that has Server's rules; time moves by hand."""

import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import Offer
from flowfleet.ledger.claims import State
from poller.listing import Clock
from tests.prefect1_api import Faults, Prefect1Api
from tests.unit.poller_world import Labelled, Time
from tests.waiting import until


class Fleet(Labelled):
    """The poller in memory, the API on loopback; what the loop sleeps passes on both clocks."""

    def __init__(self) -> None:
        self.server = Prefect1Api(faults=Faults.like_server()).start()
        # else a slow machine's time would pass on the API's clock alone
        self.server.clock.stand_still()
        self.flow = self.server.add_flow()
        super().__init__()

    def make_api(self, time: Time) -> Prefect1:
        time.clock = Clock(monotonic=lambda: time.now, wall=lambda: self.server.clock().timestamp())
        return self.client(time)

    def client(self, time: Time) -> Prefect1:
        session = Session(Address(url=self.server.url), flavour=PREFECT1, pause=lambda _seconds: None)
        return Prefect1(GraphQL(session), clock=lambda: time.now, now=self.server.clock)

    def worker(self, *labels: str, worker: str = "worker@a", slots: int = 4, deploy: str = "process") -> None:
        offer = self.api.presence.resolve(Offer(backend="prefect1", labels=labels, deploy=deploy), create=False)
        self.roster.add(worker, slots, offer=offer, routes=(), deploy=deploy)

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        before = self.time.now
        rung = super().wait(seconds, gather_seconds)
        self.server.clock.advance(self.time.now - before)
        return rung

    def run_of(self, *labels: str, seconds: float = -1.0, **given: object) -> str:
        return self.server.add_run(
            self.flow, labels=labels or ("x",), start=self.server.clock() + timedelta(seconds=seconds), **given
        )

    def begun(self, run_id: str) -> None:
        """Its worker has started it, and its engine has said so."""
        self.claims.be(run_id, State.RUNNING, "worker@a")
        self.server.write(run_id, "Running")
        self.server.heartbeat(run_id)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    world = Fleet()
    world.worker("x", "y")
    yield world
    world.server.stop()


def test_due_runs_of_all_labels_are_claimed_once_and_those_of_later_in_time(fleet):
    now, other, later = fleet.run_of("x"), fleet.run_of("x", "y"), fleet.run_of("y", seconds=20)
    strange = fleet.run_of("gpu")
    fleet.rounds(15)
    assert sorted(fleet.claimed) == sorted([now, other])
    fleet.rounds(4.9)
    assert later not in fleet.claimed
    fleet.rounds(0.4)

    assert sorted(fleet.claimed) == sorted([now, other, later])
    for run_id in (now, other, later):
        assert fleet.server.history(run_id) == ["Scheduled", "Submitted"]
        ours = fleet.server.states(run_id)[-1]["context"]["flowfleet"]
        assert ours["claim"] == fleet.claims.by_run[run_id].claim
    assert fleet.server.history(strange) == ["Scheduled"]


@pytest.mark.parametrize("listed_at", [0.0, 8.0])
def test_a_run_that_is_put_off_after_it_was_listed_is_not_claimed_before_its_new_time(fleet, listed_at):
    run_id = fleet.run_of("x", seconds=9.5)
    fleet.rounds(listed_at)
    fleet.ring("poke")  # young enough at 9.5 s to be claimed from, where that is what is listed last
    fleet.rounds(9.2 - listed_at)
    put_off = (fleet.server.clock() + timedelta(seconds=40)).isoformat()
    fleet.server.write(run_id, "Scheduled", start_time=put_off)
    fleet.rounds(30)
    assert fleet.claimed == []

    fleet.rounds(15)
    assert fleet.claimed == [run_id]


def test_a_run_that_is_cancelled_after_it_was_listed_stays_cancelled(fleet):
    run_id = fleet.run_of("x", seconds=9.5)
    fleet.rounds(9.2)
    assert fleet.server.cancel(run_id) == "Cancelled"
    fleet.rounds(10)

    assert fleet.claimed == []
    assert fleet.server.history(run_id) == ["Scheduled", "Cancelled"]


def test_what_lazarus_puts_back_is_written_back_and_not_run_twice(fleet, caplog):
    run_id = fleet.run_of("x")
    fleet.rounds(6)
    fleet.begun(run_id)
    fleet.rounds(700)
    assert fleet.server.services.lazarus() == [run_id]
    assert fleet.server.state(run_id) == "Scheduled"
    fleet.rounds(15)

    assert fleet.server.history(run_id) == ["Scheduled", "Submitted", "Running", "Scheduled", "Running"]
    assert fleet.claimed == [run_id]
    assert fleet.metric("flowfleet_runs_echoed_total") == 1
    (line,) = [each for each in caplog.records if "had put back a run that is running" in each.message]
    assert (line.levelno, line.run_id, line.worker) == (logging.WARNING, run_id, "worker@a")
    assert fleet.roster.noted == [] or fleet.roster.noted[0].due == 0
    fleet.server.heartbeat(run_id)
    fleet.rounds(60)
    assert fleet.server.history(run_id)[-1] == "Running"


def test_a_run_that_its_user_restarts_before_its_old_process_is_gone_is_run_again_after_that(fleet):
    run_id = fleet.run_of("x")
    fleet.rounds(6)
    fleet.begun(run_id)
    fleet.server.write(run_id, "Success")
    fleet.server.write(run_id, "Scheduled", start_time=fleet.server.clock().isoformat())
    fleet.rounds(40)
    assert fleet.server.history(run_id)[-2:] == ["Success", "Scheduled"]
    assert fleet.claimed == [run_id]

    fleet.claims.done(run_id)
    fleet.ring("freed")
    fleet.rounds(15)
    assert fleet.claimed == [run_id, run_id]


def test_a_run_that_was_handed_back_is_claimed_again_when_the_server_has_forgotten_its_first_claim(fleet, caplog):
    run_id = fleet.run_of("x")
    fleet.rounds(3)
    claim = fleet.claims.by_run[run_id]
    fleet.claims.give_back(run_id, claim.claim, "the worker stops", worker="worker@a")
    assert fleet.api.ends.hand_back(run_id, claim.call, claim.due, fleet.mark, "the worker stops").verdict == "accepted"
    fleet.claims.drop(run_id, claim.claim, worker="worker@a")
    fleet.ring("freed")
    caplog.set_level(logging.INFO)
    counted = fleet.server.counted
    asked, claims, polls = counted(), counted("set_flow_run_states"), counted("get_runs_in_queue")
    fleet.rounds(45)

    assert fleet.claimed == [run_id, run_id]
    assert fleet.server.history(run_id) == ["Scheduled", "Submitted", "Scheduled", "Submitted"]
    assert counted() - asked <= 45
    assert counted("set_flow_run_states") - claims <= 8
    assert counted("get_runs_in_queue") - polls <= 12
    assert [each for each in caplog.records if each.levelno >= logging.WARNING or "claim refused" in each.message] == []
    assert fleet.metric("flowfleet_claims_refused_total") == 0


@pytest.mark.parametrize("fault", ["lost", "late", "hung", "broken_after"])
def test_a_claim_whose_answer_is_lost_is_ours_all_the_same_and_sent_once(fleet, monkeypatch, fault):
    run_id = fleet.run_of("x")
    getattr(fleet.server.faults, fault)("set_flow_run_states")
    with monkeypatch.context() as short:
        if fault in ("late", "hung"):
            # short for the claim that meets it only: a further one may stall
            seconds = property(lambda _session: 0.3 if fleet.server.faults.pending() else 60.0)
            short.setattr(Session, "bulk_seconds", seconds)
        fleet.rounds(4)
    until(lambda: fleet.server.counted("set_flow_run_states"), 30, "the claim to come")
    if fault == "late":
        fleet.server.faults.release()
        until(lambda: fleet.server.state(run_id) == "Submitted", 30, "the late commit")
    fleet.rounds(50)

    assert fleet.claimed == [run_id]
    claim = fleet.claims.by_run[run_id]
    assert fleet.server.history(run_id) == ["Scheduled", "Submitted"]
    assert fleet.server.states(run_id)[-1]["context"]["flowfleet"]["claim"] == claim.claim


def test_a_run_for_kubernetes_stays_scheduled_and_says_so_once_on_its_page(fleet):
    run_id = fleet.run_of("x", run_config={"type": "KubernetesRun", "labels": ["x"]})
    lone = fleet.run_of("gpu")
    fleet.rounds(300)

    assert fleet.server.history(run_id) == fleet.server.history(lone) == ["Scheduled"]
    for each, word in ((run_id, "KubernetesRun"), (lone, "gpu")):
        (line,) = fleet.server.logs(each)
        assert line["level"] == "WARNING"
        assert word in line["message"]
    assert fleet.claimed == []


def test_what_a_lost_ledger_leaves_submitted_goes_back_a_minute_later_and_is_run(fleet):
    run_id = fleet.run_of("x")
    fleet.rounds(3)
    fleet.claims.by_run.clear()
    fleet.gate.process = "redis-2"
    fleet.rounds(80)
    assert fleet.gate.accepted == "redis-2"
    assert fleet.server.history(run_id) == ["Scheduled", "Submitted"]
    fleet.rounds(45)

    assert fleet.claimed == [run_id, run_id]
    assert fleet.server.history(run_id) == ["Scheduled", "Submitted", "Scheduled", "Submitted"]


def test_idle_it_asks_as_seldom_as_one_agent(fleet):
    fleet.worker("x", worker="worker@b")
    fleet.worker(worker="worker@c")
    fleet.rounds(60)
    asked = fleet.server.counted()
    fleet.rounds(1200)

    assert (fleet.server.counted() - asked) / 20 <= 12
