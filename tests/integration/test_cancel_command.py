"""Cancel and requeue: the two commands on real pollers and workers, and what the leader finds at the API by itself."""

import uuid
from datetime import UTC, datetime

import pytest

from flowfleet.ledger.claims import CancelHow
from tests import processes
from tests.valkey import free_port
from tests.waiting import until
from tests.world import BIN

#: each claim is queued, and its message is sent nowhere: nobody takes it
STUCK = {"FLOWFLEET_FAILPOINT": "claim.after_accept:raise"}
#: a worker may be frozen for the time of some commands, and is not to count as silent
PATIENT = ("--lease-seconds", "600")


def said(world, *argv, code=0, **env):
    done = world.command("flowfleet", *argv, seconds=90, **env)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def name_of(world, run):
    return world.api.run(run)["name"]


def told(world, run):
    """The leader has told the claim; then it is made a hurry, else the command would have 20 s to cancel itself."""
    with world.ledger() as ledger:
        until(lambda: ledger.claims.get(run).cancel, 60, "the claim to say so")
        ledger.claims.cancel(run, how=CancelHow.OVER)


def running(world, run):
    """The ledger has it as running, which its worker tells while its engine goes on."""
    until(lambda: (run, "running") in {(one["run_id"], one["state"]) for one in world.seen()["runs"]}, 30, "it to run")


def gone(world, *pids):
    until(lambda: not any(processes.alive(pid) for pid in pids), 30, "the processes to be gone")
    world.wait_empty()


@pytest.fixture
def world(lawless):
    lawless.start_poller("agent", *PATIENT)
    lawless.start_worker(slots=4)
    return lawless


# by command


def test_a_run_is_cancelled_by_its_name_and_its_end_is_waited_for_and_told_with_who_asked_and_why(world):
    run, pid = world.held()
    other, left = world.held()
    running(world, run)
    name, worker = name_of(world, run), world.parts[-1]
    worker.signal(19)  # the end comes when the command is seen to wait for it
    argv = [str(BIN / "flowfleet"), "cancel", name, "--now", "--reason", "wrong\ninput"]
    cancel = world.part("cancel", argv)
    until(lambda: f"the process of {name} on " in cancel.text() and "is being ended" in cancel.text(), 60, "the wait")
    worker.signal(18)
    assert cancel.wait(90) == 0, cancel.all_text()
    assert cancel.said()[0].startswith(f"{name} is Cancelled, after ")
    assert not processes.alive(pid)
    assert world.api.history(run)[-2:] == ["Cancelling", "Cancelled"]
    asked = world.api.call("GET", f"/flow_run_states/?flow_run_id={run}")[-2]["message"]
    assert asked.startswith("Cancelled by ")
    assert asked.endswith(": wrong input")
    assert processes.alive(left), "and no other run"
    said(world, "cancel", other[:13], "--now")
    gone(world, left)


def test_what_explain_says_while_a_cancel_is_not_waited_for(world):
    run, pid = world.held()
    world.parts[-1].signal(19)  # a worker that is frozen hears of nothing
    done = said(world, "cancel", run, "--now", "--no-wait", "--reason", "see redis://:hunter2@box/0")
    assert done.stdout.startswith("Cancelled at the API: ")
    told = said(world, "explain", run).stdout
    assert "A cancel at once was asked for (by " in told
    assert "hunter2" not in told
    world.parts[-1].signal(18)
    gone(world, pid)
    assert world.api.state(run)["name"] == "Cancelled"


def test_a_run_that_waits_at_the_api_and_one_that_is_queued_are_cancelled_and_never_begin(lawless):
    lawless.start_poller(env=STUCK)
    lawless.start_worker()
    deployment = lawless.deploy_tiny()
    queued, later = lawless.create_run(deployment), lawless.create_run(deployment, in_seconds=3600)
    lawless.parts[0].ask("/api/poke")
    until(lambda: [run["state"] for run in lawless.seen()["runs"]] == ["queued"], 40, "the claim")
    for run in (queued, later):
        assert "is Cancelled" in said(lawless, "cancel", run).stdout
        assert lawless.api.state(run)["name"] == "Cancelled"
        assert lawless.words(run) == []
    assert lawless.seen()["runs"] == []


