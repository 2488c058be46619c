"""Reports of ends, and ways back, amid what goes wrong around the one write: at both APIs, stood in for."""

import uuid
from datetime import UTC, datetime

import pytest

from flowfleet.api.client import Mark, StateType, Verdict
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.freshness import FRESH_SECONDS
from flowfleet.api.transport.session import READ_SECONDS, Session
from flowfleet.errors import FleetError
from flowfleet.flow_run import Offer, claim_id, report_id
from tests.lawless_api import LawlessApi
from tests.prefect1_api import Faults, Prefect1Api
from tests.waiting import SCALE, until

MARK = Mark(fleet="test", worker="w@here")
ENDED = "The flow run's process exited with code 6."


class Clock:
    """A boot-time clock that stands still, and jumps while the process is frozen."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Reporting:
    """One run of ours that runs, at one of the two APIs, and what its worker does at its end."""

    #: what is done between our reading and our writing, once
    meanwhile = None

    def __init__(self, api, session, client, run):
        self.api, self.session, self.client, self.run_id = api, session, client, run.run_id
        self.call = str(uuid.uuid4())
        self.claim = claim_id(self.call, self.run_id)
        assert client.claims.claim([run], self.call, MARK)[self.run_id].verdict is Verdict.ACCEPTED
        self.due = run.due

    def launch(self):
        assert self.client.claims.launching(self.run_id, self.call, self.claim, MARK).verdict is Verdict.ACCEPTED

    def begin(self):
        """As far as the engine's own Running."""
        self.launch()
        self.write("RUNNING")

    def report(self, kind=None, **how):
        kind = kind or (StateType.CRASHED if self.client.traits.has_crashed else StateType.FAILED)
        return self.client.ends.report(self.run_id, kind, ENDED, MARK, claim=self.claim, **how)

    def hand_back(self):
        return self.client.ends.hand_back(self.run_id, self.call, self.due, MARK, "drill", never_began=True)

    def restart(self, *, begun):
        """By somebody, in whose hands the run is from then on."""
        for kind in ("FAILED", "SCHEDULED"):
            self.write(kind)
        self.hand_out()
        if begun:
            self.write("RUNNING")

    def late(self):
        """The next write is carried out after its time-out, at `release`; the time-out is short until then."""
        self.session.read_seconds = 2.0 * SCALE
        self.hold()

    def release(self):
        self.session.read_seconds = READ_SECONDS
        self.let_go()

    def between(self):
        if self.meanwhile is not None:
            step, self.meanwhile = self.meanwhile, None
            step()


class Reporting3(Reporting):
    def __init__(self, clock):
        api = LawlessApi(honest=True).start()
        session = Session(Address(url=api.api_url), pause=lambda _: None, boot_clock=clock)
        client = Prefect3(session, between=self.between)
        api.add_pool()
        self.offer = client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)
        api.add_run()
        self.client = client
        super().__init__(api, session, client, self.listed()[0])

    def listed(self):
        return [run for one in self.client.backlog.due([self.offer], within_seconds=60, limit=9) for run in one.runs]

    def write(self, kind):
        self.api.write(self.run_id, kind)

    def history(self):
        return self.api.history(self.run_id)

    def hand_out(self):
        self.api.write(self.run_id, "PENDING", "Submitted", transition_id=str(uuid.uuid4()))

    def told(self):
        return self.api.state(self.run_id)["state_details"]["transition_id"]

    def delete(self):
        del self.api.runs[self.run_id]

    def hold(self):
        self.api.fail("bulk_set_state", "late")

    def let_go(self):
        self.api.release()


NAMES = {
    "PENDING": "Submitted",
    "RUNNING": "Running",
    "FAILED": "Failed",
    "SCHEDULED": "Scheduled",
    "COMPLETED": "Success",
}


class Reporting1(Reporting):
    def __init__(self, clock):
        api = Prefect1Api(faults=Faults.like_server()).start()
        session = Session(Address(url=api.url), flavour=PREFECT1, pause=lambda _: None, boot_clock=clock)
        self.client = client = Prefect1(GraphQL(session), between=self.between)
        api.add_run(api.add_flow(), labels=["x"], start=datetime.now(UTC))
        self.offer = client.presence.resolve(Offer(backend="prefect1", labels=("x",)), create=False)
        super().__init__(api, session, client, self.listed()[0])

    listed = Reporting3.listed

    def write(self, kind):
        how = {"start_time": datetime.now(UTC).isoformat()} if kind == "SCHEDULED" else {}
        self.api.write(self.run_id, NAMES[kind], **how)

    def history(self):
        return self.api.history(self.run_id)

    def hand_out(self):
        self.write("PENDING")

    def told(self):
        return self.api.states(self.run_id)[-1]["context"]["flowfleet"]["done"]

    def delete(self):
        self.api.delete(self.run_id)

    def hold(self):
        self.api.faults.late("set_flow_run_states")

    def let_go(self):
        self.api.faults.release()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=[Reporting3, Reporting1], ids=["prefect3", "prefect1"])
