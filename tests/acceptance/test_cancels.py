"""Cancels at a real server: what a user sees in the history, and that hooks, tree and slot are what they should be."""

import pytest

from tests import processes
from tests.waiting import until
from tests.world import flows_prefect

HOOKS = """
        def cancelled(flow, flow_run, state):
            note(f"hook-in-{state.name}")

        async def cancelled_too(flow, flow_run, state):
            note("async-hook")

        def crashed(flow, flow_run, state):
            note("crash-hook")

        @flow(on_cancellation=[cancelled, cancelled_too], on_crashed=[crashed])
"""
FLOWS = {
    "sleeps": """
        def go():
            import prefect
            note(f"prefect-{prefect.__version__}")
            note("ran")
            time.sleep(600)
    """,
    "has a deaf child in a session of its own": """
        def go():
            import subprocess, sys
            deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
            child.stdout.readline()
            note(f"child-{child.pid}")
            note("ran")
            time.sleep(600)
    """,
    "goes on all the same": """
        def go():
            note("ran")
            while True:
                try:
                    time.sleep(600)
                except BaseException:
                    note("swallowed")
    """,
}
#: the first prefect whose engine runs them where it writes Crashed itself below a worker
RUNS_CRASH_HOOKS = (3, 8, 4)
#: the state in which a run waits → its flow: in its process, or (Suspended) with none
WAITING = {
    "Paused": f"""{HOOKS.rstrip()}
        def go():
            from prefect.flow_runs import pause_flow_run
            note("ran")
            pause_flow_run(timeout=600)
    """,
    "Suspended": f"""{HOOKS.rstrip()}
        def go():
            from prefect.flow_runs import suspend_flow_run
            note("ran")
            suspend_flow_run(timeout=600)
    """,
    "AwaitingRetry": f"""{HOOKS.rstrip()[:-1]}, retries=1, retry_delay_seconds=600)
        def go():
            note("ran")
            raise ValueError("once more")
    """,
}
PARENT = f"""{HOOKS.rstrip()}
        def go(child):
            from uuid import UUID
            from prefect.deployments import run_deployment
            note("ran")
            run_deployment(UUID(child), poll_interval=1)
"""


def cancel(fleet, run):
    """As a user does in the UI."""
    state = {"type": "CANCELLING", "name": "Cancelling"}
    answer = fleet.api.call("POST", f"/flow_runs/{run}/set_state", {"state": state})
    # the server makes what has no process Cancelled instead
    assert answer["status"] == "ACCEPT" or answer["state"]["type"] == "CANCELLED"


def cancel_by_command(fleet, run):
    """As a user does at a shell."""
    done = fleet.command("flowfleet", "cancel", run, seconds=120)
    assert (done.returncode, "is Cancelled" in done.stdout) == (0, True), done.stdout + done.stderr


def child_of(fleet, deployment):
    """The one run of the deployment that a parent starts, once its flow runs."""
    asked = {"deployments": {"id": {"any_": [deployment]}}}
    (run,) = until(lambda: fleet.api.call("POST", "/flow_runs/filter", asked), 120, "the child", pause=0.5)
    fleet.runs.append(run["id"])
    fleet.wait_note(run["id"], "ran", seconds=120)
    return run["id"]


def hooks_of(fleet, run):
    """How often each of its hooks has run."""
    words = fleet.words(run)
    return [words.count(word) for word in ("hook-in-Cancelling", "async-hook", "crash-hook")]