def test_a_run_that_waits_at_the_api_is_found_by_its_name_and_by_a_part_of_its_id_by_each_command(lawless):
    """None of these has a claim, so only the API knows them."""
    lawless.api.call("POST", "/work_pools/", {"name": lawless.pool, "type": "flowfleet"})
    deployment = lawless.deploy_tiny()
    for _ in range(210):  # more than a page
        lawless.create_run(deployment, in_seconds=3600)
    run = lawless.create_run(deployment, in_seconds=7200)
    for given in (name_of(lawless, run), run[-12:], run[:18], run.upper()):
        assert "It is scheduled to start in " in said(lawless, "explain", given).stdout
        assert f"The output of the run {run} is not below" in said(lawless, "logs", given, code=1).stderr
    ended = lawless.create_run(deployment)
    lawless.api.call("POST", f"/flow_runs/{ended}/set_state", {"state": {"type": "COMPLETED"}, "force": True})
    assert "the API says Completed" in said(lawless, "explain", name_of(lawless, ended)).stdout
    nobody = str(uuid.uuid4())
    assert f"The API has no run {nobody}. The fleet " in said(lawless, "explain", nobody, code=1).stderr
    for command in ("explain", "logs", "cancel", "requeue"):
        assert "Error: No run is named 'nobody': give" in said(lawless, command, "nobody", code=1).stderr
    assert "is Cancelled" in said(lawless, "cancel", run[-12:]).stdout
    assert lawless.api.state(run)["name"] == "Cancelled"


