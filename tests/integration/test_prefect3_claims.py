"""Claims at a real Prefect 3 server: who wins, what a repeat says, what is handed back, what an end may overwrite."""

import uuid
from dataclasses import replace
from datetime import datetime

import pytest

from flowfleet.api.client import Mark, StateType, Verdict
from flowfleet.api.life import LaunchedClaim, Silent, cut_off_name
from flowfleet.api.transport import session
from flowfleet.api.transport.reading import instant
from flowfleet.flow_run import claim_id
from tests.integration.claiming import ago, race
from tests.integration.one_pool import MARK


@pytest.fixture
def deployment(pool):
    return pool.deployment()


def new_call() -> str:
    return str(uuid.uuid4())


def test_a_claim_is_submitted_and_says_whose_it_is(pool, deployment):
    run = pool.scheduled(deployment, ago(5))
    call = pool.claimed(run)
    state = pool.state(run)
    assert (state["type"], state["name"]) == ("PENDING", "Submitted")
    assert state["message"].startswith("flowfleet test ")
    assert state["state_details"]["transition_id"] == call


def test_two_claimers_of_one_run_have_one_winner(pool, deployment):
    for _ in range(8):
        run_id = pool.scheduled(deployment, ago(1))
        (run,) = pool.due()
        verdicts = race(pool.another_client, run)
        assert sorted(verdicts.values()) == ["accepted", "refused"]
        winner = next(call for call in verdicts if verdicts[call] is Verdict.ACCEPTED)
        assert pool.state(run_id)["state_details"]["transition_id"] == winner
        assert pool.history(run_id).count("Submitted") == 1


def test_a_batch_is_claimed_in_one_call_and_its_repeat_is_ours(pool, deployment):
    for _ in range(10):
        pool.scheduled(deployment, ago(2))
    runs, call = pool.due(), new_call()
    first = pool.client.claims.claim(runs, call, MARK)
    again = pool.client.claims.claim(runs, call, MARK)
    other = pool.another_client().claims.claim(runs, new_call(), MARK)
    assert len(first) == 10
    assert {answer.verdict for answer in first.values()} == {Verdict.ACCEPTED}
    assert {answer.verdict for answer in again.values()} == {Verdict.ACCEPTED}
    assert {answer.verdict for answer in other.values()} == {Verdict.REFUSED}
    assert pool.history(runs[0].run_id).count("Submitted") == 1


def test_settle_knows_its_own_call_before_and_after_the_launch(pool, deployment):
    run, call = pool.taken(deployment)
    assert pool.client.claims.settle(run, call).verdict is Verdict.ACCEPTED
    assert pool.client.claims.settle(run, new_call()).verdict is Verdict.REFUSED
    pool.client.claims.launching(run, call, claim_id(call, run), MARK)
    assert pool.client.claims.settle(run, call).verdict is Verdict.ACCEPTED
    assert pool.client.claims.settle(new_call(), call).gone


@pytest.mark.parametrize(
    ("kind", "put_off"),
    # plain set_state would take the first: Prefect 3 accepts Pending on a Crashed run
    [pytest.param("CRASHED", False, id="it ended"), pytest.param("SCHEDULED", True, id="it was moved to later")],
)
def test_a_run_that_has_changed_since_it_was_listed_is_not_claimed(pool, deployment, kind, put_off):
    pool.scheduled(deployment, ago(2))
    (run,) = pool.due()
    pool.set_state(run.run_id, kind, **({"scheduled_time": ago(-3600).isoformat()} if put_off else {}))
    assert pool.client.claims.claim([run], new_call(), MARK)[run.run_id].verdict is Verdict.REFUSED
    assert pool.state(run.run_id)["type"] == kind


def test_a_deleted_run_is_gone_for_every_method(pool, deployment):
    pool.scheduled(deployment, ago(2))
    (run,) = pool.due()
    call = pool.claimed(run.run_id)
    pool.call("DELETE", f"/flow_runs/{run.run_id}")
    client, run_id = pool.client, run.run_id
    answers = [
        client.claims.claim([run], new_call(), MARK)[run_id],
        client.claims.settle(run_id, call),
        client.claims.launching(run_id, call, claim_id(call, run_id), MARK),
        client.ends.hand_back(run_id, call, run.due, MARK, "drill"),
        client.ends.report(run_id, StateType.CRASHED, "it ended", MARK),
    ]
    assert [(answer.verdict, answer.gone) for answer in answers] == [(Verdict.REFUSED, True)] * 5
    assert client.ends.states([run_id]) == {}