def test_a_user_s_cancel_ends_as_cancelled_with_the_tree_gone_and_each_hook_run_once(fleet):
    fleet.start_poller()
    fleet.start_worker("worker", "--stop-grace", "3", slots=len(FLOWS))
    runs = {name: fleet.create_run(fleet.deploy(HOOKS.rstrip() + source)) for name, source in FLOWS.items()}
    for run in runs.values():
        fleet.wait_note(run, "ran", seconds=120)
    pids = [int(words[1]) for run in runs.values() for words in fleet.notes(run) if words[0] == "ran"]
    pids += [int(word[6:]) for run in runs.values() for word in fleet.words(run) if word.startswith("child-")]
    for run in runs.values():
        cancel(fleet, run)
    for name, run in runs.items():
        fleet.wait_state(run, "Cancelled", seconds=120)
        assert fleet.api.history(run)[-3:] == ["Running", "Cancelling", "Cancelled"], name
        assert hooks_of(fleet, run) == [1, 1, 0], name
        message = fleet.api.state(run)["message"]
        assert message.startswith("Cancelled at the Prefect API. ")
        assert "was stopped since it was cancelled" in message
    fleet.wait_empty()
    assert not any(map(processes.alive, pids))
    assert fleet.status()["counts"]["free_slots"] == len(FLOWS)
    assert f"prefect-{flows_prefect()}" in fleet.words(runs["sleeps"]), "these are runs of another prefect"


@pytest.mark.slow
@pytest.mark.parametrize("by", [cancel_by_command, cancel])
def test_a_run_that_waits_in_its_process_or_has_left_it_is_cancelled_and_its_hooks_run_where_it_had_one(fleet, by):
    fleet.start_poller()
    fleet.start_worker("worker", "--stop-grace", "3", slots=len(WAITING))
    runs = {state: fleet.create_run(fleet.deploy(source)) for state, source in WAITING.items()}
    for state, run in runs.items():
        fleet.wait_state(run, state, seconds=180)
    pids = [int(fleet.wait_note(run, "ran")[1]) for run in runs.values()]
    gone = runs["Suspended"]
    until(lambda: gone not in [run["run_id"] for run in fleet.seen()["runs"]], 60, "its claim to go", pause=0.2)
    for run in runs.values():
        by(fleet, run)
    for state, run in runs.items():
        fleet.wait_state(run, "Cancelled", seconds=120)
        told = ["Cancelled"] if state == "Suspended" else ["Cancelling", "Cancelled"]
        assert fleet.api.history(run)[-len(told) - 2 :] == ["Running", state, *told]
        assert hooks_of(fleet, run) == ([0, 0, 0] if state == "Suspended" else [1, 1, 0]), state
    fleet.wait_empty()
    assert not any(map(processes.alive, pids))


@pytest.mark.slow
def test_a_cancelled_parent_takes_the_run_of_a_deployment_with_it_that_it_waits_for(fleet):
    fleet.start_poller()
    fleet.start_worker("worker", "--stop-grace", "3", slots=2)
    child = fleet.deploy(HOOKS.rstrip() + FLOWS["sleeps"])
    parent = fleet.create_run(fleet.deploy(PARENT), {"child": child})
    below = child_of(fleet, child)
    pids = [int(fleet.wait_note(run, "ran")[1]) for run in (parent, below)]
    cancel(fleet, parent)
    for run in (parent, below):
        fleet.wait_state(run, "Cancelled", seconds=120)
        assert fleet.api.history(run)[-3:] == ["Running", "Cancelling", "Cancelled"]
        assert hooks_of(fleet, run) == [1, 1, 0]
    fleet.wait_empty()
    assert not any(map(processes.alive, pids))


def test_the_crash_hook_of_a_killed_engine_runs_once_and_another_s_end_is_left_alone(fleet):
    fleet.start_poller()
    fleet.start_worker(slots=2)
    killed = fleet.create_run(fleet.deploy(HOOKS.rstrip() + FLOWS["sleeps"]))
    leaves = """
        def go():
            note("ran")
            raise SystemExit(3)
    """
    left = fleet.create_run(fleet.deploy(HOOKS.rstrip() + leaves))
    fleet.wait_note(killed, "ran", seconds=120)
    fleet.kill_engine(killed)
    for run in (killed, left):
        fleet.wait_state(run, "Crashed", seconds=120)
    fleet.wait_empty(60)
    # an older engine that writes Crashed itself leaves these hooks to a worker of its own version
    by_itself = tuple(map(int, flows_prefect().split("."))) >= RUNS_CRASH_HOOKS
    for run, hooks in ((killed, 1), (left, int(by_itself))):
        assert fleet.api.history(run)[-1] == "Crashed"
        assert fleet.words(run).count("crash-hook") == hooks
        assert "async-hook" not in fleet.words(run)