def test_what_cannot_be_cancelled_is_one_sentence_with_its_exit_code(world):
    run = world.create_run(world.deploy_tiny())
    world.all_once([run])
    world.wait_empty()
    nobody = str(uuid.uuid4())
    for given, code, words in (
        (run, 1, "has ended already: the API says Completed."),
        (nobody, 1, f"No run has the id {nobody}."),
        ("no-such-name", 1, "No run is named 'no-such-name': give its name or its id"),
    ):
        done = said(world, "cancel", given, code=code)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert "Give RUN, or --all-of" in said(world, "cancel", code=2).stderr
    other, pid = world.held()
    away = said(world, "cancel", other, code=3, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert away.stderr.startswith("Error: ")
    said(world, "cancel", other, code=4, FLOWFLEET_REDIS=f"redis://127.0.0.1:{free_port()}/0")
    assert world.api.state(other)["name"] == "Running"
    assert processes.alive(pid)
    world.release()


def test_all_runs_of_a_worker_or_of_a_queue_are_cancelled_only_with_a_yes(world):
    runs, pids = zip(*(world.held() for _ in range(3)), strict=True)
    (worker,) = world.status()["workers"]
    refused = said(world, "cancel", "--all-of", worker["name"], code=2)
    assert "3 runs of worker would be cancelled, of which 3 may have begun: say --yes" in refused.stderr
    assert "no claimed run of 'nobody'" in said(world, "cancel", "--all-of", "nobody", code=1).stderr
    assert all(map(processes.alive, pids))

    done = said(world, "cancel", "--all-of", f"{world.pool}/default", "--yes", "--now")
    assert done.stdout.startswith("3 runs are Cancelled, after ")
    gone(world, *pids)
    assert {world.api.state(run)["name"] for run in runs} == {"Cancelled"}


def test_a_cancel_makes_the_worker_that_holds_the_run_renew_at_once(lawless):
    # else it would hear of it in ten minutes
    lawless.start_poller("agent", "--renew-seconds", "600", "--lease-seconds", "1800")
    lawless.start_worker(slots=1)
    run, pid = lawless.held()
    assert "is Cancelled" in said(lawless, "cancel", run, "--now").stdout
    gone(lawless, pid)


# by the leader


def test_a_cancel_by_somebody_else_is_found_within_seconds_and_again_after_the_ledger_has_lost_it(world):
    run, pid = world.held()
    worker = world.parts[-1]
    worker.signal(19)
    world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    try:
        with world.ledger() as ledger:
            until(lambda: ledger.claims.get(run).cancel, 15, "the claim to say so")
            ledger.store.client.hset(ledger.store.key(f"claim:{run}"), "cancel", "0")
            until(lambda: ledger.claims.get(run).cancel, 15, "the claim to say so again")
            ledger.claims.cancel(run, how=CancelHow.OVER)  # else its command would have 20 s to cancel itself
    finally:
        worker.signal(18)
    gone(world, pid)
    assert world.api.history(run)[-2:] == ["Cancelling", "Cancelled"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["forced", "deleted"])
def test_a_run_that_is_over_at_the_api_without_a_word_of_ours_is_killed(world, how):
    run, pid = world.held()
    if how == "forced":
        world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED", "name": "Cancelled"}})
    else:
        world.api.call("DELETE", f"/flow_runs/{run}")
        world.runs.remove(run)
    until(lambda: not processes.alive(pid), 60, "the process to be killed")
    # the report looks for a deleted run for half a minute before it believes that
    world.wait_empty(60)
    if how == "forced":
        assert world.api.history(run)[-1] == "Cancelled"


@pytest.mark.slow
def test_a_run_that_hangs_and_is_retried_by_hand_is_killed_and_started_again(world):
    run, pid = world.held()
    for kind in ("FAILED", "SCHEDULED"):
        state = {"type": kind, "name": kind.title(), "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
        world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
    until(lambda: not processes.alive(pid), 90, "the process that hangs to be killed")
    until(lambda: world.words(run).count("ran") == 2, 60, "the second start")
    assert not {"Cancelling", "Cancelled"} & set(world.api.history(run))


@pytest.mark.parametrize("place", ["cancel.found", "cancel.after_field"])
def test_a_leader_that_dies_while_it_passes_on_a_cancel_leaves_it_to_the_next_one(lawless, place):
    first = lawless.start_poller(env={"FLOWFLEET_FAILPOINT": f"{place}:kill"})
    lawless.start_worker()
    run, pid = lawless.held()
    lawless.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert first.wait() == -9
    lawless.start_poller("second")
    told(lawless, run)
    gone(lawless, pid)
    assert lawless.api.state(run)["name"] == "Cancelled"


# start again


def test_a_run_that_has_ended_is_started_again_and_one_that_runs_is_refused_by_the_name_of_its_host(world):
    run = world.create_run(world.deploy_tiny())
    world.all_once([run])
    world.wait_empty()
    done = said(world, "requeue", run, "--reason", "once more")
    assert "claimed anew" in done.stdout or "was taken" in done.stdout
    until(lambda: world.words(run) == ["ran", "done"] * 2, 30, "the second start")

    other, pid = world.held()
    running(world, other)
    (worker,) = world.status()["workers"]
    refused = said(world, "requeue", other, code=1)
    assert f"is not started again: it runs on the host {worker['host']} " in refused.stderr
    world.api.call("POST", f"/flow_runs/{other}/set_state", {"state": {"type": "CRASHED", "name": "Crashed"}})
    assert worker["host"] in said(world, "requeue", other, code=1).stderr, "whatever the API says"
    assert processes.alive(pid)
    world.release()
    gone(world, pid)
    world.wait_told()
    said(world, "requeue", other, "--no-wait")
    until(lambda: world.words(other).count("ran") == 2, 30, "the second start")


def test_all_runs_of_a_worker_or_of_a_queue_that_did_not_end_well_are_started_again_only_with_a_yes(world):
    def end_at_api(run, kind):
        world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind.upper(), "name": kind}})

    failed, crashed = world.create_run(world.deploy_tiny(code=1)), world.held()[0]
    world.wait_state(failed, "Crashed")
    world.kill_engine(crashed)
    world.wait_state(crashed, "Crashed")
    end_at_api(failed, "Failed")
    good, held = world.create_run(world.deploy_tiny()), world.held()[0]
    world.all_once([good])
    until(lambda: {record["run_id"] for record in world.records()} == {failed, crashed, good}, 30, "the records")
    (worker,) = world.status()["workers"]

    refused = said(world, "requeue", "--all-of", worker["name"], code=2).stderr
    names = ", ".join(map(name_of, [world] * 2, [failed, crashed]))
    assert f"To be started again: 2 runs of worker ({names}): say --yes" in refused
    assert "no run of 'nobody'" in said(world, "requeue", "--all-of", "nobody", code=1).stderr
    both = said(world, "requeue", failed, "--all-of", "worker", code=2).stderr
    assert f"Give {failed} or --all-of worker, not both" in both
    assert [world.words(run) for run in (failed, crashed, good)] == [["ran", "done"], ["ran"], ["ran", "done"]]

    done = said(world, "requeue", "--all-of", f"{world.pool}/default", "--yes", "--reason", "disk is back")
    assert done.stdout.startswith("2 of 2 runs started again: due at the API, and 2 of them claimed anew by now.")
    assert f"To be started again: 2 runs of {world.pool}/default ({names}).\n" in done.stderr
    states = world.api.call("GET", f"/flow_run_states/?flow_run_id={failed}")
    (asked,) = [state["message"] for state in states if "requeued by" in (state["message"] or "")]
    assert asked.endswith(": disk is back")
    until(lambda: [world.words(run).count("ran") for run in (failed, crashed)] == [2, 2], 60, "the second starts")

    world.wait_state(crashed, "Running")  # else its engine would write that over the end
    running(world, crashed)
    end_at_api(crashed, "Crashed")
    world.wait_state(failed, "Crashed")
    until(lambda: [run["run_id"] for run in world.seen()["runs"]].count(failed) == 0, 30, "its claim to be gone")
    partly = said(world, "requeue", "--all-of", f"{worker['name']}@{worker['host']}", "--yes", "--no-wait", code=1)
    assert partly.stdout.startswith("1 of 2 runs started again: due at the API.\nRefused: 1.\n")
    assert f"  {name_of(world, crashed)}: it runs on the host {worker['host']} " in partly.stdout
    world.release()
    world.wait_empty()
    assert [world.words(run).count("ran") for run in (failed, crashed, good, held)] == [3, 2, 1, 1]


