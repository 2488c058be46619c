"""Two who write to one run at a Prefect 1 API at once: no word is lost, and nobody starts what another has begun."""

import uuid
from datetime import datetime

import pytest

from flowfleet.api.client import LogLine, Mark, StateType, Verdict
from flowfleet.api.transport.reading import instant
from flowfleet.flow_run import claim_id
from tests.integration.claiming import ago
from tests.integration.one_server import MARK, since

# a claim and somebody else's word at the same moment


@pytest.mark.parametrize("kind", ["Cancelled", "Submitted", "Running"])
def test_a_claim_yields_to_what_came_at_the_same_moment(loose, kind):
    run, call = loose.taken()
    loose.api.tie(run.run_id, kind, "at the same moment")

    loose.api.writer.forget_submitted()

    assert loose.client.jobs.job(run.run_id).state.call is None
    assert loose.client.claims.launching(run.run_id, call, claim_id(call, run.run_id), MARK).verdict is Verdict.REFUSED
    assert loose.hand_back(run, call).verdict is Verdict.REFUSED
    assert loose.api.state(run.run_id) == kind


@pytest.mark.parametrize("kind", ["Submitted", "Running"])
def test_a_claim_over_another_agents_claim_yields_to_it(loose, kind):
    run = loose.listed(loose.scheduled())

    def theirs() -> None:
        loose.api.write(run.run_id, "Submitted", "by another agent")
        if kind == "Running":
            loose.api.write(run.run_id, "Running", "by another agent")

    loose.meanwhile("set_flow_run_states", theirs)
    call = loose.claimed(run)
    loose.api.writer.forget_submitted()

    assert loose.client.claims.settle(run.run_id, call).verdict is Verdict.REFUSED
    assert (loose.api.state(run.run_id), loose.api.states(run.run_id)[-1]["message"]) == (kind, "by another agent")


def test_of_two_fleets_the_later_claim_yields_where_the_server_remembers_nothing(loose):
    loose.api.faults.submitted_seconds = 0.0
    other, theirs = loose.another_client(), Mark(fleet="other")
    run = loose.listed(loose.scheduled())
    other.backlog.due([loose.offer("x")], within_seconds=60, limit=10)
    first = str(uuid.uuid4())

    assert other.claims.claim([run], first, theirs)[run.run_id].verdict is Verdict.ACCEPTED
    assert other.claims.launching(run.run_id, first, "", theirs).verdict is Verdict.ACCEPTED
    second = loose.claimed(run)

    assert loose.client.jobs.job(run.run_id).state.call == first
    assert loose.client.claims.launching(run.run_id, second, "", MARK).verdict is Verdict.REFUSED
    assert other.claims.settle(run.run_id, first).verdict is Verdict.ACCEPTED


def test_a_repeated_claim_does_not_yield_to_itself(loose):
    run, call = loose.taken()
    row = loose.api.states(run.run_id)[-1]
    loose.api.writer.put("flow_run", run.run_id, row)
    assert loose.client.claims.settle(run.run_id, call).verdict is Verdict.ACCEPTED


# an end, or a hand-back, and somebody else's word


@pytest.mark.parametrize("when", ["right before ours", "at the same moment"])
@pytest.mark.parametrize("end", ["Success", "Cancelled"])
def test_an_end_that_comes_while_we_write_ours_is_put_back(loose, end, when):
    run, _ = loose.taken()
    loose.api.write(run.run_id, "Running")
    if when == "right before ours":
        loose.meanwhile("set_flow_run_states", lambda: loose.api.write(run.run_id, end, "its own"))
    else:
        loose.meanwhile("set_flow_run_states", lambda: loose.api.tie(run.run_id, end, "its own"), after=True)

    assert loose.report(run).verdict is Verdict.REFUSED
    assert loose.api.states(run.run_id)[-1]["message"] == "its own"
    assert loose.api.state(run.run_id) == end


def test_a_run_that_another_agent_takes_while_it_is_failed_by_hand_is_left_to_it(loose):
    run_id = loose.scheduled()
    loose.meanwhile("set_flow_run_states", lambda: loose.api.write(run_id, "Submitted", "theirs"))
    assert loose.client.ends.fail_waiting(run_id, "not wanted", MARK).verdict is Verdict.REFUSED
    assert (loose.api.state(run_id), loose.api.states(run_id)[-1]["message"]) == ("Submitted", "theirs")


@pytest.mark.parametrize(
    ("kind", "message"), [("Running", "theirs"), ("Submitted", "theirs"), ("Cancelled", "Flow run is cancelled.")]
)
def test_a_hand_back_does_not_cover_an_engine_an_agent_or_a_cancel_that_came_meanwhile(loose, kind, message):
    run, call = loose.taken()
    loose.api.writer.forget_submitted()

    def theirs():
        if kind == "Cancelled":
            loose.api.cancel(run.run_id)
        else:
            loose.api.write(run.run_id, kind, message)

    loose.meanwhile("set_flow_run_states", theirs)

    assert loose.hand_back(run, call).verdict is Verdict.REFUSED
    assert loose.api.state(run.run_id) == kind
    assert loose.api.states(run.run_id)[-1]["message"] == message


@pytest.mark.parametrize("ours", ["handed back", "ended"])
def test_a_run_that_is_put_off_while_we_write_keeps_its_new_time(loose, ours):
    run, call = loose.taken()
    if ours == "ended":
        loose.api.write(run.run_id, "Running")
    times: list[datetime] = []
    loose.meanwhile("set_flow_run_states", lambda: times.append(loose.put_off(run.run_id)))
    answer = loose.report(run) if ours == "ended" else loose.hand_back(run, call)

    assert answer.verdict is Verdict.REFUSED
    assert answer.state is not None
    assert answer.state.scheduled == times[0]
    assert instant(loose.api.states(run.run_id)[-1]["start_time"]) == times[0]