def test_launching_is_won_once(pool, deployment):
    run, call = pool.taken(deployment)
    claim = claim_id(call, run)
    launched = pool.client.claims.launching(run, call, claim, MARK)
    repeated = pool.client.claims.launching(run, call, claim, MARK)
    foreign = pool.another_client().claims.launching(run, call, new_call(), MARK)
    assert [answer.verdict for answer in (launched, repeated, foreign)] == ["accepted", "accepted", "refused"]
    assert foreign.state is not None
    assert foreign.state.name == "Launching"
    assert pool.history(run).count("Launching") == 1


def test_launching_is_refused_on_what_is_not_ours(pool, deployment):
    """Plain set_state takes Launching on a Scheduled and on a Crashed run."""
    ours, foreign, crashed = (pool.scheduled(deployment, ago(2)) for _ in range(3))
    call = pool.claimed(foreign)
    pool.set_state(crashed, "CRASHED")
    for run in (ours, foreign, crashed):
        other = new_call()
        assert pool.client.claims.launching(run, other, claim_id(other, run), MARK).verdict is Verdict.REFUSED
    assert pool.state(foreign)["state_details"]["transition_id"] == call
    assert pool.state(crashed)["type"] == "CRASHED"


def test_launching_right_after_the_job_was_read_needs_no_second_reading(pool, deployment):
    """The fence is the server's filter; a handed-back run is refused even so."""
    run, call = pool.taken(deployment)
    pool.client.jobs.job(run)
    pool.another_client().ends.hand_back(run, call, ago(2), MARK, "drill")
    assert pool.client.claims.launching(run, call, claim_id(call, run), MARK).verdict is Verdict.REFUSED
    assert pool.state(run)["type"] == "SCHEDULED"


@pytest.mark.parametrize("launched", [False, True])
def test_hand_back_keeps_the_time_and_clears_the_mark(pool, deployment, launched):
    due = datetime.fromisoformat("2026-01-02T03:04:05.123456+00:00")
    run = pool.scheduled(deployment, due)
    call = pool.claimed(run)
    if launched:
        pool.client.claims.launching(run, call, claim_id(call, run), MARK)
        pool.client.claims.started(run, MARK, 4711)
        assert pool.run(run)["infrastructure_pid"] == "flowfleet:test:worker@here:4711"
    for _ in range(2):  # a repeat is as good as the first
        answer = pool.client.ends.hand_back(run, call, due, MARK, "drill", never_began=launched)
        assert answer.verdict is Verdict.ACCEPTED
    after = pool.run(run)
    assert after["state_type"] == "SCHEDULED"
    assert instant(after["next_scheduled_start_time"]) == due
    assert after["infrastructure_pid"] is None
    assert [found.run_id for found in pool.due()] == [run], "it is handed out again"
    pool.claimed(run)


def test_a_launching_run_goes_back_only_with_the_proof_that_it_never_began(pool, deployment):
    """A ledger that has lost writes shows a started run as queued; its hand-back would start it twice."""
    run, call = pool.taken(deployment)
    pool.client.claims.launching(run, call, claim_id(call, run), MARK)
    assert pool.client.ends.hand_back(run, call, ago(2), MARK, "drill").verdict is Verdict.REFUSED
    assert pool.state(run)["name"] == "Launching"
    assert pool.client.ends.hand_back(run, call, ago(2), MARK, "drill", never_began=True).verdict is Verdict.ACCEPTED


def test_hand_back_takes_the_time_of_the_claimed_state_not_of_the_first_plan(pool, deployment):
    run = pool.scheduled(deployment, ago(3600))
    moved = ago(30)
    pool.set_state(run, "SCHEDULED", scheduled_time=moved.isoformat())
    call = pool.claimed(run)
    pool.client.ends.hand_back(run, call, ago(3600), MARK, "drill")
    assert instant(pool.run(run)["next_scheduled_start_time"]) == moved


