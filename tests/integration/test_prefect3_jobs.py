"""Jobs at a real Prefect 3 server: what to run, put together from pool, deployment and run; logs and marks."""

import uuid
from pathlib import Path

import pytest

from flowfleet.api.client import LogLine, StateType
from flowfleet.errors import RunGone, UnsupportedRun
from tests.integration.claiming import ago
from tests.integration.one_pool import MARK
from tests.waiting import until


def test_a_plain_run_is_the_engine_in_a_folder_of_its_own(pool):
    run = pool.create_run(pool.deployment())
    job = pool.client.jobs.job(run)
    assert (job.command, job.env, job.working_dir) == (None, {}, None)
    assert job.pool == pool.name
    assert job.state.kind is StateType.SCHEDULED
    command = pool.client.jobs.engine_command
    assert command("/x/python", job, "3.4.1", Path("/shim")) == ("/x/python", "/shim/prefect3_engine.py")
    assert command("python", job, "") == ("python", "-m", "prefect.engine")
    env = job.engine_env
    assert env["PREFECT_API_URL"] == pool.api_url
    assert env["PREFECT__FLOW_RUN_ID"] == run
    assert env["PREFECT__FLOW_NAME"] == job.flow_name
    assert env["PREFECT__DEPLOYMENT_ID"] == job.deployment_id


def test_job_variables_of_deployment_and_run_come_together(pool):
    variable = f"v_{uuid.uuid4().hex[:8]}"
    pool.call("POST", "/variables/", {"name": variable, "value": "looked up"})
    deployment = pool.deployment(
        job_variables={
            "command": "uv run --with 'a b' python -m prefect.engine",
            "env": {"A": "deployment", "B": "deployment", "V": f"{{{{ prefect.variables.{variable} }}}}", "N": None},
            "memory": "2g",
        }
    )
    run = pool.create_run(deployment, job_variables={"env": {"B": "run"}, "working_dir": "/srv/x", "cpus": 0.5})
    job = pool.client.jobs.job(run)
    assert job.command == ("uv", "run", "--with", "a b", "python", "-m", "prefect.engine")
    assert job.env == {"A": "deployment", "B": "run", "V": "looked up"}
    assert job.working_dir == "/srv/x"
    assert (job.variables["memory"], job.variables["cpus"]) == ("2g", 0.5)


def test_what_cannot_be_resolved_is_named(pool):
    run = pool.create_run(pool.deployment(job_variables={"env": {"X": "{{ prefect.blocks.secret.no-such }}"}}))
    with pytest.raises(UnsupportedRun, match="job variable env, X: there is no block 'no-such' of type 'secret'"):
        pool.client.jobs.job(run)
    run = pool.create_run(pool.deployment(), job_variables={"env": {"X": "{{ prefect.variables.no_such_one }}"}})
    job = pool.client.jobs.job(run)
    assert job.env == {"X": ""}
    assert "no Prefect variable 'no_such_one'" in job.remarks[0]


def test_a_deleted_run_is_gone(pool):
    for ask in (pool.client.jobs.job, lambda run: pool.client.claims.started(run, MARK, 1)):
        with pytest.raises(RunGone, match="does not exist any more"):
            ask(str(uuid.uuid4()))


def test_a_claimed_run_whose_deployment_was_deleted_says_so(pool):
    """The server deletes what is Scheduled with the deployment, but not what is claimed."""
    deployment = pool.deployment()
    run = pool.create_run(deployment)
    pool.claimed(run)
    pool.call("DELETE", f"/deployments/{deployment}")
    with pytest.raises(UnsupportedRun, match=r"the deployment of the run .* was deleted"):
        pool.client.jobs.job(run)


def test_the_second_run_of_a_deployment_asks_only_for_itself(pool):
    deployment = pool.deployment()
    first, second = (pool.create_run(deployment) for _ in range(2))
    asked: list[str] = []
    get = pool.client.session.get
    pool.client.session.get = lambda path, **options: asked.append(path) or get(path, **options)
    pool.client.jobs.job(first)
    asked.clear()
    pool.client.jobs.job(second)
    assert asked == [f"/flow_runs/{second}"]


def test_changes_are_seen_after_half_a_minute(pool):
    now = [1000.0]
    client = pool.another_client(clock=lambda: now[0])
    deployment = pool.deployment()
    run = pool.create_run(deployment)
    assert client.jobs.job(run).env == {}
    pool.call("PATCH", f"/deployments/{deployment}", {"job_variables": {"env": {"A": "new"}}})
    assert client.jobs.job(run).env == {}
    now[0] += 31
    assert client.jobs.job(run).env == {"A": "new"}


def test_our_lines_stand_on_the_runs_log_page(pool):
    run = pool.create_run(pool.deployment())
    lines = [LogLine(run_id=run, message=f"line {number}", at=ago(3 - number)) for number in range(3)]
    pool.client.log(lines)
    pool.client.log([])
    until(lambda: pool.logs(run) == ["line 0", "line 1", "line 2"], 10, "three lines in order")


def test_the_states_of_many_runs_are_one_request(pool):
    deployment = pool.deployment()
    runs = [pool.create_run(deployment) for _ in range(3)]
    pool.set_state(runs[1], "CRASHED")
    missing = str(uuid.uuid4())
    states = pool.client.ends.states([*runs, missing])
    assert [states[run].kind for run in runs] == [StateType.SCHEDULED, StateType.CRASHED, StateType.SCHEDULED]
    assert missing not in states