def test_of_a_cancel_and_a_restart_before_our_write_the_restart_holds(loose):
    run, call = loose.taken()

    def both() -> None:
        loose.api.cancel(run.run_id)
        loose.put_off(run.run_id)

    loose.meanwhile("set_flow_run_states", both)
    assert loose.hand_back(run, call).verdict is Verdict.REFUSED
    assert loose.api.state(run.run_id) == "Scheduled"
    assert instant(loose.api.states(run.run_id)[-1]["start_time"]) > run.due


# a run that is being cancelled when its process is gone


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_run_whose_cancel_came_after_its_process_was_looked_at_ends_as_cancelled(loose, when):
    run, _ = loose.taken()
    loose.api.write(run.run_id, "Running")
    if when == "before":
        loose.api.cancel(run.run_id)
    else:
        loose.meanwhile("set_flow_run_states", lambda: loose.api.cancel(run.run_id))
        # whoever has only the report must not take this for a no: nobody else would end the run
        assert loose.report(run).verdict is Verdict.UNSURE

    assert loose.report(run).verdict is Verdict.ACCEPTED
    assert loose.report(run).verdict is Verdict.ACCEPTED
    assert loose.api.state(run.run_id) == "Cancelled"


# late retries


def test_a_run_that_was_written_back_after_lazarus_comes_to_its_late_retry(server):
    run, first = server.taken()
    server.api.write(run.run_id, "Running", "Running flow.")
    server.api.write(run.run_id, "Scheduled", "Rescheduled by a Lazarus process.", start_time=ago(0).isoformat())
    assert server.client.claims.reinstate(run.run_id, claim_id(first, run.run_id), MARK).verdict is Verdict.ACCEPTED
    server.api.write_task(run.run_id, "Retrying", **since(30))

    late = server.listed(run.run_id)
    call = server.claimed(late)

    assert server.client.jobs.job(run.run_id).state.call == call
    assert (
        server.client.claims.launching(run.run_id, call, claim_id(call, run.run_id), MARK).verdict is Verdict.ACCEPTED
    )
    assert server.client.ends.hand_back(run.run_id, call, late.due, MARK, "test").verdict is Verdict.ACCEPTED
    assert [task["state"] for task in server.api.task_runs(run.run_id)] == ["Retrying"]


def test_a_run_of_which_a_task_runs_is_not_claimed_for_another_that_is_late(server):
    run_id = server.two_tasks(30)
    server.api.write_task(run_id, "Running", slug="other")
    run = server.listed(run_id)

    assert server.client.claims.claim([run], str(uuid.uuid4()), MARK)[run_id].verdict is Verdict.REFUSED
    assert {task["state"] for task in server.api.task_runs(run_id)} == {"Retrying", "Running"}


def test_the_sweep_leaves_a_silent_run_of_which_a_task_runs_to_the_zombie_killer(server):
    run_id = server.two_tasks(30)
    server.claimed(server.listed(run_id))
    server.api.write_task(run_id, "Running", slug="other")
    server.api.heartbeat(run_id, 700)
    (found,) = server.client.unfinished(MARK)
    assert found.state.kind is StateType.RUNNING

    server.api.services.zombie_killer()
    (found,) = server.client.unfinished(MARK)
    assert (found.state.kind, found.state.name) == (StateType.PENDING, "Submitted")


def test_a_late_retry_takes_over_tasks_that_a_dead_claim_has_left(server):
    run_id = server.two_tasks(30)
    dead = server.claimed(server.listed(run_id))
    server.api.write_task(run_id, "Retrying", slug="other", **since(20))
    run = server.listed(run_id)
    call = server.claimed(run)

    assert server.client.jobs.job(run_id).state.call == call
    assert server.client.claims.settle(run_id, dead).verdict is Verdict.REFUSED
    assert server.client.claims.settle(run_id, call).verdict is Verdict.ACCEPTED
    assert server.client.ends.hand_back(run_id, call, run.due, MARK, "test").verdict is Verdict.ACCEPTED
    assert [task["state"] for task in server.api.task_runs(run_id)] == ["Retrying", "Retrying"]


def test_many_hand_backs_do_not_make_states_grow(server):
    run_id, late = server.scheduled(), server.scheduled()
    server.api.write(late, "Running")
    server.api.write_task(late, "Retrying", **since(30))
    sizes = set()
    for _ in range(5):
        server.api.writer.forget_submitted()
        for each in (run_id, late):
            run = server.listed(each)
            call = server.claimed(run)
            assert server.client.ends.hand_back(each, call, run.due, MARK, "test").verdict is Verdict.ACCEPTED
        (task,) = server.api.task_runs(late)
        sizes.add((len(str(server.api.states(run_id)[-1])), len(str(task["serialized_state"]))))
    assert len({size // 10 for pair in sizes for size in pair}) <= 4


# what the server's database cannot keep


@pytest.mark.parametrize("text", ["a\x00b", "a\udc80b"])
def test_text_that_no_database_keeps_is_told_without_it(server, text):
    run, _ = server.taken()
    server.api.write(run.run_id, "Running")
    assert server.client.ends.report(run.run_id, StateType.FAILED, text, MARK).verdict is Verdict.ACCEPTED
    server.client.log([LogLine(run_id=run.run_id, message=text, at=ago(0), level=30)])

    told = [server.api.states(run.run_id)[-1]["message"], server.api.logs(run.run_id)[-1]["message"]]
    assert all(words.startswith("a") and words.endswith("b") for words in told)
    assert all(words.encode() and "\x00" not in words for words in told)