def test_hand_back_leaves_alone_what_is_not_ours_any_more(pool, deployment):
    """A late hand-back by plain set_state would run a finished run again."""
    runs = [pool.scheduled(deployment, ago(2)) for _ in range(3)]
    calls = [pool.claimed(run) for run in runs]
    running, crashed, foreign = runs
    pool.set_state(running, "RUNNING")
    pool.set_state(crashed, "CRASHED")
    pool.client.ends.hand_back(foreign, calls[2], ago(2), MARK, "drill")
    theirs = pool.claimed(foreign)
    for run, call in zip(runs, calls, strict=True):
        assert pool.client.ends.hand_back(run, call, ago(2), MARK, "drill").verdict is Verdict.REFUSED
    assert pool.state(running)["type"] == "RUNNING"
    assert pool.state(crashed)["type"] == "CRASHED"
    assert pool.state(foreign)["state_details"]["transition_id"] == theirs


@pytest.mark.parametrize("write", ["launching", "hand_back", "report"])
def test_what_changes_between_our_look_and_our_write_is_left_as_it_is(pool, deployment, monkeypatch, write):
    """Only the filter of the write itself can see this."""
    run, call = pool.taken(deployment)
    writes = pool.client.claims
    bulk = writes.fence.bulk

    def meddle(*args, **how):
        pool.set_state(run, "RUNNING" if write == "hand_back" else "CRASHED")
        if write == "report":
            pool.set_state(run, "SCHEDULED", "AwaitingRetry")  # a user's "retry"
        return bulk(*args, **how)

    monkeypatch.setattr(writes.fence, "bulk", meddle)
    if write == "launching":
        answer = pool.client.claims.launching(run, call, claim_id(call, run), MARK)
    elif write == "hand_back":
        answer = pool.client.ends.hand_back(run, call, ago(2), MARK, "drill")
    else:
        answer = pool.client.ends.report(run, StateType.CRASHED, "it exited with code 1", MARK)
    assert answer.verdict is Verdict.REFUSED
    stands = {"launching": "Crashed", "hand_back": "Running", "report": "AwaitingRetry"}
    assert pool.state(run)["name"] == stands[write]


@pytest.mark.parametrize(("stands", "end"), [("RUNNING", StateType.CRASHED), ("CANCELLING", StateType.CANCELLED)])
def test_an_end_is_accepted_once_and_overwrites_no_other(pool, deployment, stands, end):
    run, _ = pool.taken(deployment)
    pool.set_state(run, stands)
    first = pool.client.ends.report(run, end, "it exited with code 3", MARK)
    again = pool.client.ends.report(run, end, "it exited with code 3", MARK)
    other = pool.client.ends.report(run, StateType.FAILED, "something else", MARK)
    assert [answer.verdict for answer in (first, again, other)] == ["accepted", "accepted", "refused"]
    state = pool.state(run)
    assert (state["name"], state["message"]) == (end.title(), "it exited with code 3")


def test_a_completed_run_stays_completed(pool, deployment):
    run, _ = pool.taken(deployment)
    pool.set_state(run, "RUNNING")
    pool.set_state(run, "COMPLETED")
    answer = pool.client.ends.report(run, StateType.CRASHED, "it exited with code 3", MARK)
    assert answer.verdict is Verdict.REFUSED
    assert answer.state is not None
    assert answer.state.kind is StateType.COMPLETED
    assert pool.state(run)["type"] == "COMPLETED"


def test_an_end_of_a_run_that_waits_to_start_anew_is_refused(pool, deployment):
    """It was rescheduled; Prefect 3 itself would take Crashed here and the run would never start again."""
    run = pool.scheduled(deployment, ago(2))
    assert pool.client.ends.report(run, StateType.CRASHED, "late news", MARK).verdict is Verdict.REFUSED
    assert pool.state(run)["type"] == "SCHEDULED"


@pytest.mark.parametrize("begun", [True, False], ids=["it ran", "its engine was just starting"])
def test_a_run_whose_processes_are_gone_runs_again_and_can_be_cancelled_at_once(pool, deployment, begun):
    run, call = pool.taken(deployment)
    pool.client.claims.started(run, MARK, 12)
    if begun:
        pool.set_state(run, "RUNNING")
    for _ in range(2):  # the answer to the first try was lost
        answer = pool.client.ends.run_again(run, claim_id(call, run), "the run is started again", MARK)
        assert answer.verdict is Verdict.ACCEPTED
    assert pool.state(run)["name"] == "Scheduled"
    assert run in [item.run_id for item in pool.due()]
    assert pool.client.ends.states([run])[run].infrastructure is None


