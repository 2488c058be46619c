"""Cancelling: what a worker sees before it signals a cancelled run, and how it ends which command."""

from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import RunState, StateType
from flowfleet.errors import ApiRejected, ApiUnavailable
from flowfleet.ledger.claims import CancelAsked, CancelHow, State
from tests.unit.memory_ledger import a_claim
from workers.deployment import StopReason
from workers.runs.cancelling import Cancelling, cancel_of
from workers.shim import atomic_files
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders
from workers.stop import Stop

ASKED = CancelAsked(how=CancelHow.ASKED, why="Ann")
OVER = CancelAsked(how=CancelHow.OVER)


class World:
    """One running attempt, an API that says what `shown` is, and jobs that are done when `work` is called."""

    def __init__(self, folder, *, backend="prefect3", engine=True, shim=True, started=True):
        claim = a_claim(state=State.RUNNING)
        self.folder = RunFolders(folder).create(claim.run_id, claim.claim, {})
        if not engine:
            self.folder.note(engine=False)
        if shim:
            atomic_files.write_json(self.folder.path / "started.json", {"v": 1, "shim_started_at": 1.0})
        self.attempts = Attempts()
        self.key = f"{claim.run_id}.{claim.claim}"
        self.started_run = SimpleNamespace(handle={"kind": "process"})
        self.attempts.begin(Attempt(held=claim, folder=self.folder, started_run=self.started_run if started else None))
        self.shown, self.asked, self.stops, self.jobs = StateType.CANCELLING, 0, [], []
        self.cancelling = Cancelling(
            attempts=self.attempts,
            supervisor=SimpleNamespace(stop=self._stop),
            api=SimpleNamespace(traits=traits.of(backend), ends=SimpleNamespace(states=self._states)),
            to_api=SimpleNamespace(post=self.jobs.append),
            hit=lambda _name: None,
        )

    def _states(self, run_ids):
        self.asked += 1
        if isinstance(self.shown, Exception):
            raise self.shown
        if self.shown is None:
            return {}
        (run_id,) = run_ids
        return {run_id: RunState(run_id=run_id, run_name="n", kind=self.shown, name=self.shown.value.title())}

    def _stop(self, key, stop, *, written):
        del written
        assert (key, stop.reason) == (self.key, StopReason.CANCEL)
        self.most_grace = stop.most_grace
        self.stops.append(("kill" if stop.kill else "intent" if stop.intent else stop.patience, stop.why))

    def cancel(self, asked=ASKED):
        self.cancelling.cancelled(self.attempts.get(self.key), asked)

    def work(self):
        while self.jobs:
            self.jobs.pop(0)()

    def cancelled(self, asked=ASKED):
        self.cancel(asked)
        self.work()
        return [how for how, _ in self.stops]


def test_nothing_is_signalled_before_the_api_shows_that_the_run_is_being_cancelled(tmp_path):
    world = World(tmp_path)
    world.shown = StateType.RUNNING
    assert world.cancelled() == []
    world.shown = StateType.CANCELLING
    assert world.cancelled() == ["intent"]
    assert world.stops == [("intent", "Ann")]


@pytest.mark.parametrize("shown", [None, StateType.CANCELLED])
def test_a_run_that_is_over_at_the_api_is_killed(tmp_path, shown):
    world = World(tmp_path)
    world.shown = shown
    assert world.cancelled() == ["kill"]


def test_a_cancel_that_is_over_kills_without_a_question(tmp_path):
    world = World(tmp_path)
    assert world.cancelled(OVER) == ["kill"]
    assert world.asked == 0


@pytest.mark.parametrize("shown", [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED])
def test_a_run_with_another_end_is_left_to_finish(tmp_path, shown):
    world = World(tmp_path)
    world.shown = shown
    assert world.cancelled() == []


def test_a_second_cancel_in_a_hurry_kills_and_each_step_is_done_once(tmp_path):
    world = World(tmp_path)
    assert world.cancelled() == ["intent"]
    assert world.cancelled() == ["intent"]
    assert world.asked == 1, "a run that is being stopped is not asked about again"
    assert world.cancelled(OVER) == ["intent", "kill"]
    assert world.cancelled(OVER) == ["intent", "kill"]
    assert world.cancelled(ASKED) == ["intent", "kill"]


