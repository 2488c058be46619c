"""The local Prefect 1 API over HTTP: rules of states, queue and cancel, strict and as Server has them."""

from datetime import timedelta

import pytest
import requests

from tests.prefect1_plain import Prefect1Plain

ALREADY = "State update failed: this run has already been submitted."


# states


def test_a_state_raises_the_version_and_is_kept_with_its_history(api, asker, run):
    answer = asker.set_states((run, "Running", 1))

    assert answer == {"data": {"set_flow_run_states": {"states": [{"id": run, "status": "SUCCESS", "message": None}]}}}
    row = api.run(run)
    assert (row["state"], row["version"], row["serialized_state"]) == ("Running", 2, {"type": "Running"})
    assert row["heartbeat"]
    assert row["state_start_time"] is None
    assert api.history(run) == ["Scheduled", "Running"]


def test_a_second_submission_is_refused_whatever_version_it_brings(api, asker, run):
    assert "errors" not in asker.set_states((run, "Submitted", 1))

    for version in (1, 2, None):
        answer = asker.set_states((run, "Submitted", version))
        assert answer["data"] == {"set_flow_run_states": None}
        assert [error["message"] for error in answer["errors"]] == [ALREADY]
    assert api.history(run) == ["Scheduled", "Submitted"]


def test_a_cancelled_run_cannot_be_submitted(api, asker, run):
    api.cancel(run)
    assert "State update failed" in asker.set_states((run, "Submitted", None))["errors"][0]["message"]


def test_a_state_over_a_finished_one_is_taken(api, asker, run):
    api.write(run, "Success")
    assert "errors" not in asker.set_states((run, "Running", None))
    assert api.state(run) == "Running"


@pytest.mark.parametrize(
    "state", [{"type": "Lost"}, {"message": "none"}, {"type": "Failed", "message": "x" * 1_000_001}]
)
def test_what_is_no_state_or_too_large_is_refused(api, asker, run, state):
    answer = asker.mutation(
        "set_flow_run_states", "states { id }", states={"flow_run_id": run, "version": 1, "state": state}
    )
    assert "State update failed" in answer["errors"][0]["message"]
    assert api.history(run) == ["Scheduled"]


def test_a_list_fails_as_a_whole_while_the_rest_of_it_is_applied(api, asker):
    flow = api.add_flow()
    first, second, third = (api.add_run(flow) for _ in range(3))
    api.write(second, "Submitted")
    answer = asker.set_states((first, "Submitted", 1), (second, "Submitted", 1), (third, "Submitted", 1))

    assert answer["data"] == {"set_flow_run_states": None}
    assert len(answer["errors"]) == 1
    assert [api.state(run) for run in (first, second, third)] == ["Submitted"] * 3
    assert len(api.history(second)) == 2


def test_submitted_notes_the_agent_of_the_header_and_other_states_leave_it(api, asker):
    agent = asker.done("register_agent", "id", tenant_id=api.tenant, type="LocalAgent", name="a", labels=[])["id"]
    run = api.add_run(api.add_flow())
    Prefect1Plain(api.url, agent).set_states((run, "Submitted", 1))
    asker.set_states((run, "Running", 2))
    assert api.run(run)["agent_id"] == agent
    assert api.requests[1].headers["x-prefect-agent-id"] == agent


def test_a_task_runs_only_while_its_flow_does(api, asker, run):
    [task_run] = api.task_runs(run)
    state = {"task_run_id": task_run["id"], "version": 1, "state": {"type": "Running"}}
    refused = asker.mutation("set_task_run_states", "states { id }", states=state)
    assert refused["errors"][0]["message"].startswith("State update failed")

    api.write(run, "Running")
    assert asker.done("set_task_run_states", "states { id }", states=state) == {"states": [{"id": task_run["id"]}]}


def test_a_mapped_child_is_made_with_version_0_and_found_again(api, asker, run):
    given = {"flow_run_id": run, "task_id": api.task_runs(run)[0]["task_id"], "map_index": 3}
    first = asker.done("get_or_create_task_run_info", "id version serialized_state", **given)
    assert (first["version"], first["serialized_state"]["type"]) == (0, "Pending")
    assert asker.done("get_or_create_task_run_info", "id version serialized_state", **given) == first


# queue, cancel, creation, agents


def test_the_queue_gives_due_runs_of_the_tenant_the_longest_due_first(api, asker):
    flow, now = api.add_flow(), api.clock()
    late, early = api.add_run(flow, start=now), api.add_run(flow, start=now - timedelta(hours=1))
    api.add_run(flow, start=now + timedelta(hours=1))
    api.add_run(api.add_flow("theirs", tenant=api.add_tenant("other")))
    done = api.add_run(flow)
    api.write(done, "Submitted")

    assert asker.queue(api.tenant, before=now.isoformat()) == [early, late]


