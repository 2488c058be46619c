"""The client of a Prefect 1 API, on one with Cloud's locks and on one with Server's rules."""

import uuid
from datetime import timedelta

import pytest

from flowfleet.api.client import LogLine, StateType, Verdict
from flowfleet.api.life import LaunchedClaim
from flowfleet.api.prefect1 import backlog
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.transport import session
from flowfleet.api.transport.reading import instant
from flowfleet.errors import ApiRejected, ApiUnavailable, RunGone, UnsupportedRun
from flowfleet.flow_run import Offer, claim_id
from tests.integration.claiming import ago, race
from tests.integration.one_server import MARK, OneServer
from tests.prefect1_plain import Prefect1Plain
from tests.waiting import until


def test_a_claim_is_submitted_over_what_stood_there_and_says_whose_it_is(server):
    run_id = server.scheduled()
    run = server.listed(run_id)
    before = server.api.states(run_id)[-1]
    call = server.claimed(run)

    state = server.api.states(run_id)[-1]
    assert (state["type"], state["message"]) == ("Submitted", "Submitted for execution")
    assert {name: state["state"][name] for name in before} == before
    ours = state["context"]["flowfleet"]
    assert (ours["fleet"], ours["call"], ours["claim"]) == ("test", call, claim_id(call, run_id))
    assert server.api.run(run_id)["agent_id"] == server.api.agents()[0]["id"]


def test_many_runs_are_claimed_in_one_request_and_each_has_its_own_answer(server):
    ids = [server.scheduled() for _ in range(5)]
    runs = {run.run_id: run for run in server.due("x")}
    stranger = server.another_client()
    stranger.backlog.due([server.offer("x")], within_seconds=60, limit=10)
    theirs = stranger.claims.claim([runs[ids[2]]], str(uuid.uuid4()), MARK)
    asked = server.api.counted("set_flow_run_states")

    answers = server.client.claims.claim([runs[run_id] for run_id in ids], str(uuid.uuid4()), MARK)

    assert theirs[ids[2]].verdict is Verdict.ACCEPTED
    assert server.api.counted("set_flow_run_states") == asked + 1
    assert [answers[run_id].verdict for run_id in ids] == ["accepted", "accepted", "refused", "accepted", "accepted"]


def test_two_claimers_of_one_run_have_one_winner(server):
    for _ in range(8):
        run = server.listed(server.scheduled())
        verdicts = race(server.another_client, run)
        assert sorted(verdicts.values()) == ["accepted", "refused"]
        winner = next(call for call in verdicts if verdicts[call] is Verdict.ACCEPTED)
        assert server.api.states(run.run_id)[-1]["context"]["flowfleet"]["call"] == winner
        assert server.api.history(run.run_id).count("Submitted") == 1


def test_a_claim_whose_answer_is_lost_is_known_as_ours_when_it_is_repeated(server):
    run = server.listed(server.scheduled())
    call = str(uuid.uuid4())
    server.api.faults.lost("set_flow_run_states", times=-1)
    first = server.client.claims.claim([run], call, MARK)[run.run_id]
    server.api.faults.heal()
    again = server.client.claims.claim([run], call, MARK)[run.run_id]

    assert first.verdict is Verdict.UNSURE
    assert again.verdict is Verdict.ACCEPTED
    assert server.client.claims.settle(run.run_id, call).verdict is Verdict.ACCEPTED
    assert server.api.history(run.run_id).count("Submitted") == 1


def test_a_claim_that_is_carried_out_after_its_time_out_is_settled_as_ours(server, monkeypatch):
    run = server.listed(server.scheduled())
    call = str(uuid.uuid4())
    server.api.faults.late("set_flow_run_states")
    with monkeypatch.context() as short:
        short.setattr(session, "BULK_TIMES", 1.0 / session.READ_SECONDS)
        first = server.client.claims.claim([run], call, MARK)[run.run_id]
    until(lambda: server.api.counted("set_flow_run_states"), 30, "the request to come")
    assert first.verdict is Verdict.UNSURE
    assert server.client.claims.settle(run.run_id, call).verdict is Verdict.REFUSED
    server.api.faults.release()
    until(lambda: server.api.state(run.run_id) == "Submitted", 30, "the late request to be carried out")
    assert server.client.claims.settle(run.run_id, call).verdict is Verdict.ACCEPTED


