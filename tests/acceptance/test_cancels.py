"""Cancels at a real server: what a user sees in the history, and that hooks, tree and slot are what they should be."""

from tests import processes

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


def cancel(fleet, run):
    """As a user does in the UI."""
    state = {"type": "CANCELLING", "name": "Cancelling"}
    assert fleet.api.call("POST", f"/flow_runs/{run}/set_state", {"state": state})["status"] == "ACCEPT"


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
        words = fleet.words(run)
        assert [words.count(word) for word in ("hook-in-Cancelling", "async-hook", "crash-hook")] == [1, 1, 0], name
        message = fleet.api.state(run)["message"]
        assert message.startswith("Cancelled at the Prefect API. ")
        assert "was stopped since it was cancelled" in message
    fleet.wait_empty()
    assert not any(map(processes.alive, pids))
    assert fleet.status()["counts"]["free_slots"] == len(FLOWS)


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
    for run in (killed, left):
        assert fleet.api.history(run)[-1] == "Crashed"
        assert fleet.words(run).count("crash-hook") == 1
        assert "async-hook" not in fleet.words(run)
