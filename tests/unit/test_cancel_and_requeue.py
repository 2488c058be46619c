"""The orders behind `flowfleet cancel` and `requeue`: what is asked of API and ledger, in which order, and refusals."""

from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flowfleet.api.client import Answer, Mark, StateType, Verdict
from flowfleet.api.found import FoundRuns, with_part
from flowfleet.api.life import LaunchedClaim
from flowfleet.commands import chosen_run
from flowfleet.commands.cancel import CancelOrder, NotCancelled, carry_out
from flowfleet.commands.chosen_run import ChosenRun, HalfApi, NoSuchRun
from flowfleet.commands.requeue import NotStartedAgain, Requeueing
from flowfleet.errors import ApiUnavailable, SettingsError
from flowfleet.ledger.claims import CancelHow, State
from flowfleet.settings.common import CommonSettings
from tests.unit.memory_ledger import a_claim
from tests.unit.poller_world import World

MARK = Mark(fleet="f")
HELD = [State.TAKEN, State.STARTING, State.RUNNING, State.ENDED, State.MISSING, State.JUDGED]


class Fleet:
    """A fleet with one run, at the API and, if it has a claim, in the ledger."""

    def __init__(self, kind=StateType.RUNNING, name="Running", claimed=State.RUNNING):
        self.world = World.of()
        self.api, self.claims = self.world.api, self.world.claims
        self.run_id = self.api.add(name="calm-otter")
        self.run = ChosenRun(self.run_id, "calm-otter")
        self.api.be(self.run_id, kind, name)
        if claimed:
            held = a_claim(self.run_id, claimed, worker="worker@box", name="calm-otter")
            self.claims.by_run[self.run_id] = held
        self.claims.records = lambda limit: []
        self.hints = []
        self.said = []
        self.ledger = SimpleNamespace(
            claims=self.claims,
            gate=self.world.gate,
            hints=SimpleNamespace(publish=lambda kind, text: self.hints.append((kind, text))),
        )

    def cancelling(self, how=CancelHow.ASKED):
        return CancelOrder(
            ledger=self.ledger, api=self.api, mark=MARK, how=how, whom="by u@h", say=self.said.append,
            clock=self.world.time.clock.monotonic, pause=self.pause,
        )  # fmt: skip

    def requeueing(self):
        return Requeueing(
            ledger=self.ledger, api=self.api, mark=MARK, whom="by u@h", say=self.said.append,
            clock=self.world.time.clock.monotonic, pause=self.pause,
        )  # fmt: skip

    def pause(self, seconds):
        self.world.time.now += seconds

    @property
    def told(self):
        """What stands on the claim."""
        return self.claims.by_run[self.run_id].cancel

    def ends(self):
        """Its worker ends it a second from now."""
        at = self.world.time.now + 1.0

        def pause(seconds):
            self.world.time.now += seconds
            if self.world.time.now >= at:
                self.api.be(self.run_id, StateType.CANCELLED, "Cancelled")
                self.claims.by_run.pop(self.run_id, None)

        self.pause = pause


def test_the_claim_is_told_once_the_api_has_accepted_and_the_end_is_waited_for():
    fleet = Fleet()
    fleet.ends()
    cancelling = fleet.cancelling()
    ordered = cancelling.order(fleet.run)
    assert (fleet.api.kind(fleet.run_id), fleet.told) == (StateType.CANCELLING, CancelHow.ASKED)
    assert fleet.api.asked.index("cancel") < len(fleet.api.asked)
    ((run, state),) = cancelling.wait([ordered])
    assert (run, state.kind) == (fleet.run, StateType.CANCELLED)
    assert fleet.said == ["waiting: the process of calm-otter on worker@box is being ended, and then its hooks are run"]


def test_a_kill_at_once_is_waited_for_without_a_word_of_hooks():
    fleet = Fleet()
    fleet.ends()
    cancelling = fleet.cancelling(CancelHow.OVER)
    cancelling.wait([cancelling.order(fleet.run)])
    assert fleet.said == ["waiting: the process of calm-otter on worker@box is being ended"]