def test_a_run_that_is_cancelled_before_its_claim_stays_cancelled(loose):
    run = loose.listed(loose.scheduled())
    loose.api.cancel(run.run_id)
    call = loose.claimed(run)  # Server takes any state over any other

    assert loose.client.jobs.job(run.run_id).state.kind is StateType.CANCELLED
    assert loose.api.state(run.run_id) == "Cancelled"
    assert loose.hand_back(run, call).verdict is Verdict.REFUSED
    assert loose.api.state(run.run_id) == "Cancelled"


def test_a_run_that_is_put_off_right_before_its_claim_is_not_started_at_its_old_time(loose):
    run = loose.listed(loose.scheduled())
    times = []
    loose.meanwhile("set_flow_run_states", lambda: times.append(loose.put_off(run.run_id)))
    call = loose.claimed(run)  # Server takes it

    job = loose.client.jobs.job(run.run_id)

    assert (job.state.kind, job.state.scheduled) == (StateType.SCHEDULED, times[0])
    assert loose.hand_back(run, call).verdict is Verdict.REFUSED
    assert instant(loose.api.states(run.run_id)[-1]["start_time"]) == times[0]


def test_a_late_retry_of_which_another_task_runs_is_not_handed_back(server):
    run_id = server.two_tasks(30, 30)
    run = server.listed(run_id)
    call = server.claimed(run)
    server.api.write_task(run_id, "Running", slug="other")

    assert server.client.ends.hand_back(run_id, call, run.due, MARK, "test").verdict is Verdict.REFUSED
    assert {task["state"] for task in server.api.task_runs(run_id)} == {"Submitted", "Running"}
    assert server.client.ends.states([run_id])[run_id].kind is StateType.RUNNING


def test_a_run_whose_processes_are_gone_runs_again_with_its_tasks_that_were_under_way(server):
    run_id = server.two_tasks()
    server.api.write_task(run_id, "Running", slug="task")
    server.api.write_task(run_id, "Success", slug="other")
    claim = str(uuid.uuid4())
    for _ in range(2):  # the answer to the first try was lost
        assert server.client.ends.run_again(run_id, claim, "it is started again", MARK).verdict is Verdict.ACCEPTED
    assert [state["type"] for state in server.api.states(run_id)][-2:] == ["Running", "Scheduled"]
    assert {task["slug"]: task["state"] for task in server.api.task_runs(run_id)} == {
        "task": "Pending", "other": "Success",
    }  # fmt: skip
    assert server.listed(run_id).run_id == run_id


@pytest.mark.parametrize("kind", ["Success", "Failed", "Cancelling", "Cancelled"])
def test_a_run_that_has_ended_or_is_to_end_does_not_run_again(server, kind):
    run_id = server.scheduled()
    server.api.write(run_id, "Running")
    server.api.write(run_id, kind)
    answer = server.client.ends.run_again(run_id, str(uuid.uuid4()), "it is started again", MARK)
    assert (answer.verdict, server.api.state(run_id)) == (Verdict.REFUSED, kind)


def test_a_hand_back_schedules_the_run_at_the_time_that_it_had(server):
    run = server.listed(server.scheduled(late=90))
    call = server.claimed(run)

    assert server.hand_back(run, call).verdict is Verdict.ACCEPTED
    state = server.api.states(run.run_id)[-1]
    assert state["type"] == "Scheduled"
    assert abs(instant(state["start_time"]) - run.due) < timedelta(seconds=0.001)
    assert server.hand_back(run, call).verdict is Verdict.ACCEPTED
    assert server.api.history(run.run_id).count("Scheduled") == 2
    assert server.listed(run.run_id).due == run.due


@pytest.mark.parametrize("state", ["Running", "Success", "Failed", "Cancelled", "Scheduled", "Submitted"])
def test_a_run_that_is_not_ours_any_more_or_of_another_call_is_not_handed_back(server, state):
    run, call = server.taken()
    if state == "Submitted":
        call = str(uuid.uuid4())
    else:
        server.api.write(run.run_id, state)
    assert server.hand_back(run, call).verdict is Verdict.REFUSED
    assert server.api.state(run.run_id) == state