def test_a_running_run_is_in_the_queue_again_when_a_task_of_it_is_due(api, asker, run):
    api.write(run, "Running")
    assert asker.queue(api.tenant) == []
    api.write_task(run, "Retrying", start_time=api.clock().isoformat())
    assert asker.queue(api.tenant) == [run]


def test_the_same_agent_keeps_its_id_and_another_label_makes_another(api, asker):
    facts = {"tenant_id": api.tenant, "type": "LocalAgent", "name": "a"}
    first = asker.done("register_agent", "id", labels=["a", "b"], **facts)
    assert asker.done("register_agent", "id", labels=["b", "a"], **facts) == first
    assert asker.done("register_agent", "id", labels=["b"], **facts) != first


@pytest.mark.parametrize(
    ("before", "after"),
    [("Scheduled", "Cancelled"), ("Submitted", "Cancelled"), ("Running", "Cancelling"), ("Success", "Success")],
)
def test_cancel_asks_a_running_run_ends_a_waiting_one_and_leaves_a_finished_one(api, asker, run, before, after):
    api.write(run, before)
    assert asker.done("cancel_flow_run", "state", flow_run_id=run) == {"state": after}
    assert [each["state"] for each in api.task_runs(run)] == ["Cancelled" if after == "Cancelled" else "Pending"]


def test_a_known_idempotency_key_gives_the_old_run(api, asker):
    flow = api.add_flow()
    first = asker.done("create_flow_run", "id", flow_id=flow, idempotency_key="k")
    assert asker.done("create_flow_run", "id", flow_id=flow, idempotency_key="k") == first
    assert asker.done("create_flow_run", "id", flow_id=flow, idempotency_key="l") != first


def test_labels_of_a_run_are_its_own_else_its_run_configs_else_the_flows(api):
    flow = api.add_flow(run_config={"type": "LocalRun", "labels": ["flow"]})
    config = {"type": "LocalRun", "labels": ["config"]}
    assert api.run(api.add_run(flow))["labels"] == ["flow"]
    assert api.run(api.add_run(flow, run_config=config))["labels"] == ["config"]
    assert api.run(api.add_run(flow, run_config=config, labels=["b", "a"]))["labels"] == ["a", "b"]
    assert api.run(api.add_run(flow, run_config=config, labels=[]))["labels"] == []


def test_a_log_comes_in_a_list_or_alone(api, asker, run):
    entry = {"flow_run_id": run, "name": "agent", "message": "one", "level": "INFO"}
    assert asker.done("write_run_logs", "success", logs=[entry, {**entry, "message": "two"}]) == {"success": True}
    assert asker.done("write_run_logs", "success", logs={**entry, "message": "three"}) == {"success": True}
    assert [log["message"] for log in api.logs(run)] == ["one", "two", "three"]


def test_both_addresses_answer_and_no_other(api):
    ask = {"json": {"query": "{ hello }"}, "timeout": 10}
    found = [requests.post(api.url + path, **ask).status_code for path in ("", "/", "/graphql", "/api")]
    assert found == [200, 200, 200, 404]


# what Server does


def test_server_ignores_versions_and_remembers_a_submission_for_half_a_minute_only(loose_api):
    asker = Prefect1Plain(loose_api.url)
    run = loose_api.add_run(loose_api.add_flow())
    assert "errors" not in asker.set_states((run, "Submitted", 7))
    assert asker.set_states((run, "Submitted", 1))["errors"][0]["message"] == ALREADY
    loose_api.clock.advance(31)
    assert "errors" not in asker.set_states((run, "Submitted", 1))
    loose_api.writer.forget_submitted()
    assert "errors" not in asker.set_states((run, "Submitted", 1))
    assert loose_api.history(run) == ["Scheduled", "Submitted", "Submitted", "Submitted"]


def test_server_reads_75_rows_then_looks_at_labels_and_gives_25_ids(loose_api):
    asker = Prefect1Plain(loose_api.url)
    flow = loose_api.add_flow()
    others = [loose_api.add_run(flow, labels=["other"]) for _ in range(70)]
    mine = [loose_api.add_run(flow, labels=["mine"]) for _ in range(40)]

    assert asker.queue(loose_api.tenant, ["mine"]) == mine[:5]
    assert asker.queue(loose_api.tenant, ["other"]) == others[:25]
    loose_api.faults.queue_window = loose_api.faults.queue_ids = None
    assert asker.queue(loose_api.tenant, ["mine"]) == mine