def test_a_run_that_was_cancelled_before_is_said_to_be_so_and_is_not_waited_for(capsys):
    fleet = Fleet(StateType.CANCELLED, "Cancelled", claimed=None)
    assert carry_out(fleet.cancelling(), [fleet.run], no_wait=False) == 0
    assert capsys.readouterr().out == "calm-otter is Cancelled already.\n"


def test_a_run_that_has_ended_though_its_process_may_live_on_a_lost_host_is_refused_with_that_host():
    fleet = Fleet(StateType.CRASHED, "Crashed", claimed=None)
    fleet.claims.tomb_of[fleet.run_id] = SimpleNamespace(run_id=fleet.run_id, host="box")
    with pytest.raises(NotCancelled, match="the API says Crashed, and its process may live on box, which has not"):
        fleet.cancelling().order(fleet.run)


@pytest.mark.parametrize("no_wait", [True, False])
def test_of_many_runs_that_have_all_ended_meanwhile_none_is_called_cancelled(no_wait, capsys):
    fleet = Fleet(StateType.COMPLETED, "Completed", claimed=None)
    assert carry_out(fleet.cancelling(), [fleet.run] * 2, no_wait=no_wait) == 1
    assert fleet.said[-1] == "Nothing is cancelled: all of them had ended before."
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", [CancelHow.ASKED, CancelHow.OVER])
def test_nothing_is_signalled_while_the_api_has_given_no_definite_answer(how):
    fleet = Fleet()
    fleet.api.fail("cancel")
    with suppress(ApiUnavailable):
        fleet.cancelling(how).order(fleet.run)
    assert fleet.told is CancelHow.NONE


def test_an_unsure_answer_is_an_error_of_the_api_that_says_so():
    fleet = Fleet()
    fleet.api.fail("cancel")
    with pytest.raises(ApiUnavailable, match="no process was told"):
        fleet.cancelling().order(fleet.run)


@pytest.mark.parametrize(("kind", "name"), [(StateType.SCHEDULED, "AwaitingRetry"), (StateType.PAUSED, "Suspended")])
def test_where_the_api_makes_it_cancelled_at_once_a_process_that_exists_is_ended_all_the_same(kind, name):
    fleet = Fleet(kind, name)
    fleet.cancelling().order(fleet.run)
    assert (fleet.api.kind(fleet.run_id), fleet.told) == (StateType.CANCELLED, CancelHow.ASKED)


def test_the_process_of_a_run_that_has_ended_at_the_api_is_ended_on_demand_and_its_end_stands():
    fleet = Fleet(StateType.COMPLETED, "Completed")
    fleet.cancelling(CancelHow.OVER).order(fleet.run)
    assert (fleet.api.kind(fleet.run_id), fleet.told) == (StateType.COMPLETED, CancelHow.OVER)


@pytest.mark.parametrize(
    ("claimed", "words"),
    [
        (None, "the API says Completed.$"),
        (State.ENDED, "the API says Completed.$"),
        (State.RUNNING, "Completed, and its process on worker@box lives on: --now kills it.$"),
    ],
)
def test_a_run_that_has_ended_is_not_cancelled(claimed, words):
    fleet = Fleet(StateType.COMPLETED, "Completed", claimed)
    with pytest.raises(NotCancelled, match=words):
        fleet.cancelling().order(fleet.run)
    assert claimed is None or fleet.told is CancelHow.NONE


def test_a_waiting_run_with_the_mark_of_an_old_process_is_cancelled_and_does_not_hang_in_cancelling():
    fleet = Fleet(StateType.SCHEDULED, "Scheduled", None)
    fleet.api.be(fleet.run_id, StateType.SCHEDULED, "Scheduled", infrastructure="flowfleet:f:h:1")
    fleet.cancelling().order(fleet.run)
    assert fleet.api.kind(fleet.run_id) is StateType.CANCELLED


