"""Launch: a deployer of somebody else that fails with an error of its own loses no run."""

from types import SimpleNamespace
from unittest.mock import Mock

from flowfleet.api.client import Answer, Job, Mark, RunState, StateType, Verdict
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.ledger.claims import Outcome, State
from tests.unit.memory_ledger import a_claim
from workers.runs.launch import API_RETRY, LEDGER_RETRY, Launch
from workers.shim import atomic_files
from workers.state.attempts import Attempts
from workers.state.run_folders import RunFolders


class EngineAway(Exception):
    """As the client library of another system raises it."""


def test_a_run_whose_deployer_fails_at_the_start_and_at_the_first_look_is_found_by_the_next(tmp_path):
    claim = a_claim()
    state = RunState(run_id=claim.run_id, run_name="r", kind=StateType.PENDING, name="Submitted", call=claim.call)
    found = SimpleNamespace(handle={"kind": "mine", "id": "pod-1"})

    def start(spec):
        atomic_files.create_once(spec.folder / "start", {"v": 1, "by": "mine"})
        raise EngineAway

    later, moved = Mock(), Outcome(moved=True, claim=claim)
    jobs = Mock(job=Mock(return_value=Job(state=state)))
    accepted = Mock(return_value=Answer(verdict=Verdict.ACCEPTED))
    launch = Launch(
        worker="w@h",
        nonce="n",
        mark=Mark(fleet="f"),
        claims=Mock(take=Mock(return_value=moved), start=Mock(return_value=moved)),
        api=Mock(jobs=jobs, address="", **{"claims.launching": accepted}),
        deployer=Mock(start=start, adopt=Mock(side_effect=[EngineAway, found])),
        start_specs=Mock(make=lambda _held, _job, folder, **_: SimpleNamespace(folder=folder.path)),
        attempts=Attempts(),
        ledger_view=Mock(lease=SimpleNamespace(ttl_seconds=20.0)),
        runs=RunFolders(tmp_path),
        to_ledger=later,
        failpoints=Failpoints(),
        **{name: Mock() for name in ("hand_back", "run_log", "to_api", "on_started", "on_failed")},
        ledger_retry=LEDGER_RETRY,
        api_retry=API_RETRY,
    )
    launch(Message(run_id=claim.run_id, claim=claim.claim, route=claim.route))
    later.post.call_args[0][0]()

    (attempt,) = launch.attempts.all()
    assert (attempt.held.state, attempt.started_run) == (State.RUNNING, found)
    launch.on_started.assert_called_once_with(attempt.key)