def test_a_late_retry_is_claimed_by_its_task_and_handed_back_to_it(server):
    run_id = server.retrying(30)
    run = server.listed(run_id)
    assert run.state == "Running"
    call = server.claimed(run)

    (task,) = server.api.task_runs(run_id)
    assert (task["state"], server.api.state(run_id)) == ("Submitted", "Running")
    stands = server.api.store.where("task_run_state", "version", task_run_id=task["id"])[-1]["serialized_state"]
    assert (stands["message"], stands["state"]["type"]) == ("Submitted for execution.", "Retrying")
    job = server.client.jobs.job(run_id)
    assert (job.state.kind, job.state.name, job.state.call) == (StateType.PENDING, "Submitted", call)
    assert server.client.claims.launching(run_id, call, claim_id(call, run_id), MARK).verdict is Verdict.ACCEPTED

    assert server.client.ends.hand_back(run_id, call, run.due, MARK, "test").verdict is Verdict.ACCEPTED
    (task,) = server.api.task_runs(run_id)
    assert task["state"] == "Retrying"
    assert server.client.ends.states([run_id])[run_id].comes_back
    assert server.listed(run_id).due == run.due


def test_a_task_that_is_to_be_tried_later_brings_its_run_back_later(server):
    run_id = server.retrying(-600)
    state = server.client.ends.states([run_id])[run_id]
    assert (state.kind, state.comes_back) == (StateType.RUNNING, True)
    assert server.due("x") == []


def test_a_running_run_whose_task_is_not_late_enough_is_left_to_its_own_process(server, monkeypatch):
    monkeypatch.setattr(backlog, "LATE_SECONDS", 3600.0)
    server.retrying(1800)
    assert server.due("x") == []


def test_an_end_is_told_and_takes_the_tasks_that_were_running_with_it(server):
    run, _ = server.taken()
    server.api.write(run.run_id, "Running")
    server.api.write_task(run.run_id, "Running")

    assert server.report(run).verdict is Verdict.ACCEPTED
    assert server.api.states(run.run_id)[-1]["message"] == "It was killed."
    assert server.api.state(run.run_id) == "Failed"
    assert [task["state"] for task in server.api.task_runs(run.run_id)] == ["Failed"]
    assert server.report(run).verdict is Verdict.ACCEPTED
    assert server.api.history(run.run_id).count("Failed") == 1


@pytest.mark.parametrize("write", ["report", "run_again"])
@pytest.mark.parametrize("begun", [True, False], ids=["it runs", "it waits for its process"])
def test_nothing_is_written_over_a_run_that_somebody_else_has_claimed_since(server, write, begun):
    run, call = server.taken()
    ends, claim = server.client.ends, claim_id(call, run.run_id)
    assert not ends.claimed_since(run.run_id, claim)
    server.api.write(run.run_id, "Running")
    assert not ends.claimed_since(run.run_id, claim)
    states = ["Scheduled", "Submitted", *(["Running"] if begun else [])]
    for state in states:
        server.api.write(run.run_id, state)
    if write == "report":
        answer = ends.report(run.run_id, StateType.FAILED, "It was killed.", MARK, claim=claim)
    else:
        answer = ends.run_again(run.run_id, claim, "it is started again", MARK)
    assert (answer.verdict, answer.claimed_since) == (Verdict.REFUSED, True)
    assert server.api.state(run.run_id) == states[-1]


def test_the_end_of_a_late_retry_is_told_though_an_earlier_attempt_was_claimed_by_somebody_else(server):
    """Its claim stands at its task runs alone."""
    run_id = server.retrying(30)
    call = server.claimed(server.listed(run_id))
    answer = server.client.ends.report(run_id, StateType.FAILED, "It was killed.", MARK, claim=claim_id(call, run_id))
    assert answer.verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("end", ["Success", "Failed", "Cancelled", "Skipped", "TimedOut"])
def test_an_end_that_stands_is_not_overwritten(server, end):
    run, _ = server.taken()
    server.api.write(run.run_id, end, "its own")
    answer = server.report(run)
    assert answer.verdict is Verdict.REFUSED
    assert answer.state is not None
    assert answer.state.kind.terminal
    assert server.api.states(run.run_id)[-1]["message"] == "its own"