@pytest.mark.parametrize("states", [["COMPLETED"], ["CRASHED"], ["CANCELLING"], ["CANCELLED"]])
def test_a_run_that_has_ended_or_is_to_end_does_not_run_again(pool, deployment, states):
    run, call = pool.taken(deployment)
    for state in ("RUNNING", *states):
        pool.set_state(run, state)
    answer = pool.client.ends.run_again(run, claim_id(call, run), "the run is started again", MARK)
    assert answer.verdict is Verdict.REFUSED
    assert pool.state(run)["type"] == states[-1]


@pytest.mark.parametrize("again", ["RUNNING", "PENDING"])
@pytest.mark.parametrize("write", ["report", "run_again"])
def test_nothing_is_written_over_a_run_that_somebody_else_has_claimed_since(pool, deployment, write, again):
    run, call = pool.taken(deployment)
    for state in ("RUNNING", "CRASHED", "SCHEDULED", "PENDING", again)[: 4 if again == "PENDING" else 5]:
        pool.set_state(run, state)
    ends, claim = pool.client.ends, claim_id(call, run)
    for _ in range(2):
        if write == "report":
            answer = ends.report(run, StateType.CRASHED, "it exited with code 3", MARK, claim=claim)
        else:
            answer = ends.run_again(run, claim, "the run is started again", MARK)
        assert (answer.verdict, answer.claimed_since) == (Verdict.REFUSED, True)
    assert pool.state(run)["type"] == again


def test_what_an_engine_writes_before_and_after_its_start_is_no_claim_of_somebody_else(pool, deployment):
    """A command of Prefect's own writes a second Pending; a retry within the process and a forced state none."""
    run, call = pool.taken(deployment)
    claim = claim_id(call, run)
    assert pool.client.claims.launching(run, call, claim, MARK).verdict is Verdict.ACCEPTED
    assert pool.set_state(run, "PENDING", "Submitting")["status"] == "ACCEPT"
    for state in ("RUNNING", "SCHEDULED", "RUNNING", "CRASHED", "RUNNING"):
        pool.set_state(run, state)
    answer = pool.client.ends.report(run, StateType.CRASHED, "it exited with code 3", MARK, claim=claim)
    assert answer.verdict is Verdict.ACCEPTED


def test_a_retry_inside_the_process_is_held_and_can_be_ended(pool, deployment):
    """The server hands such a run to nobody, so with its process gone it would wait for ever."""
    run, _ = pool.taken(deployment)
    policy = {"retries": 3, "retry_delay": 60}
    pool.call("PATCH", f"/flow_runs/{run}", {"empirical_policy": policy})
    pool.set_state(run, "RUNNING")
    pool.set_state(run, "FAILED")
    state = pool.client.ends.states([run])[run]
    assert (state.kind, state.name, state.held) == (StateType.SCHEDULED, "AwaitingRetry", True)
    assert pool.due(within=3600) == []
    assert pool.client.ends.report(run, StateType.CRASHED, "was killed by SIGKILL", MARK).verdict is Verdict.ACCEPTED
    assert pool.state(run)["type"] == "CRASHED"


@pytest.mark.parametrize("where", ["its retry waits", "it retries", "it pauses"])
def test_a_run_that_only_its_process_can_bring_on_runs_again_when_that_is_gone(pool, deployment, where):
    """The server hands nobody a run whose retry it holds for that process, nor one that is paused in it."""
    run, call = pool.taken(deployment)
    delay = 60 if where == "its retry waits" else 0
    pool.call("PATCH", f"/flow_runs/{run}", {"empirical_policy": {"retries": 3, "retry_delay": delay}})
    pool.set_state(run, "RUNNING")
    pool.set_state(run, "FAILED")
    if where != "its retry waits":
        # its pause is known to its policy, too
        assert pool.set_state(run, "RUNNING", "Retrying")["status"] == "ACCEPT"
        pool.set_state(run, "PAUSED", pause_timeout=ago(-600).isoformat(), pause_key="k")
    if where == "it retries":
        assert pool.set_state(run, "RUNNING")["status"] == "ACCEPT"
    assert pool.due(within=3600) == []
    answer = pool.client.ends.run_again(run, claim_id(call, run), "the run is started again", MARK)
    assert answer.verdict is Verdict.ACCEPTED
    assert [found.run_id for found in pool.due()] == [run]
    policy = pool.run(run)["empirical_policy"]
    assert (policy["retries"], policy["retry_type"]) == (3, "reschedule" if where == "it pauses" else None)
    assert policy["pause_keys"] == (["k"] if where == "it retries" else [])