def test_a_run_that_somebody_else_runs_is_waited_for_with_a_word_on_whom():
    fleet = Fleet(claimed=None)
    cancelling = fleet.cancelling()
    ordered = cancelling.order(fleet.run)
    fleet.ends()
    cancelling.pause = fleet.pause
    ((_, state),) = cancelling.wait([ordered])
    assert state.kind is StateType.CANCELLED
    assert "no worker of this fleet holds calm-otter" in fleet.said[0]


@pytest.mark.parametrize(
    ("how", "launched", "kind"),
    [
        (CancelHow.OVER, True, StateType.CANCELLED),
        (CancelHow.ASKED, True, StateType.CANCELLING),
        (CancelHow.OVER, False, StateType.CANCELLING),
    ],
    ids=["now", "in order", "of somebody else"],
)
def test_a_run_of_this_fleet_that_the_ledger_does_not_know_is_cancelled_at_once_if_that_was_asked(how, launched, kind):
    fleet = Fleet(claimed=None)
    if launched:
        fleet.api.origins[fleet.run_id] = LaunchedClaim(claim="claim", call="call", worker="worker@box")
    fleet.cancelling(how).order(fleet.run)
    assert fleet.api.kind(fleet.run_id) is kind
    told = [(run, message) for run, _, message in fleet.api.reports]
    words = "Cancelled by u@h. No worker of its fleet held the run: its process may still run on box."
    assert told == ([(fleet.run_id, words)] if kind is StateType.CANCELLED else [])


def test_a_run_of_this_fleet_that_has_ended_is_not_told_as_cancelled_though_the_ledger_does_not_know_it():
    fleet = Fleet(StateType.COMPLETED, "Completed", claimed=None)
    fleet.api.origins[fleet.run_id] = LaunchedClaim(claim="claim", call="call")
    with pytest.raises(NotCancelled):
        fleet.cancelling(CancelHow.OVER).order(fleet.run)
    assert fleet.api.reports == []


def test_a_deleted_run_without_a_claim_is_not_there():
    fleet = Fleet(claimed=None)
    del fleet.api.runs[fleet.run_id]
    for order in (fleet.cancelling().order, fleet.requeueing().order):
        with pytest.raises(NoSuchRun):
            order(fleet.run)


# start again


@pytest.mark.parametrize("claimed", HELD)
def test_a_run_is_not_started_again_while_a_start_may_be_alive_whatever_the_api_says(claimed):
    fleet = Fleet(StateType.CRASHED, "Crashed", claimed)
    with pytest.raises(NotStartedAgain, match="box"):
        fleet.requeueing().order(fleet.run)
    assert fleet.api.kind(fleet.run_id) is StateType.CRASHED


@pytest.mark.parametrize("claimed", [State.CLAIMING, State.QUEUED, State.RETURNING])
def test_a_run_that_is_on_its_way_is_not_made_due_once_more(claimed):
    fleet = Fleet(StateType.PENDING, "Submitted", claimed)
    with pytest.raises(NotStartedAgain):
        fleet.requeueing().order(fleet.run)


def test_a_run_is_not_started_again_while_nobody_knows_what_its_workers_run():
    fleet = Fleet(StateType.CRASHED, "Crashed", None)
    fleet.world.gate.process = "redis-2"
    with pytest.raises(NotStartedAgain, match="gate"):
        fleet.requeueing().order(fleet.run)


def test_a_run_that_was_told_as_lost_is_not_started_again_while_its_process_may_live():
    fleet = Fleet(StateType.CRASHED, "Crashed", None)
    tomb = SimpleNamespace(run_id=fleet.run_id, host="box", worker="worker@box")
    fleet.claims.tomb_of[fleet.run_id] = tomb
    with pytest.raises(NotStartedAgain, match=r"may live on the host box: .* worker forget worker@box"):
        fleet.requeueing().order(fleet.run)
    assert fleet.api.kind(fleet.run_id) is StateType.CRASHED