def test_a_run_that_waits_is_failed_by_hand_and_one_that_somebody_has_taken_is_left(server):
    waiting, (taken, _) = server.scheduled(late=-3600), server.taken()
    fail = server.client.ends.fail_waiting
    assert [fail(waiting, "not wanted", MARK).verdict for _ in range(2)] == ["accepted", "accepted"]
    assert server.api.history(waiting) == ["Scheduled", "Failed"]
    assert server.api.states(waiting)[-1]["message"] == "not wanted"
    assert fail(taken.run_id, "not wanted", MARK).verdict is Verdict.REFUSED
    assert server.api.state(taken.run_id) == "Submitted"


def test_what_lazarus_has_put_back_is_running_again(server):
    run, call = server.taken()
    server.api.write(run.run_id, "Running", "Running flow.")
    server.api.write(run.run_id, "Scheduled", "Rescheduled by a Lazarus process.", start_time=ago(0).isoformat())
    claim = claim_id(call, run.run_id)

    assert server.client.claims.reinstate(run.run_id, claim, MARK).verdict is Verdict.ACCEPTED
    assert server.api.states(run.run_id)[-1]["message"] == "Running flow."
    assert server.client.claims.reinstate(run.run_id, claim, MARK).verdict is Verdict.ACCEPTED
    assert server.api.history(run.run_id).count("Running") == 2


def test_a_run_that_we_have_handed_back_is_not_reinstated(server):
    run, call = server.taken()
    server.hand_back(run, call)
    assert server.client.claims.reinstate(run.run_id, claim_id(call, run.run_id), MARK).verdict is Verdict.REFUSED


def test_the_sweep_sees_what_this_fleet_has_submitted_or_begun_and_nothing_else(server):
    ours, begun, theirs, ended = (server.scheduled() for _ in range(4))
    runs = {run.run_id: run for run in server.due("x")}
    call = server.claimed(runs[ours])
    server.claimed(runs[begun])
    server.api.write(begun, "Running")
    server.claimed(runs[ended])
    server.api.write(ended, "Success")
    server.api.write(theirs, "Submitted", "by another agent")

    found = {each.state.run_id: each for each in server.client.unfinished(MARK)}

    assert set(found) == {ours, begun}
    assert (found[ours].state.name, found[ours].state.call) == ("Submitted", call)
    assert found[ours].state.at is not None
    assert found[begun].state.kind is StateType.RUNNING
    assert found[ours].route == runs[ours].route


def test_the_history_of_a_run_tells_under_which_claim_of_ours_it_was_begun(server):
    run = server.listed(server.scheduled())
    life = server.client.life
    assert life.origin(run.run_id, MARK.fleet) is None
    call = server.claimed(run)
    ours = LaunchedClaim(claim=claim_id(call, run.run_id), call=call)
    for state in ("Running", "Cancelling"):
        assert life.origin(run.run_id, MARK.fleet) == ours
        server.api.write(run.run_id, state)
    assert life.origin(run.run_id, MARK.fleet) == ours
    assert life.origin(run.run_id, MARK.fleet + "-2") is None
    server.api.write(run.run_id, "Cancelled")
    assert life.origin(run.run_id, MARK.fleet) is None


def test_a_run_that_another_agent_has_begun_since_has_no_claim_of_ours(server):
    run = server.listed(server.scheduled())
    server.claimed(run)
    for state in ("Running", "Failed", "Scheduled", "Submitted", "Running"):
        server.api.write(run.run_id, state)
    assert server.client.life.origin(run.run_id, MARK.fleet) is None


def test_a_late_retry_of_a_run_that_gives_signs_of_life_is_not_taken_for_one_that_never_began(server):
    run_id = server.retrying(30)
    server.claimed(server.listed(run_id))
    server.api.heartbeat(run_id)
    (alive,) = server.client.unfinished(MARK)
    server.api.heartbeat(run_id, 600)
    (silent,) = server.client.unfinished(MARK)
    assert (alive.state.kind, silent.state.kind) == (StateType.RUNNING, StateType.PENDING)


@pytest.mark.parametrize(
    ("run_labels", "agent_labels", "given"),
    [((), (), True), ((), ("x",), False), (("x",), ("x", "y"), True), (("x", "y"), ("x",), False), (("x",), (), False)],
)
def test_the_label_rule_is_the_servers_and_ours(server, run_labels, agent_labels, given):
    run_id = server.scheduled(run_labels)
    found = server.due(*agent_labels)
    assert [run.run_id for run in found] == ([run_id] if given else [])
    assert Prefect1Plain(server.api.url).queue(server.api.tenant, agent_labels) == ([run_id] if given else [])
    assert all(server.offer(*agent_labels).serves(run.route) for run in found)