@pytest.mark.parametrize(("leaves_its_process", "verdict"), [(False, Verdict.ACCEPTED), (True, Verdict.REFUSED)])
def test_a_paused_run_is_ended_only_if_it_waits_inside_its_process(pool, deployment, leaves_its_process, verdict):
    """A suspended one has left its process on purpose and comes back as a Scheduled run."""
    mark = Mark(fleet=f"fleet-{uuid.uuid4().hex[:6]}", worker="w@one")
    run, _ = pool.taken(deployment)
    pool.set_state(run, "RUNNING")
    pool.client.claims.started(run, mark, 12)
    later = ago(-600).isoformat()
    details = {"pause_timeout": later, "pause_key": "k", "pause_reschedule": leaves_its_process}
    assert pool.set_state(run, "PAUSED", **details)["status"] == "ACCEPT"
    assert pool.client.ends.states([run])[run].held is not leaves_its_process
    assert [item.state.run_id for item in pool.client.unfinished(mark)] == ([] if leaves_its_process else [run])
    assert pool.client.ends.report(run, StateType.CRASHED, "was killed by SIGKILL", MARK).verdict is verdict
    assert pool.state(run)["type"] == ("PAUSED" if leaves_its_process else "CRASHED")


def test_a_deployment_limit_refuses_the_second_claim(pool):
    deployment = pool.deployment(concurrency_limit=1)
    first, second = (pool.scheduled(deployment, ago(2)) for _ in range(2))
    runs = {run.run_id: run for run in pool.due()}
    answers = pool.client.claims.claim([runs[first], runs[second]], new_call(), MARK)
    assert sorted(answer.verdict for answer in answers.values()) == ["accepted", "refused"]
    loser = next(run for run in (first, second) if answers[run].verdict is Verdict.REFUSED)
    assert pool.state(loser)["name"] == "AwaitingConcurrencySlot"


def test_the_sweep_finds_what_is_ours_and_nothing_else(pool, deployment):
    mark = Mark(fleet=f"fleet-{uuid.uuid4().hex[:6]}", worker="w@one")
    neighbour = Mark(fleet=mark.fleet + "-2", worker="w@two")
    submitted, launched, running, ended, theirs, waiting = (pool.scheduled(deployment, ago(9)) for _ in range(6))
    runs = {run.run_id: run for run in pool.due()}
    for run, owner in ((submitted, mark), (launched, mark), (running, mark), (ended, mark), (theirs, neighbour)):
        call = new_call()
        pool.client.claims.claim([runs[run]], call, owner)
        if run in (launched, running, ended):
            pool.client.claims.launching(run, call, claim_id(call, run), owner)
    pool.client.claims.started(running, mark, 12)
    pool.client.claims.started(ended, mark, 13)
    pool.set_state(running, "RUNNING")  # the engine's own state has no message of ours
    pool.set_state(ended, "RUNNING")
    pool.set_state(ended, "COMPLETED")
    found = {item.state.run_id: item for item in pool.client.unfinished(mark)}
    assert set(found) == {submitted, launched, running}
    assert waiting not in found
    assert found[running].worker == "w@one"
    assert found[submitted].worker is None
    assert str(found[submitted].route) == str(runs[submitted].route)
    assert found[submitted].due == runs[submitted].due


def test_a_run_that_another_fleet_claimed_in_its_second_life_is_not_ours_by_its_old_mark(pool, deployment):
    """The server never clears the mark: by it alone a sweep would take the other fleet's claim away."""
    mark = Mark(fleet=f"fleet-{uuid.uuid4().hex[:6]}", worker="w@one")
    neighbour = Mark(fleet=mark.fleet + "-2")
    run = pool.scheduled(deployment, ago(9))
    pool.client.claims.started(run, mark, 12)
    pool.client.claims.claim(pool.due(), new_call(), neighbour)

    assert pool.client.unfinished(mark) == []
    assert [item.state.run_id for item in pool.client.unfinished(neighbour)] == [run]