def test_a_run_that_has_ended_is_due_and_the_poller_is_told():
    fleet = Fleet(StateType.CRASHED, "Crashed", None)
    fleet.requeueing().order(fleet.run)
    assert fleet.api.kind(fleet.run_id) is StateType.SCHEDULED
    assert fleet.hints == [("due", fleet.run_id)]
    fleet.claims.by_run[fleet.run_id] = a_claim(fleet.run_id, State.QUEUED)
    assert fleet.requeueing().wait(fleet.run) == "calm-otter is claimed anew."
    assert fleet.said == []


def test_a_claim_that_takes_longer_is_waited_for_with_a_word():
    fleet = Fleet(StateType.CRASHED, "Crashed", None)
    requeueing = fleet.requeueing()
    requeueing.order(fleet.run)
    at = fleet.world.time.now + 5.0

    def pause(seconds):
        fleet.world.time.now += seconds
        if fleet.world.time.now >= at:
            fleet.claims.by_run[fleet.run_id] = a_claim(fleet.run_id, State.QUEUED)

    requeueing.pause = pause
    assert requeueing.wait(fleet.run) == "calm-otter is claimed anew."
    assert fleet.said == ["calm-otter is due at the API: waiting up to 15 s for a poller to claim it"]


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (StateType.RUNNING, "Running", "no worker of this fleet holds it"),
        (StateType.PAUSED, "Suspended", "resume it"),
        (StateType.CANCELLING, "Cancelling", "the API says Cancelling"),
    ],
)
def test_a_run_that_another_executor_may_have_is_not_started_again(kind, name, words):
    fleet = Fleet(kind, name, None)
    with pytest.raises(NotStartedAgain, match=words):
        fleet.requeueing().order(fleet.run)


# which run is meant


def test_a_run_is_found_by_name_or_by_a_part_of_its_id_among_claims_records_and_at_the_api():
    fleet = Fleet()
    claim = fleet.claims.by_run[fleet.run_id]
    fleet.claims.records = lambda limit: [{"run_id": "abcd-1", "name": "old-owl"}]
    find = lambda given: chosen_run.find(given, fleet.ledger, fleet.api.find)  # noqa: E731
    assert find("calm-otter") == find(fleet.run_id[:9]) == find(fleet.run_id.upper()) == fleet.run
    assert find("old-owl") == find("ABCD") == ChosenRun("abcd-1", "old-owl")
    # ids that are made one after the other begin alike
    assert find(fleet.run_id[-8:]) == find(fleet.run_id[9:23]) == fleet.run
    waits = fleet.api.add(name="new-newt")
    assert find("new-newt").run_id == find(waits).run_id == waits
    assert find(waits[-8:]).run_id == waits
    # a name may be a part of another run's id, and is meant then
    named = fleet.api.add(name=fleet.run_id[-8:])
    assert find(fleet.run_id[-8:]).run_id == named
    fleet.claims.by_run["other"] = replace(claim, run_id="other")
    with pytest.raises(SettingsError, match="2 runs are named 'calm-otter'"):
        find("calm-otter")


NOBODY = "0" * 8 + "-0000-4000-8000-" + "0" * 12
CUT = "of the unfinished runs at the API only the 2,000 that are due first were looked at"


REMEDY = "give its whole id, as the Prefect UI shows it."


@pytest.mark.parametrize(
    ("given", "at_api", "sentence"),
    [
        ("nobody", FoundRuns(), "No run is named 'nobody': give its name or its id, as the Prefect UI shows them."),
        ("0A1B", FoundRuns(), f"No run is named '0A1B' or has it in its id: {REMEDY}"),
        ("0a1b", FoundRuns(cut_at=2000), f"No run is named '0a1b' or has it in its id ({CUT}): {REMEDY}"),
        ("0a1b", None, f"No run of this fleet is named '0a1b' or has it in its id: {REMEDY}"),
        (NOBODY, FoundRuns(), f"No run has the id {NOBODY}."),
        (NOBODY, None, f"No run of this fleet has the id {NOBODY}."),
    ],
)
def test_a_run_that_nobody_knows_is_told_with_what_was_looked_through(given, at_api, sentence):
    with pytest.raises(NoSuchRun) as error:
        chosen_run.find(given, Fleet().ledger, lambda given: at_api)
    assert str(error.value) == sentence