@pytest.mark.parametrize("label", ["with space", "a,comma", "100%", "größe", "工" * 200, "a/b", "ärger,%2C"])
def test_any_label_makes_a_route_that_leads_back_to_it(server, label):
    run_id = server.scheduled((label, "x"))
    run = server.listed(run_id, label, "x")
    assert run.route.labels == tuple(sorted((label, "x")))
    assert type(run.route).parse(str(run.route)) == run.route


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"storage": None}, "has no storage"),
        ({"storage": {"type": "Docker"}}, "Docker storage"),
        ({"run_config": {"type": "KubernetesRun"}}, "run_config of type KubernetesRun"),
        ({"run_config": {"type": "DockerRun"}}, "run_config of type DockerRun"),
    ],
)
def test_a_run_that_no_worker_here_can_start_is_counted_and_not_handed_out(server, fields, words):
    flow = server.api.add_flow("odd", **fields)
    run_id = server.api.add_run(flow, labels=["x"], start=ago(1))
    (found,) = server.client.backlog.due([server.offer("x")], within_seconds=60, limit=10)
    assert (found.runs, found.due) == ((), 1)
    assert [one.run_id for one in found.unfit] == [run_id]
    assert words in found.unfit[0].reason
    with pytest.raises(UnsupportedRun, match=words):
        server.client.jobs.job(run_id)


def test_runs_whose_labels_nobody_has_are_told(server):
    served = server.scheduled(("x",), late=120)
    lonely = server.scheduled(("nobody", "here"), late=120)
    young = server.scheduled(("nobody",), late=1)
    server.due("x")
    found = server.client.backlog.unserved([server.offer("x")])
    assert [one.run_id for one in found] == [lonely]
    assert "nobody" in found[0].reason
    assert {served, young} & {one.run_id for one in found} == set()


def test_another_agent_with_our_labels_is_a_rival_and_we_are_none(server):
    server.due("x", "y")
    assert server.client.backlog.rivals([server.offer("x", "y")]) == []
    other = OneServer.another_client(server)
    other.backlog.agents.name = "stock"
    other.backlog.due([server.offer("y", "z")], within_seconds=60, limit=10)
    (rival,) = server.client.backlog.rivals([server.offer("x", "y")])
    assert (rival.name, rival.type, rival.labels) == ("stock", "LocalAgent", ("y", "z"))
    assert server.client.backlog.rivals([server.offer("x")]) == []


def test_runs_are_asked_for_by_the_tenants_of_the_workers(server):
    server.client.backlog.due([server.offer("x")], within_seconds=60, limit=10)
    other = server.api.add_tenant("other")
    run_id = server.api.add_run(server.api.add_flow("theirs", tenant=other), labels=["x"], start=ago(1))
    offer = Offer(backend="prefect1", labels=("x",), tenant=other)
    (found,) = server.client.backlog.due([offer], within_seconds=60, limit=10)
    assert [run.run_id for run in found.runs] == [run_id]
    assert found.route.scope == other
    server.claimed(found.runs[0])
    assert [one.state.run_id for one in server.client.unfinished(MARK)] == [run_id]
    assert server.client.backlog.place(run_id).route == found.route


def test_what_is_due_for_workers_that_are_away_is_counted_without_an_agent(server):
    server.scheduled(("x",), late=30)
    server.scheduled(("z",), late=30)
    (counted,) = server.client.backlog.count_due([server.offer("x")])
    assert (counted.due, counted.runs) == (1, ())
    assert server.api.agents() == []


def test_a_job_says_what_to_run_and_the_engines_command_is_that_of_the_prefect_that_runs_it(server):
    run_id = server.scheduled(run_config={"type": "LocalRun", "env": {"A": 1}, "working_dir": "/srv", "labels": ["x"]})
    job = server.client.jobs.job(run_id)
    assert (job.env, job.working_dir, job.flow_name) == ({"A": "1"}, "/srv", "flow")
    assert server.client.jobs.engine_command("/py", job, "1.4.1") == ("/py", "-m", "prefect", "execute", "flow-run")
    either = server.api.add_flow("any", run_config={"type": "UniversalRun", "env": {"A": "b"}, "labels": ["x"]})
    assert server.client.jobs.job(server.api.add_run(either, start=ago(1))).env == {"A": "b"}
    old = server.api.add_flow("old", core_version="0.12.6+7.gabc")
    job = server.client.jobs.job(server.api.add_run(old, labels=["x"]))
    commands = [
        server.client.jobs.engine_command("/py", job, prefect)[-1] for prefect in ("", "0.12.6", "0.13.0", "1.4.1")
    ]
    assert commands == ["cloud-flow", "cloud-flow", "flow-run", "flow-run"]