def test_what_cannot_be_started_again_says_why_and_what_waits_says_so_too(lawless):
    deployment = lawless.api.deploy("lone", lawless_pool(lawless), "none.py:go", str(lawless.folder))
    run = lawless.create_run(deployment, in_seconds=3600)
    shut = said(lawless, "requeue", run, code=1)
    assert "no longer says that the gate is shut" in shut.stderr

    lawless.start_poller()
    until(lambda: lawless.seen()["gate"] == "open", 60, "the gate")
    waits = said(lawless, "requeue", run)
    assert "is due at the API and not claimed yet. " in waits.stdout
    lawless.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "RUNNING", "name": "Running"}})
    assert "no worker of this fleet holds it" in said(lawless, "requeue", run, code=1).stderr
    lawless.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "PAUSED", "name": "Suspended"}})
    assert "resume it" in said(lawless, "requeue", run, code=1).stderr
    assert "No run is named" in said(lawless, "requeue", "nobody", code=1).stderr


def lawless_pool(world):
    world.api.call("POST", "/work_pools/", {"name": world.pool, "type": "flowfleet"})
    return world.pool


# at Prefect 1


@pytest.mark.parametrize("who", ["command", "somebody"])
def test_at_prefect_1_a_cancelled_run_ends_and_stays_cancelled(world1, who):
    world1.start_poller()
    world1.start_worker("worker", "x", tiny=True)
    run, pid = world1.held(0, "x")
    if who == "command":
        said(world1, "cancel", run, "--now")
    else:
        assert world1.api.cancel(run) == "Cancelling"
        told(world1, run)
    gone(world1, pid)
    assert world1.api.history(run)[-2:] == ["Cancelling", "Cancelled"]


def test_at_prefect_1_who_cancels_and_why_is_told_also_where_the_leader_finds_it_at_the_api_first(world1):
    world1.start_poller("agent", *PATIENT)
    worker = world1.start_worker("worker", "x", tiny=True)
    run, pid = world1.held(0, "x")
    worker.signal(19)
    assert world1.api.cancel(run) == "Cancelling"  # all that the API takes of the command's first write
    with world1.ledger() as ledger:
        until(lambda: ledger.claims.get(run).cancel, 15, "the leader to find it")
    said(world1, "cancel", run, "--no-wait", "--reason", "wrong input")
    assert ": wrong input)" in said(world1, "explain", run).stdout
    worker.signal(18)
    told(world1, run)
    gone(world1, pid)


def test_at_prefect_1_a_failed_run_is_started_again(world1):
    world1.start_poller()
    world1.start_worker("worker", "x", tiny=True)
    run = world1.tiny_run("x", code=1)
    assert world1.wait_end(run) == "Failed"
    world1.wait_empty()
    said(world1, "requeue", run)
    until(lambda: world1.words(run).count("ran") == 2, 30, "the second start")
    world1.wait_empty()