@pytest.mark.parametrize("kind", [{"backend": "prefect1"}, {"engine": False}, {"backend": "prefect1", "engine": False}])
def test_a_command_that_cancels_itself_has_its_time_also_where_it_has_said_cancelled(tmp_path, kind):
    world = World(tmp_path, **kind)
    assert world.cancelled() == [20.0]
    other = World(tmp_path / "other", **kind) if (tmp_path / "other").mkdir() is None else None
    other.shown = StateType.CANCELLED
    assert other.cancelled() == [20.0]


@pytest.mark.parametrize(
    ("kind", "most"), [({}, 240.0), ({"engine": False}, 220.0), ({"backend": "prefect1"}, 0.0)], ids=str
)
def test_the_own_grace_of_a_run_leaves_its_hooks_their_time_where_the_server_forces_the_end(tmp_path, kind, most):
    world = World(tmp_path, **kind)
    world.cancelled()
    assert world.most_grace == most


def test_who_has_asked_and_why_is_noted_also_when_it_comes_after_what_was_found_and_not_taken_back(tmp_path):
    world = World(tmp_path)
    for why, found, noted in (
        ("Cancelling at the Prefect API", True, "Cancelling at the Prefect API"),
        ("by Ann", False, "by Ann"),
        ("Cancelling at the Prefect API", True, "by Ann"),  # Redis has lost what Ann had said
    ):
        world.cancel(CancelAsked(how=CancelHow.ASKED, why=why, found=found))
        assert world.attempts.get(world.key).cancel.why == noted
    world.work()
    assert world.stops == [("intent", "by Ann")]


def test_a_run_without_a_shim_is_killed(tmp_path):
    assert World(tmp_path, shim=False).cancelled() == ["kill"]


@pytest.mark.parametrize("error", [ApiUnavailable("away"), ApiRejected("no")])
def test_an_api_that_does_not_answer_is_asked_again(tmp_path, error):
    world = World(tmp_path)
    world.shown = error
    world.cancel()
    job = world.jobs.pop(0)
    with pytest.raises(ApiUnavailable):
        job()
    world.cancel()
    assert world.jobs == [], "one question is enough, and it is repeated until it is answered"
    world.shown = StateType.CANCELLING
    job()
    assert world.stops == [("intent", "Ann")]


def test_a_fault_of_ours_while_the_api_is_asked_makes_no_run_deaf_to_its_cancel(tmp_path):
    world = World(tmp_path)
    world.shown = RuntimeError("a fault of ours")
    world.cancel()
    with pytest.raises(RuntimeError):
        world.work()
    world.shown = StateType.CANCELLING
    assert world.cancelled() == ["intent"], "the next renewal asks anew, though the job was dropped"


def test_a_cancel_before_the_process_is_acted_on_when_it_is_there(tmp_path):
    world = World(tmp_path, started=False)
    assert world.cancelled() == []
    assert world.attempts.get(world.key).cancelled
    world.attempts.change(world.key, started_run=world.started_run)
    world.cancelling.act(world.key)
    world.work()
    assert world.stops == [("intent", "Ann")]


@pytest.mark.parametrize(("kill", "how"), [(False, CancelHow.ASKED), (True, CancelHow.OVER)])
def test_a_cancel_that_the_worker_before_has_begun_goes_on_without_the_api(tmp_path, kill, how):
    world = World(tmp_path)
    world.folder.write_stop(Stop(reason=StopReason.CANCEL, kill=kill, intent=not kill, why="Ann"), "w@h")
    cancel = cancel_of(world.folder)
    assert (cancel.how, cancel.why) == (how, "Ann")
    world.cancelling.resume(world.attempts.change(world.key, cancel=cancel))
    assert world.stops == [("kill" if kill else "intent", "Ann")]
    assert world.asked == 0


def test_a_stop_for_another_reason_is_no_cancel(tmp_path):
    world = World(tmp_path)
    assert cancel_of(world.folder) is None
    world.folder.write_stop(Stop(reason=StopReason.TIMEOUT), "w@h")
    assert cancel_of(world.folder) is None
