"""Prefect 1 flows, registered by the real client and run by the real engine, beside the real LocalAgent."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import folders, processes
from tests.prefect1_world import World1
from tests.waiting import until

VOLATILE = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|PID: \d+|\d{4}-\d\d-\d\d[Tt ][0-9:.+-]+|0x[0-9a-f]+|\b\d+(\.\d+)? ?(s|seconds)\b"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey: Any) -> Iterator[World1]:
    """A poller, two workers with labels of their own, a real LocalAgent, and all flows."""
    world = World1(tmp_path_factory.mktemp("prefect1"), valkey.tcp_url)
    try:
        world.flows = world.real.register(labels=["real"])
        world.start_poller()
        world.start_worker("one", "fleet", "one", options=["--env", "FROM_THE_AGENT=yes"])
        world.start_worker("two", "fleet", "two")
        world.real.start_agent(["real", "more"], env={"FROM_THE_AGENT": "yes"}).polling()
        yield world
    finally:
        world.close()


def plain(value: Any) -> Any:
    """A state or log line without what differs between any two runs: ids, times, pids, and our stamp."""
    if isinstance(value, dict):
        skipped = ("context", "start_time", "timestamp")
        return {name: plain(item) for name, item in value.items() if name not in skipped}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return VOLATILE.sub("…", value) if isinstance(value, str) else value


def told(world: World1, run_id: str) -> dict[str, Any]:
    """All that the API knows of a run in the end."""
    tasks = {
        (task["slug"], task["map_index"]): [
            plain(row["serialized_state"])
            for row in world.api.rows("task_run_state", "version", task_run_id=task["id"])
        ]
        for task in world.api.task_runs(run_id)
    }
    # an agent's lines bear its name, and ours are those of the worker
    names = {"one": "agent", "two": "agent"}
    logs = sorted(
        (names.get(line["name"], line["name"]), line["level"], plain(line["message"]))
        for line in world.api.logs(run_id)
    )
    return {"states": [plain(state) for state in world.api.states(run_id)], "tasks": tasks, "logs": logs}


RAN = ["Pending", "Running", "Success"]
CHILDREN = {("double", index): RAN for index in range(3)}


@pytest.mark.parametrize(
    ("flow", "end", "tasks"),
    [
        ("plain", "Success", {("one", -1): RAN}),
        (
            "mapped",
            "Success",
            {("numbers", -1): RAN, ("double", -1): ["Pending", "Mapped"], ("total", -1): RAN, **CHILDREN},
        ),
        ("retry", "Success", {("second_time", -1): ["Pending", "Running", "Failed", "Retrying", "Running", "Success"]}),
        ("parameters", "Success", None),
        ("script", "Success", None),
        ("failing", "Failed", None),
    ],
)
def test_a_run_of_the_fleet_leaves_at_the_api_what_one_of_the_real_agent_leaves(world, tmp_path, flow, end, tasks):
    given = {
        "parameters": {"parameters": {"first": 40, "out": str(tmp_path / "out")}},
        "plain": {"run_config": {"env": {"PREFECT__CLOUD__HEARTBEAT_MODE": "process"}}},
    }.get(flow, {})
    ours = world.create_run(world.flows[flow], labels=["fleet"], **given)
    theirs = world.create_run(world.flows[flow], labels=["real"], **given)
    (agent,) = world.real.agents
    if flow == "retry":
        # it would start the run again when its engine takes three seconds more than the retry's time
        world.wait_state(theirs, "Running", end)
        agent.signal(signal.SIGSTOP)
    try:
        assert (world.wait_end(ours), world.wait_end(theirs)) == (end, end)
    finally:
        agent.signal(signal.SIGCONT)
    # an engine sends its last lines after its last state, and an agent its one when it comes to it
    for run_id in (ours, theirs):
        for words in ("PID: ", f"Flow run {end.upper()}"):
            until(lambda run_id=run_id, words=words: words in str(world.lines(run_id)), 30, f"{words} on the log page")
    until(lambda: len(world.api.logs(ours)) == len(world.api.logs(theirs)), 20, "the last log lines of both")
    assert told(world, ours) == told(world, theirs)
    assert world.api.history(theirs) == ["Scheduled", "Submitted", "Running", end]
    assert tasks in (None, tasks_of(world, theirs))
    assert flow != "parameters" or (tmp_path / "out").read_text() == "42"
    if flow == "plain":
        logs = {log["name"]: log["message"] for log in world.api.logs(theirs)}
        assert logs["agent"].startswith("Submitted for execution: PID: ")
        assert set(logs) == {"agent", "prefect.CloudFlowRunner", "prefect.CloudTaskRunner"}
        (real,) = [row["id"] for row in world.api.agents() if row["labels"] == ["more", "real"]]
        assert world.api.run(theirs)["agent_id"] == real


def tasks_of(world: World1, run_id: str) -> dict[tuple[str, int], list[str]]:
    """Task and map index -> what it went through."""
    return {
        (task["slug"].removesuffix("-1"), task["map_index"]): world.api.task_history(task["id"])
        for task in world.api.task_runs(run_id)
    }


def test_a_cached_result_is_taken_by_the_next_run_wherever_it_runs(world):
    first = world.create_run(world.flows["cached"], labels=["real"])
    assert world.wait_end(first) == "Success"
    for label in ("fleet", "more"):
        second = world.create_run(world.flows["cached"], labels=[label])
        assert world.wait_end(second) == "Success"
        assert "Cached" in tasks_of(world, second)[("costly", -1)]
    assert world.api.history(first) == world.api.history(second) == ["Scheduled", "Submitted", "Running", "Success"]


def test_a_run_goes_to_the_worker_that_has_its_labels(world, tmp_path):
    for name in ("one", "two"):
        out = tmp_path / name
        run_id = world.create_run(world.flows["environment"], labels=["fleet", name], parameters={"out": str(out)})
        assert world.wait_end(run_id) == "Success"
        labels = json.loads(out.read_text())["environ"]["PREFECT__CLOUD__AGENT__LABELS"]
        assert labels == repr(sorted(["fleet", name]))


def test_the_environment_of_a_run_is_that_of_the_reference(world, tmp_path):
    seen = {}
    for label in ("fleet,one", "real"):
        out = tmp_path / label
        config = {"env": {"OF_THE_RUN": "1"}, "working_dir": str(tmp_path), "labels": label.split(",")}
        run_id = world.create_run(
            world.flows["environment"], labels=label.split(","), parameters={"out": str(out)}, run_config=config
        )
        assert world.wait_end(run_id) == "Success"
        seen[label] = json.loads(out.read_text())
    ours, theirs = seen["fleet,one"], seen["real"]
    names = {name for name in {**ours["environ"], **theirs["environ"]} if name.startswith("PREFECT__")}
    own = {"PREFECT__CONTEXT__FLOW_RUN_ID", "PREFECT__CLOUD__AGENT__LABELS", "PREFECT__HOME_DIR"}
    own |= {"PREFECT__USER_CONFIG_PATH"}
    for name in sorted(names - own):
        assert ours["environ"].get(name) == theirs["environ"].get(name), name
    assert ours["cwd"] == theirs["cwd"] == str(tmp_path)
    assert theirs["argv"][1:] == ["execute", "flow-run"]
    assert theirs["environ"]["PREFECT__CONTEXT__FLOW_RUN_ID"] == run_id
    wanted = {
        "FROM_THE_AGENT": "yes",
        "OF_THE_RUN": "1",
        "PREFECT__CONTEXT__FLOW_ID": world.flows["environment"],
        "PREFECT__CLOUD__API": world.api.url,
        "PREFECT__CLOUD__AGENT__LABELS": "['more', 'real']",
        "PREFECT__CLOUD__USE_LOCAL_SECRETS": "false",
        "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS": "prefect.engine.cloud.CloudFlowRunner",
        "PREFECT__BACKEND": "server",
    }
    assert {name: theirs["environ"].get(name) for name in wanted} == wanted
    assert ours["environ"]["PYTHONPATH"].split(":")[0] == str(tmp_path)
    assert ours["environ"]["OF_THE_RUN"] == "1"
    assert ours["environ"]["FROM_THE_AGENT"] == "yes"
    assert not [name for name in ours["environ"] if name.startswith("FLOWFLEET_") and "REDIS" in name]


@pytest.mark.parametrize("key", [None, "the-key"])
def test_every_row_of_the_reference_s_table_stands_inside_a_run(world, tmp_path, key):
    label = f"keyed-{key}"
    env = {"PREFECT__BACKEND": "server", **({"PREFECT__CLOUD__API_KEY": key} if key else {})}
    world.start_worker(label, "z", label, "a", env=env)
    run_id = world.create_run(
        world.flows["environment"], labels=["a", label], parameters={"out": str(tmp_path / "out")}
    )
    assert world.wait_end(run_id) == "Success"
    seen = json.loads((tmp_path / "out").read_text())["environ"]

    table = {
        "PREFECT__LOGGING__LEVEL": "INFO",
        "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "true",
        "PREFECT__CLOUD__HEARTBEAT_MODE": "thread",
        "PREFECT__BACKEND": "server",
        "PREFECT__CLOUD__API": world.api.url,
        "PREFECT__CLOUD__API_KEY": key,
        "PREFECT__CLOUD__TENANT_ID": world.api.tenant if key else None,
        "PREFECT__CLOUD__AGENT__LABELS": repr(["a", label, "z"]),
        "PREFECT__CONTEXT__FLOW_RUN_ID": run_id,
        "PREFECT__CONTEXT__FLOW_ID": world.flows["environment"],
        "PREFECT__CLOUD__USE_LOCAL_SECRETS": "false",
        "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS": "prefect.engine.cloud.CloudFlowRunner",
    }
    assert {name: seen.get(name) for name in table} == table


@pytest.mark.parametrize("warm", ["--warm-start", "--no-warm-start"])
def test_a_server_behind_a_login_is_polled_and_its_runs_log_in_as_well(world1, warm):
    flow = world1.real.register("plain")["plain"]
    world1.api.login = "ann:pass/of@ann"
    behind = world1.api.url.replace("://", "://ann:pass%2Fof%40ann@")
    world1.start_poller(env={"FLOWFLEET_API": behind})
    worker = world1.start_worker("w", "x", options=(warm, "--log-level", "DEBUG"), env={"FLOWFLEET_API": behind})
    if warm == "--warm-start":
        until(lambda: "warm parent" in worker.text(), 60, "the warm parent")
    run_id = world1.api.add_run(flow, labels=["x"])
    assert world1.wait_end(run_id) == "Success"
    world1.wait_empty()
    assert "run starts cold" not in worker.text()
    logs = folders.found(world1.folder, "**/*.log")
    assert worker.log in logs
    assert not [log for log in logs if re.search("of(@|%40)ann", log.read_text(errors="replace"))]


def waiting(world: World1, folder: Path, label: str = "fleet", **given: Any) -> str:
    """A run that makes the file `begun`, and waits."""
    files = {name: str(folder / name) for name in ("begun", "until")}
    return world.create_run(world.flows["waiting"], labels=[label], parameters=files, **given)


@pytest.mark.parametrize("label", ["fleet", "real"])
def test_a_running_run_that_is_cancelled_at_the_api_ends_cancelled_by_its_own_engine(world, tmp_path, label):
    run_id = waiting(world, tmp_path, label)
    until((tmp_path / "begun").exists, 60, "the task to begin")
    assert world.real.cancel(run_id)
    assert world.wait_end(run_id) == "Cancelled"
    assert world.api.history(run_id) == ["Scheduled", "Submitted", "Running", "Cancelling", "Cancelled"]
    world.wait_empty()
    assert world.api.state(run_id) == "Cancelled"


def test_a_run_that_is_cancelled_while_it_waits_for_its_time_never_starts(world, tmp_path):
    run_id = waiting(world, tmp_path, due_in=20)
    asked = world.api.counted("get_runs_in_queue")
    until(lambda: world.api.counted("get_runs_in_queue") > asked, 20, "the run to be listed")
    assert world.real.cancel(run_id)
    assert [task["state"] for task in world.api.task_runs(run_id)] == ["Cancelled"] * 3
    witness = world.create_run(world.flows["plain"], labels=["fleet"], due_in=21)
    assert world.wait_end(witness, 90) == "Success"
    assert world.api.history(run_id) == ["Scheduled", "Cancelled"]
    assert not (tmp_path / "begun").exists()


def test_a_flow_process_that_is_killed_is_failed_with_its_exit_within_seconds_and_its_helper_gone(world, tmp_path):
    """Its heartbeat helper kept a dead run alive."""
    config = {"env": {"PREFECT__CLOUD__HEARTBEAT_MODE": "process"}, "labels": ["fleet"]}
    run_id = waiting(world, tmp_path, run_config=config)
    until((tmp_path / "begun").exists, 60, "the task to begin")

    marked = lambda: processes.marked("PREFECT__CONTEXT__FLOW_RUN_ID", run_id)  # noqa: E731
    helper = lambda: [pid for pid, what in marked().items() if "heartbeat" in what]  # noqa: E731
    (beating,) = until(helper, 30, "the heartbeat helper")
    world.kill_engine(run_id)
    world.wait_state(run_id, "Failed", seconds=20)  # a server that counts heartbeats takes ten minutes
    assert not processes.alive(beating)
    assert marked() == {}
    assert "killed by SIGKILL" in world.message(run_id)
    assert [task["state"] for task in world.api.task_runs(run_id) if task["slug"].startswith("wait")] == ["Failed"]


@pytest.mark.parametrize("label", ["fleet", "real"])
def test_a_retry_after_ten_minutes_is_resumed_when_its_time_has_come(world, label):
    run_id = world.create_run(world.flows["late_retry"], labels=[label])
    until(lambda: tasks_of(world, run_id)[("second_time", -1)][-1] == "Retrying", 60, "the task to wait for its retry")
    world.wait_empty()  # its process has ended, and the run is not held against it
    assert world.api.state(run_id) == "Running"
    assert not [line for line in world.lines(run_id) if "exited" in line]
    (task,) = world.api.task_runs(run_id)
    state = {**task["serialized_state"], "start_time": "2026-01-01T00:00:00+00:00"}
    with world.api.lock:
        world.api.writer.put("task_run", task["id"], state)
    assert world.wait_end(run_id) == "Success"
    assert tasks_of(world, run_id)[("second_time", -1)][-3:] == ["Submitted", "Running", "Success"]
    assert world.api.history(run_id) == ["Scheduled", "Submitted", "Running", "Success"]
