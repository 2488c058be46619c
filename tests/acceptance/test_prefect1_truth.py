"""The local Prefect 1 API against the real, unmodified prefect 1.4.1: only what these show does it claim to be.

What a run of the real agent leaves there is in `test_prefect1_runs.py`, beside one of the fleet.
"""

from collections.abc import Iterator

import pytest

from tests import processes
from tests.prefect1_api import Faults, Prefect1Api
from tests.prefect1_client import ClientError, Prefect1Client
from tests.prefect1_env import FLOWS, flows_by_name, python
from tests.prefect1_world import World1
from tests.valkey import Valkey
from tests.waiting import until

GOOD = ["Scheduled", "Submitted", "Running", "Success"]


@pytest.fixture(scope="module")
def reality(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[World1]:
    """All flows, and one real agent (labels real, more)."""
    world = World1(tmp_path_factory.mktemp("truth"), valkey.tcp_url)
    try:
        world.flows = world.real.register()
        world.real.settings["PREFECT__CLOUD__AGENT__LEVEL"] = "DEBUG"
        world.real.start_agent(("real", "more"))
        yield world
    finally:
        world.close()


def ended(world: World1, run_id: str, kind: str = "Success") -> list[str]:
    """Wait for its end, which is of this kind; the answer is its history."""
    assert world.wait_end(run_id) == kind, [*world.api.states(run_id), *world.api.logs(run_id)]
    return world.api.history(run_id)


def poked(world: World1) -> None:
    world.real.agents[0].polling().poke()


def test_the_real_client_registers_every_flow_with_its_tasks_edges_and_labels(reality):
    api = reality.api
    rows = {name: api.rows("flow", id=flow_id)[0] for name, flow_id in reality.flows.items()}
    tasks = [task["slug"] for task in api.rows("task", flow_id=reality.flows["mapped"])]
    edges = api.rows("edge", flow_id=reality.flows["mapped"])

    assert {row["name"] for row in rows.values()} == set(flows_by_name())
    assert sorted(tasks) == ["double-1", "numbers-1", "total-1"]
    assert sorted((edge["key"], edge["mapped"]) for edge in edges) == [("doubled", False), ("number", True)]
    assert rows["script"]["storage"]["stored_as_script"] is True
    assert rows["plain"]["storage"]["stored_as_script"] is False
    assert {tuple(row["run_config"]["labels"]) for row in rows.values()} == {("real",)}
    assert {row["core_version"] for row in rows.values()} == {"1.4.1"}


def test_a_flow_that_cannot_be_loaded_fails_with_a_log_that_came_as_one_object(reality, tmp_path):
    path = tmp_path / "gone.py"
    path.write_text('from prefect import Flow\nwith Flow("gone") as flow:\n    pass\n')
    run = reality.real.create_run(reality.real.register(str(path), script=True)["gone"])
    path.unlink()
    poked(reality)

    assert ended(reality, run, "Failed") == ["Scheduled", "Submitted", "Failed"]
    assert "Failed to load and execute flow run" in reality.api.states(run)[-1]["message"]
    # it writes the state first
    until(lambda: "ERROR" in {log["level"] for log in reality.api.logs(run)}, 20, "the log of the failure")
    assert [log["name"] for log in reality.api.logs(run) if log["level"] == "ERROR"] == ["execute flow-run"]
    [entry] = [each.variables["input"]["logs"] for each in reality.api.requests if "execute flow-run" in str(each)]
    assert isinstance(entry, dict)


def test_two_real_agents_that_claim_one_run_at_once_start_it_once(reality):
    agents = [reality.real.start_agent(("race",), name=name) for name in ("first", "second")]
    for agent in agents:
        agent.polling()
    reality.api.faults.held("set_flow_run_states", times=2)
    before = reality.api.counted("set_flow_run_states")
    run = reality.create_run(reality.flows["plain"], labels=["race"])
    try:
        for agent in agents:
            agent.poke()
        # each has read the queue, and both claims are held before either is done
        until(lambda: reality.api.counted("set_flow_run_states") == before + 2, 14, "both claims")
        assert reality.api.history(run) == ["Scheduled"]
        reality.api.faults.release()
        assert ended(reality, run) == GOOD
        until(lambda: any("Completed deployment" in agent.all_text() for agent in agents), 30, "the winner to say so")
    finally:
        reality.api.faults.heal()
        for agent in agents:
            agent.close()
    said = [agent.all_text() for agent in agents]
    assert sorted("Completed deployment" in each for each in said) == [False, True]
    assert not any(" ERROR - " in each for each in said)


def test_a_lost_answer_makes_the_real_agent_give_up_a_run_that_it_owns(reality):
    claims = reality.api.counted("set_flow_run_states")
    reality.api.faults.lost("set_flow_run_states")
    run = reality.create_run(reality.flows["plain"])
    poked(reality)
    until(lambda: reality.api.counted("set_flow_run_states") >= claims + 2, 20, "the claim's repetition")

    polls = reality.api.counted("get_runs_in_queue")
    poked(reality)
    until(lambda: reality.api.counted("get_runs_in_queue") > polls, 20, "the agent's next poll")
    assert reality.api.history(run) == ["Scheduled", "Submitted"]
    assert f"Completed deployment of flow run {run}" not in reality.real.agents[0].all_text()


def test_the_real_agent_fetches_its_settings_and_ends_after_its_last_poll(reality):
    config = reality.api.add_agent_config({"labels": ["of the settings"]})
    agent = reality.real.start_agent((), "--agent-config-id", config, "--max-polls", "1", name="configured")
    assert agent.wait(60) == 0

    assert reality.api.counted("agent_config") == 1
    assert f"Loaded agent config {config}" in agent.all_text()
    [row] = [each for each in reality.api.agents() if each["name"] == "configured"]
    assert (row["agent_config_id"], row["labels"], row["type"]) == (config, [], "LocalAgent")
    assert row["last_queried"]
    assert row["core_version"] == "1.4.1"


def test_the_real_command_registers_a_file_and_the_second_time_finds_nothing_new(reality):
    argv = [str(python()), "-m", "prefect", "register", "--project", "by-command", "--path", str(FLOWS / "script.py")]
    reality.real.create_project("by-command")
    said = [processes.run(*argv, env=reality.real.environment(), seconds=120, check=True) for _ in range(2)]
    [project] = reality.api.rows("project", name="by-command")
    [flow] = reality.api.rows("flow", project_id=project["id"])
    tasks = reality.api.rows("task", flow_id=flow["id"])
    assert [task["slug"] for task in tasks] == ["where-1"]
    assert ["1 registered" in each.stdout or "1 skipped" in each.stdout for each in said] == [True, True], said


def test_the_real_client_meets_the_version_lock_and_the_refusal_of_a_second_submission(reality):
    run = reality.create_run(reality.flows["plain"], labels=["nobody"])
    assert reality.real.set_state(run, "Submitted", version=1) == "Submitted"

    with pytest.raises(ClientError, match="already been submitted") as twice:
        reality.real.set_state(run, "Submitted", version=1)
    with pytest.raises(ClientError, match="VERSION_LOCKING_ERROR") as old:
        reality.real.set_state(run, "Failed", version=1)

    assert (twice.value.kind, old.value.kind) == ("ClientError", "VersionLockMismatchSignal")
    assert reality.real.info(run)["version"] == 2


def test_the_real_client_of_a_tenant_with_a_key_sends_it_and_is_refused_without(tmp_path):
    python()
    with Prefect1Api(key="secret") as api:
        cloud = {"PREFECT__BACKEND": "cloud", "PREFECT__CLOUD__API_KEY": "secret"}
        with Prefect1Client(tmp_path / "right", api.url, cloud) as real:
            assert real.create_project("mine")
        assert api.requests[-1].headers["authorization"] == "Bearer secret"
        assert api.counted("auth_info") == 1
        wrong = cloud | {"PREFECT__CLOUD__API_KEY": "wrong"}
        with Prefect1Client(tmp_path / "wrong", api.url, wrong) as real, pytest.raises(ClientError) as refused:
            real.create_project("yours")
        assert refused.value.kind == "AuthorizationError"


def test_under_the_servers_own_rules_a_cancelled_run_can_be_submitted_again_and_the_command_lists_runs(tmp_path):
    python()
    with Prefect1Api(faults=Faults.like_server()) as api, Prefect1Client(tmp_path, api.url) as real:
        run = real.create_run(real.register("plain")["plain"])
        real.cancel(run)
        assert real.set_state(run, "Submitted", version=1) == "Submitted"
        with pytest.raises(ClientError, match="already been submitted"):
            real.set_state(run, "Submitted")
        api.clock.advance(31)
        real.set_state(run, "Submitted")
        argv = [str(python()), "-m", "prefect", "get", "flow-runs"]
        listed = processes.run(*argv, env=real.environment(), seconds=120)
        assert "brave-badger" in listed.stdout, listed.stderr
