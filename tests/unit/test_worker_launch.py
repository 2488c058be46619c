"""Launch: a deployer of somebody else that fails with an error of its own loses no run."""

from types import SimpleNamespace
from unittest.mock import Mock

from flowfleet.api.client import Answer, Job, Mark, RunState, StateType, Verdict
from flowfleet.errors import ApiUnavailable, UserCodeFailed
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.ledger.claims import Outcome, State
from tests.unit.memory_ledger import a_claim
from workers.runs.launch import Launch
from workers.runs.launch_waits import API_RETRY, LEDGER_RETRY
from workers.runs.leases import Leases
from workers.shim import atomic_files
from workers.state.attempts import Attempts
from workers.state.run_folders import RunFolders


class EngineAway(Exception):
    """As the client library of another system raises it."""


def launch_with(folder, start, **given):
    """A launch of one claim by a deployer with this `start`; and the claim."""
    claim = a_claim()
    state = RunState(run_id=claim.run_id, run_name="r", kind=StateType.PENDING, name="Submitted", call=claim.call)
    moved = Mock(return_value=Outcome(moved=True, claim=claim))
    accepted = Mock(return_value=Answer(verdict=Verdict.ACCEPTED))
    attempts = Attempts()
    launch = Launch(
        worker="w@h",
        nonce="n",
        mark=Mark(fleet="f"),
        claims=Mock(take=moved, start=moved),
        api=Mock(jobs=Mock(job=Mock(return_value=Job(state=state))), address="", **{"claims.launching": accepted}),
        deployer=Mock(start=start, **given),
        start_specs=Mock(make=lambda _held, _job, folder, **_: SimpleNamespace(folder=folder.path, switch=False)),
        attempts=attempts,
        leases=Leases(attempts=attempts, ledger_view=Mock(lease=SimpleNamespace(ttl_seconds=20.0))),
        runs=RunFolders(folder),
        failpoints=Failpoints(),
        **{
            name: Mock()
            for name in ("hand_back", "run_log", "to_ledger", "to_api", "on_started", "on_failed", "on_cancelled")
        },
        ledger_retry=LEDGER_RETRY,
        api_retry=API_RETRY,
    )
    launch(Message(run_id=claim.run_id, claim=claim.claim, route=claim.route))
    return launch


def test_a_run_whose_deployer_fails_at_the_start_and_at_the_first_look_is_found_by_the_next(tmp_path):
    found = SimpleNamespace(handle={"kind": "mine", "id": "pod-1"})

    def start(spec):
        atomic_files.create_once(spec.folder / "start", {"v": 1, "by": "mine"})
        raise EngineAway

    launch = launch_with(tmp_path, start, adopt=Mock(side_effect=[EngineAway, found]))
    launch.to_ledger.post.call_args[0][0]()

    (attempt,) = launch.attempts.all()
    assert (attempt.held.state, attempt.started_run) == (State.RUNNING, found)
    launch.on_started.assert_called_once_with(attempt.key)


def test_a_run_whose_deployer_gets_no_answer_of_the_api_before_it_began_is_handed_back(tmp_path):
    launch = launch_with(tmp_path, Mock(side_effect=ApiUnavailable("nobody answers")))
    (attempt, why), _ = launch.hand_back.give.call_args
    assert (attempt.started_run, why) == (None, "w@h could not deploy it: nobody answers")
    launch.on_failed.assert_not_called()


def test_what_user_code_has_raised_is_kept_as_it_is(tmp_path):
    launch = launch_with(tmp_path, Mock(side_effect=UserCodeFailed("X happened. ")))
    ((attempt,), _) = launch.on_failed.call_args
    assert (attempt.exit.error, attempt.exit.own_words) == ("X happened. ", True)
    assert attempt.folder.exit() == attempt.exit