def test_the_history_of_a_run_tells_under_which_claim_and_on_which_worker_it_was_launched(pool, deployment):
    run, call = pool.taken(deployment)
    life, claims, claim = pool.client.life, pool.client.claims, claim_id(call, run)
    assert life.origin(run, MARK.fleet) is None, "nothing has been launched yet"
    claims.launching(run, call, claim, MARK)
    launched = LaunchedClaim(claim=claim, call=call, worker=MARK.worker)
    for state, name in (("PENDING", "Submitting"), *((kind, None) for kind in ("RUNNING", "SCHEDULED", "RUNNING"))):
        assert life.origin(run, MARK.fleet) == launched
        assert pool.set_state(run, state, name)["status"] == "ACCEPT"
    pool.set_state(run, "CANCELLING")
    assert life.origin(run, MARK.fleet) == launched
    assert life.origin(run, MARK.fleet + "-2") is None
    pool.set_state(run, "CANCELLED")
    assert life.origin(run, MARK.fleet) is None


@pytest.mark.parametrize("whose", ["a stock worker", "another fleet"])
def test_a_run_that_somebody_else_runs_in_its_second_life_has_no_claim_of_ours(pool, deployment, whose):
    """Our mark of its first life stays, so the sweep finds it while it runs."""
    neighbour = Mark(fleet=MARK.fleet + "-2", worker="w@two")
    run, call = pool.taken(deployment)
    pool.client.claims.launching(run, call, claim_id(call, run), MARK)
    pool.client.claims.started(run, MARK, 12)
    for state in ("RUNNING", "CRASHED", "SCHEDULED"):
        pool.set_state(run, state)
    if whose == "another fleet":
        call, theirs = new_call(), pool.another_client().claims
        theirs.claim([one for one in pool.due() if one.run_id == run], call, neighbour)
        assert theirs.launching(run, call, claim_id(call, run), neighbour).verdict is Verdict.ACCEPTED
    else:
        pool.set_state(run, "PENDING", "Submitting")
    pool.set_state(run, "RUNNING")

    assert run in {item.state.run_id for item in pool.client.unfinished(MARK)}
    assert pool.client.life.origin(run, MARK.fleet) is None
    found = pool.client.life.origin(run, neighbour.fleet)
    assert (found and found.worker) == ("w@two" if whose == "another fleet" else None)


def test_a_worker_that_is_cut_off_is_found_by_the_pool_of_its_run_when_redis_has_lost_its_row(pool, deployment):
    run, _ = pool.taken(deployment)
    pool.client.presence.online(pool.name, cut_off_name("f", "w@one"), 30)
    (pool_id,) = pool.offer.pool_ids
    silent = Silent(run_id=run, worker="w@one", pool_id=pool_id)

    assert set(pool.client.life.signs([silent], "f")) == {run}
    assert pool.client.life.signs([replace(silent, worker="w@two")], "f") == {}


def test_the_sweep_reads_all_pages(pool, deployment, monkeypatch):
    monkeypatch.setattr("flowfleet.api.prefect3.client._PAGE", 2)
    mark = Mark(fleet=f"fleet-{uuid.uuid4().hex[:6]}")
    wanted = {pool.scheduled(deployment, ago(9)) for _ in range(5)}
    pool.client.claims.claim(pool.due(), new_call(), mark)
    assert {item.state.run_id for item in pool.client.unfinished(mark)} == wanted


def test_a_server_that_is_frozen_leaves_the_claim_unsure_and_a_repeat_settles_it(pool, deployment, prefect_server):
    pool.scheduled(deployment, ago(2))
    (run,) = pool.due()
    call = new_call()
    hasty = pool.another_client()
    prefect_server.pause()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "BULK_TIMES", 0.5 / session.READ_SECONDS)
            answer = hasty.claims.claim([run], call, MARK)[run.run_id]
    finally:
        prefect_server.resume()
    assert answer.verdict is Verdict.UNSURE
    assert pool.client.claims.claim([run], call, MARK)[run.run_id].verdict is Verdict.ACCEPTED
    assert pool.history(run.run_id).count("Submitted") == 1


def test_due_within_seconds_reaches_into_the_future(pool, deployment):
    due = ago(-30)
    later = pool.scheduled(deployment, due)
    assert pool.due(within=5) == []
    (run,) = pool.due(within=60)
    assert (run.run_id, run.due) == (later, due)
    answer = pool.client.claims.claim([run], new_call(), MARK)[later]
    assert answer.verdict is Verdict.ACCEPTED, "a run may be claimed a little ahead"