def test_a_search_that_was_cut_is_told_beside_the_run_that_it_has_found(capsys):
    fleet = Fleet(StateType.SCHEDULED, "Scheduled", None)
    here = {fleet.run_id: "calm-otter"}
    found = lambda given: FoundRuns(here, cut_at=2000)  # noqa: E731
    assert chosen_run.find(fleet.run_id[:8], fleet.ledger, found) == fleet.run
    assert capsys.readouterr().err == f"Others may have {fleet.run_id[:8]!r} in their id, too: {CUT}.\n"
    with pytest.raises(SettingsError, match=r"\(calm-otter\) has it, but others may have .* Give the whole id\."):
        chosen_run.find(fleet.run_id[:8], fleet.ledger, found, sure=True)
    assert chosen_run.find("calm-otter", fleet.ledger, found, sure=True) == fleet.run
    many = FoundRuns({str(number): "calm-otter" for number in range(20)}, cut_at=20)
    with pytest.raises(SettingsError, match=r"At least 20 runs are named 'calm-otter'.* and 15 more; give a whole id"):
        chosen_run.find("calm-otter", fleet.ledger, lambda given: many)
    assert chosen_run.find("calm-otter", fleet.ledger, lambda given: FoundRuns(here)) == fleet.run
    assert capsys.readouterr().err == ""


def test_what_this_hosts_files_know_is_found_without_the_api():
    fleet = Fleet()
    asked = []
    find = lambda given: chosen_run.find(  # noqa: E731
        given, fleet.ledger, asked.append, lambda: {"dddd-1": "dry-dingo"}
    )
    assert find("dry-dingo") == find("ddd-1") == ChosenRun("dddd-1", "dry-dingo")
    assert find("calm-otter") == find(fleet.run_id[-8:]) == fleet.run
    assert asked == []
    with pytest.raises(NoSuchRun, match="No run of this fleet is named 'nobody'"):
        find("nobody")
    assert asked == ["nobody"]


def test_an_api_that_cannot_be_asked_is_asked_once():
    def connect():
        raise ApiUnavailable("no answer")

    api = HalfApi(connect)
    assert api.find("calm-otter") is None
    api.connect = None
    assert api.ask(lambda client: client.ends.states([])) is None
    assert api.told("No run is named 'x'.") == "No run is named 'x'. The API could not be asked: no answer"


@pytest.mark.parametrize(("there", "looked_at", "cut_at"), [(399, 399, None), (2001, 2000, 2000), (0, 0, None)])
def test_unfinished_runs_are_looked_through_by_pages_of_200_and_2000_at_most(there, looked_at, cut_at):
    runs = {f"{number:04}-beef": f"run-{number}" for number in range(there)}
    sizes = []

    def listed(but, limit):
        sizes.append(limit)
        return dict([run for run in runs.items() if run[0] not in but][:limit])

    found = with_part("beef", listed)
    assert (len(found.names), found.cut_at) == (looked_at, cut_at)
    assert set(sizes) == {200}
    assert len(sizes) <= 10
    assert list(with_part("0007", listed).names) == list(runs)[7:8]


def test_who_asks_and_why_is_one_short_line_without_secrets():
    settings = CommonSettings(host="box")
    told = chosen_run.by_whom(settings, "the  input\nwas redis://:hunter2@box/0 " + "x" * 500)
    assert "@box: the input was redis://" in told
    assert "hunter2" not in told
    assert "\n" not in told
    assert len(told) == 200
    assert chosen_run.by_whom(settings, "").endswith("@box")


def test_the_double_answers_as_the_api_does():
    fleet = Fleet(StateType.SCHEDULED, "Scheduled", None)
    answer = fleet.api.cancel(fleet.run_id, "by u@h")
    assert answer == Answer(verdict=Verdict.ACCEPTED, state=fleet.api.runs[fleet.run_id])