def test_a_run_that_is_gone_is_gone_for_all(server):
    nobody = str(uuid.uuid4())
    with pytest.raises(RunGone):
        server.client.jobs.job(nobody)
    assert server.client.claims.settle(nobody, str(uuid.uuid4())).gone
    assert server.client.ends.report(nobody, StateType.FAILED, "x", MARK).gone
    assert server.client.ends.states([nobody]) == {}
    assert server.client.backlog.place(nobody) is None


def test_log_lines_come_to_the_runs_page(server):
    run_id = server.scheduled()
    server.client.log([LogLine(run_id=run_id, message="hello", at=ago(0), level=30)])
    (line,) = server.api.logs(run_id)
    assert (line["message"], line["level"], line["name"]) == ("hello", "WARNING", "agent")


def test_an_agent_config_that_does_not_exist_is_said_by_its_id(server):
    known = server.api.add_agent_config({"labels": ["a"]})
    assert server.client.agent_config(known) == {"labels": ["a"]}
    nobody = str(uuid.uuid4())
    with pytest.raises(ApiRejected, match=f"no agent config {nobody}"):
        server.client.agent_config(nobody)


def test_half_an_answer_is_no_no(server):
    server.api.faults.answered({"data": {}}, times=-1)
    for question in (
        server.client.probe,
        lambda: server.client.ends.states(["x"]),
        lambda: server.client.agent_config("x"),
    ):
        with pytest.raises(ApiUnavailable, match=r"half an answer|answers \w+ with nothing"):
            question()
    server.api.faults.heal()
    assert server.client.probe().backend == "prefect1"


def test_a_poll_asks_once_for_ids_and_once_for_what_they_are_and_lists_them_by_the_start_of_their_states(server):
    first, last, middle = (server.scheduled(late=late) for late in (30, 20, 25))
    server.api.write(last, "Scheduled", start_time=ago(1).isoformat())
    server.due("x")
    asked = server.api.counted()

    assert [run.run_id for run in server.due("x")] == [first, middle, last]
    assert server.api.counted() == asked + 2


def test_many_label_sets_are_asked_for_in_one_request_by_agents_that_are_registered_once_with_their_config(server):
    config = str(uuid.uuid4())
    client = Prefect1(server.client.graphql, agent_name="named", agent_config_id=config)
    offers = [server.offer("x"), server.offer("x"), server.offer("x", deploy="docker"), server.offer("x", "y")]
    asked = []
    for _ in range(2):
        client.backlog.due(offers, within_seconds=60, limit=10)
        asked.append(server.api.counted("get_runs_in_queue"))

    assert asked[1] == asked[0] + 1
    agents = server.api.agents()
    assert all(agent["last_queried"] for agent in agents)
    found = sorted((agent["type"], agent["labels"]) for agent in agents)
    assert found == [("DockerAgent", ["x"]), ("LocalAgent", ["x"]), ("LocalAgent", ["x", "y"])]
    assert {(agent["name"], agent["agent_config_id"]) for agent in agents} == {("named", config)}
    assert server.api.counted("register_agent") == 3


def test_a_late_retry_whose_task_was_taken_meanwhile_is_refused_without_a_write(server):
    run_id = server.two_tasks(30, -600)
    run = server.listed(run_id)
    server.api.write_task(run_id, "Running", slug="task")
    server.client.claims._seen.clear()  # it was listed a while ago
    asked = server.api.counted()

    answer = server.client.claims.claim([run], str(uuid.uuid4()), MARK)[run_id]

    assert (answer.verdict, server.api.counted()) == (Verdict.REFUSED, asked + 1)


def test_a_tenant_that_does_not_exist_is_said_by_its_id(server):
    server.client.graphql.tenant = str(uuid.uuid4())
    with pytest.raises(ApiRejected, match="no tenant"):
        server.client.tenants.check()