def ours(request, clock):
    made = request.param(clock)
    yield made
    made.api.stop()


def test_a_report_bears_the_id_that_whoever_sends_it_makes_and_a_repeat_writes_nothing(ours):
    ours.begin()
    first = ours.report()
    before = ours.history()
    assert first.verdict is Verdict.ACCEPTED
    kind = StateType.CRASHED if ours.client.traits.has_crashed else StateType.FAILED
    assert ours.told() == report_id(ours.claim, kind)
    # the leader for a host that is away, in words of its own
    again = ours.client.ends.report(ours.run_id, kind, "Its host is away.", Mark(fleet="test"), claim=ours.claim)
    assert again.verdict is Verdict.ACCEPTED
    assert ours.history() == before


def test_a_report_that_is_carried_out_after_its_time_out_is_known_as_ours_and_not_written_twice(ours):
    ours.begin()
    ours.late()
    assert ours.report().verdict is Verdict.UNSURE
    before = ours.history()
    ours.release()
    until(lambda: ours.history() != before, 10, "the late write")
    written = ours.history()
    assert ours.report().verdict is Verdict.ACCEPTED
    assert ours.history() == written


@pytest.mark.parametrize("begun", [False, True], ids=["handed out anew", "running anew"])
@pytest.mark.parametrize("what", ["report", "cancelled", "run again"])
def test_an_attempt_that_somebody_has_claimed_since_is_told_so_and_writes_nothing(ours, begun, what):
    ours.begin()
    ours.restart(begun=begun)
    before = ours.history()
    if what == "run again":
        answer = ours.client.ends.run_again(ours.run_id, ours.claim, "It is started again.", MARK)
    else:
        answer = ours.report(StateType.CANCELLED if what == "cancelled" else None)
    assert (answer.verdict, answer.claimed_since) == (Verdict.REFUSED, True)
    assert ours.history() == before


def test_an_end_that_waits_through_retries_of_its_own_process_is_told(ours):
    """These look like a run that is handed out anew, at the first glance."""
    ours.launch()
    if isinstance(ours, Reporting3):
        # `prefect flow-run execute` submits the run itself
        ours.api.write(ours.run_id, "PENDING", "Submitting")
        ours.api.write(ours.run_id, "RUNNING")
        ours.api.write(ours.run_id, "SCHEDULED", "AwaitingRetry")
    ours.write("RUNNING")
    assert ours.report().verdict is Verdict.ACCEPTED


def test_a_run_that_was_deleted_is_gone(ours):
    ours.begin()
    ours.delete()
    answer = ours.report()
    assert (answer.verdict, answer.gone) == (Verdict.REFUSED, True)


@pytest.mark.parametrize("meanwhile", ["ended", "running anew"])
@pytest.mark.parametrize("what", ["report", "hand back"])
def test_a_process_that_was_frozen_between_reading_and_sending_reads_again(ours, clock, what, meanwhile):
    """The filter of the write would not see it: what stands there has the name that it had."""
    if what == "report":
        ours.begin()

    def frozen():
        clock.now += FRESH_SECONDS + 1
        ours.write("COMPLETED") if meanwhile == "ended" else ours.restart(begun=what == "report")

    ours.meanwhile = frozen
    answer = ours.report() if what == "report" else ours.hand_back()
    assert answer.verdict is Verdict.REFUSED
    assert ours.history()[-1] != "Scheduled"
    expected = {"ended": ("Completed", "Success"), "running anew": ("Running", "Submitted")}[meanwhile]
    assert ours.history()[-1] in expected


def test_an_api_that_needs_long_for_each_answer_is_told_all_the_same(ours, clock, monkeypatch):
    ours.begin()
    readings = []
    read = ours.client.ends.fence.read

    def slow(*args):
        readings.append(args)
        clock.now += 3 * FRESH_SECONDS
        return read(*args)

    monkeypatch.setattr(ours.client.ends.fence, "read", slow)
    assert ours.report().verdict is Verdict.ACCEPTED
    assert len(readings) == 3


def test_a_last_look_before_a_write_can_stop_it(ours):
    ours.begin()
    before = ours.history()

    def lost():
        raise FleetError("the term is another leader's")

    with pytest.raises(FleetError, match="another leader"):
        ours.report(still=lost)
    assert ours.history() == before
