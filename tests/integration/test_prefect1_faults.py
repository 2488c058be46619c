"""The local Prefect 1 API over HTTP: every fault that can be switched on, and what the server does by the clock."""

import subprocess
import sys

import pytest
import requests

from tests.prefect1_plain import Prefect1Plain
from tests.waiting import SCALE, until


def cancel_of(run):
    return f'mutation {{ cancel_flow_run(input: {{flow_run_id: "{run}"}}) {{ state }} }}'


# lines that break


def test_a_broken_request_does_nothing_and_then_the_api_is_well(api, asker, run):
    api.faults.broken("cancel_flow_run", status=502)
    api.faults.throttled("cancel_flow_run", retry_after=7)
    api.faults.answered(b"<html>", "cancel_flow_run")
    api.faults.dropped("cancel_flow_run")
    text = cancel_of(run)

    assert asker.post(text).status_code == 502
    throttled = asker.post(text)
    assert (throttled.status_code, throttled.headers["Retry-After"]) == (429, "7")
    assert asker.post(text).text == "<html>"
    with pytest.raises(requests.ConnectionError):
        asker.post(text)
    assert api.history(run) == ["Scheduled"]
    assert asker.ask(text)
    assert api.counted("cancel_flow_run") == 5


def test_an_answer_that_is_lost_after_the_commit_leaves_the_state_written(api, asker):
    flow = api.add_flow()
    first, second = api.add_run(flow), api.add_run(flow)
    api.faults.lost("cancel_flow_run")
    with pytest.raises(requests.ConnectionError):
        asker.post(cancel_of(first))
    api.faults.broken_after("cancel_flow_run", status=503)
    assert asker.post(cancel_of(second)).status_code == 503

    assert [api.history(run) for run in (first, second)] == [["Scheduled", "Cancelled"]] * 2


def test_a_hung_request_does_nothing_and_a_late_one_is_done_after_its_client_has_gone(api, asker, run):
    text = cancel_of(run)
    api.faults.hung("cancel_flow_run")
    api.faults.late("cancel_flow_run")
    for _ in range(2):
        with pytest.raises(requests.ReadTimeout):
            asker.post(text, timeout=0.2)
    until(lambda: api.counted("cancel_flow_run") == 2, 30, "both requests")
    assert asker.ask("{ hello }")
    assert api.history(run) == ["Scheduled"]

    api.faults.release()
    until(lambda: api.history(run) == ["Scheduled", "Cancelled"], 30, "the late cancel")


def test_one_field_is_refused_before_or_after_it_was_done_and_the_others_are_not(api, asker):
    flow = api.add_flow()
    runs = [api.add_run(flow) for _ in range(3)]
    api.faults.refused("set_flow_run_states", "not now", code="API_ERROR")
    api.faults.refused_after("set_flow_run_states")
    answer = asker.set_by_alias(*((run, "Submitted", 1) for run in runs))

    told = [(error["path"], error["extensions"]["code"]) for error in answer["errors"]]
    assert told == [(["r0"], "API_ERROR"), (["r1"], "INTERNAL_SERVER_ERROR")]
    assert [api.state(run) for run in runs] == ["Scheduled", "Submitted", "Submitted"]


def test_healing_ends_faults_without_number(api, asker):
    api.faults.broken(times=-1)
    assert [asker.post("{ hello }").status_code for _ in range(3)] == [500, 500, 500]
    api.faults.heal()
    assert asker.ask("{ hello }")


# services


def test_lazarus_brings_a_silent_run_back_three_times_and_then_fails_it(api, asker, run):
    for _ in range(4):
        asker.set_states((run, "Submitted", None))
        assert api.services.lazarus() == []
        api.clock.advance(601)
        assert api.services.lazarus() == [run]
    assert api.history(run) == [*["Scheduled", "Submitted"] * 4, "Failed"]
    assert api.services.lazarus() == []


def test_lazarus_leaves_runs_with_a_heartbeat_or_with_a_task_that_is_to_run(api, asker):
    flow = api.add_flow()
    alive, retrying = api.add_run(flow), api.add_run(flow)
    for run in (alive, retrying):
        api.write(run, "Running")
    api.write_task(retrying, "Retrying", start_time=api.clock().isoformat())
    api.clock.advance(601)
    asker.done("update_flow_run_heartbeat", "success", flow_run_id=alive)
    assert api.services.lazarus() == []


def test_the_zombie_killer_retries_or_fails_tasks_of_silent_runs_and_ends_silent_cancels(api):
    flow = api.add_flow(tasks=["task", "patient"])
    with api.lock:
        [patient] = api.store.where("task", slug="patient")
        api.store.update("task", patient["id"], max_retries=1, retry_delay=5)
    run, cancelling = api.add_run(flow), api.add_run(flow)
    for each in (run, cancelling):
        api.write(each, "Running")
        api.write_task(each, "Running")
    api.write_task(run, "Running", slug="patient")
    api.cancel(cancelling)
    assert api.services.zombie_killer() == []

    api.clock.advance(601)
    assert len(api.services.zombie_killer()) == 4
    assert {each["slug"]: each["state"] for each in api.task_runs(run)} == {"task": "Failed", "patient": "Retrying"}
    assert (api.state(run), api.state(cancelling)) == ("Running", "Failed")


# a process of its own


def test_it_runs_as_a_process_that_says_where_it_is_and_ends_at_sigterm():
    command = [sys.executable, "-m", "benchmarks.prefect1_api"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            made = Prefect1Plain(url).done("create_tenant", "id", name="mine")
            assert made["id"] in {row["id"] for row in Prefect1Plain(url).ask("{ tenant { id } }")["tenant"]}
            process.terminate()
            assert process.wait(20 * SCALE) == 0
        finally:
            process.kill()
