"""Ends: one poller, one worker, a real server and engine; each way a run can end, fully able and in plain mode."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import folders, processes
from tests.prefect_server import PrefectServer
from tests.valkey import Valkey
from tests.waiting import until
from tests.world import World
from workers.host import Abilities

FLOWS: dict[str, str] = {
    "parameters": """
        @flow
        def go(name: str, times: int = 2):
            for _ in range(times):
                note(name)
    """,
    "async": """
        import asyncio

        @flow
        async def go():
            await asyncio.sleep(0.01)
            note("ran")
    """,
    "retries": """
        tries = []

        @task(retries=2, retry_delay_seconds=0)
        def shaky():
            tries.append(1)
            note("try")
            if len(tries) < 3:
                raise ValueError("not yet")

        @flow
        def go():
            shaky()
    """,
}
#: the whole of a flow without parameters
BODIES: dict[str, str] = {
    "completes": """
        note("ran")
        print("the last line of it")
    """,
    "raises": """
        note("ran")
        raise ValueError("the flow says no")
    """,
    "exits3": """
        note("ran")
        os._exit(3)
    """,
    "silent": """
        note("ran")
        os._exit(0)
    """,
    "killed": """
        import signal
        note("ran")
        os.kill(os.getpid(), signal.SIGKILL)
    """,
    "shimless": """
        import signal
        note("ran")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1)
        note("went on")
        os._exit(5)
    """,
    "parent": """
        import signal
        note("ran")
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)
        note("went on")
    """,
    "grandchild": """
        import subprocess
        note("ran")
        # it keeps the flow's own output open, as forgotten helpers do
        child = subprocess.Popen(["sleep", "600"])
        note(f"child-{child.pid}")
    """,
    "daemon": """
        import subprocess
        note("ran")
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note(f"daemon-{os.getpid()}")
                if os.environ.get("FFTEST_FORGET"):
                    # without the environment by which it could be known
                    os.execve("/bin/sleep", ["sleep", "600"], {"FFTEST_WORLD": os.environ["FFTEST_WORLD"]})
                os.execv("/bin/sleep", ["sleep", "600"])
            os._exit(0)
        os.wait()
        # or this run may end, and take it along, before it has said who it is
        while "daemon-" not in notes_path().read_text():
            time.sleep(0.01)
    """,
    "prints": """
        note("ran")
        line = "x" * 99
        for _ in range(100_000):
            print(line)
        print("after ten megabytes")
    """,
    "suspends": """
        from prefect.flow_runs import suspend_flow_run
        note("began")
        suspend_flow_run(timeout=600)
        note("resumed")
    """,
    "reschedules": """
        import json, urllib.request
        note("began")
        marker = os.path.join(os.environ["FFTEST_NOTES"], "again-" + os.environ["FLOWFLEET_RUN_ID"])
        if not os.path.exists(marker):
            open(marker, "w").close()
            url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{os.environ['FLOWFLEET_RUN_ID']}/set_state"
            body = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30)
            os._exit(0)
    """,
    "environment": """
        note("ours:" + ",".join(sorted(name for name in os.environ if name.startswith("FLOWFLEET_"))))
        note("from:" + os.environ.get("FROM_WORKER", "-"))
        note("run:" + os.environ.get("FROM_RUN", "-"))
        note("both:" + os.environ.get("FROM_BOTH", "-"))
    """,
}


@dataclass
class Ends:
    """The world of this file, and the run of each flow."""

    world: World
    plain: bool
    runs: dict[str, str] = field(default_factory=dict)

    def end(self, name: str, *names: str) -> dict[str, Any]:
        """Wait for the end of this flow's run."""
        return self.world.wait_state(self.runs[name], *names, seconds=240)

    def wait_exit(self, name: str) -> Path:
        """Wait until its process has gone too, which writes its last lines only as it goes; its folder."""
        (folder,) = folders.found(self.world.folder, f"**/runs/{self.runs[name]}.*")
        until((folder / "cleared").exists, 30, f"the process of {name} to be gone")
        return folder


@pytest.fixture(
    scope="module", params=[pytest.param("able", id="able"), pytest.param("plain", id="plain", marks=pytest.mark.slow)]
)
def ends(
    request: pytest.FixtureRequest,
    prefect_server: PrefectServer,
    valkey: Valkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ends]:
    """All runs of this file on one worker of three slots, created at once."""
    plain = request.param == "plain"
    world = World(tmp_path_factory.mktemp("ends"), prefect_server.api_url, valkey.tcp_url)
    world.env |= {"FLOWFLEET_PLAIN": "1"} if plain else {"FFTEST_FORGET": "1"}
    try:
        world.start_poller()
        world.start_worker("worker", "--env", "FROM_WORKER=yes", "--env", "FROM_BOTH=worker", slots=3)
        made = Ends(world, plain)
        for name, source in {**FLOWS, **{name: f"@flow\ndef go():{body}" for name, body in BODIES.items()}}.items():
            variables = {"env": {"FROM_RUN": "yes", "FROM_BOTH": "run"}} if name == "environment" else {}
            deployment = world.deploy(source, name=name, job_variables=variables)
            parameters = {"name": "given", "times": 3} if name == "parameters" else {}
            made.runs[name] = world.create_run(deployment, parameters)
        for name, variables in {
            "no interpreter": {"command": "/no/such/python -m prefect.engine"},
            "no folder": {"working_dir": "/no/such/folder"},
            "no block": {"env": {"X": "{{ prefect.blocks.secret.nobody-made-this }}"}},
        }.items():
            made.runs[name] = world.create_run(world.deploy_tiny(variables=variables))
        yield made
    finally:
        world.close()


def test_the_api_saw_each_step_of_it_in_order_and_its_output_can_be_read_by_flowfleet_logs(ends):
    ends.end("completes", "Completed")
    history = ends.world.api.history(ends.runs["completes"])
    assert history == ["Scheduled", "Submitted", "Launching", "Running", "Completed"]

    ends.wait_exit("completes")
    shown = ends.world.command("flowfleet", "logs", ends.runs["completes"])
    assert shown.returncode == 0, shown.stderr
    assert "the last line of it" in shown.stdout


@pytest.mark.parametrize(
    ("name", "end", "says", "words"),
    [
        pytest.param("completes", "Completed", "", ["ran"], id="it completes and its flow ran once"),
        pytest.param("parameters", "Completed", "", ["given"] * 3, id="its parameters arrive"),
        pytest.param("async", "Completed", "", ["ran"], id="an async flow completes"),
        pytest.param("raises", "Failed", "the flow says no", ["ran"], id="one that raises is failed by its engine"),
        pytest.param("exits3", "Crashed", "exited with code 3", ["ran"], id="exit 3 is a crash with that code"),
        pytest.param("silent", "Crashed", "exited 0 without reporting an end", ["ran"], id="exit 0 in the middle too"),
        pytest.param("killed", "Crashed", "SIGKILL", ["ran"], id="one that is killed is crashed with the signal"),
        pytest.param("no interpreter", "Crashed", "/no/such/python", [], id="without its Python it says so"),
        pytest.param("no folder", "Crashed", "/no/such/folder", [], id="without its folder it says so"),
        pytest.param("no block", "Crashed", "no block 'nobody-made-this'", [], id="without its block it says so"),
    ],
)
def test_a_run_ends_as_its_flow_did_and_says_why(ends, name, end, says, words):
    state = ends.end(name, end, *(("Failed",) if words == [] else ()))
    assert says in (state["message"] or "")
    assert ends.world.words(ends.runs[name]) == words


@pytest.mark.parametrize(
    ("name", "word", "times", "starts"), [("retries", "try", 3, 1), ("reschedules", "began", 2, 2)]
)
def test_tasks_are_retried_inside_one_start_and_a_run_that_awaits_a_retry_comes_back(ends, name, word, times, starts):
    ends.end(name, "Completed")
    notes = ends.world.notes(ends.runs[name])
    assert [note[0] for note in notes] == [word] * times
    assert len({note[1] for note in notes}) == starts


def test_a_run_whose_shim_is_killed_goes_on_and_is_crashed_with_its_exit_or_that_nobody_saw_it(ends):
    state = ends.end("shimless", "Crashed")
    told = Abilities.probe({}).pidfd_info and not ends.plain
    assert ("exited with code 5" if told else "exit unknown") in state["message"]
    assert [note[0] for note in ends.world.notes(ends.runs["shimless"])] == ["ran", "went"]


def test_a_flow_that_signals_its_parent_goes_on_and_the_signal_is_noted(ends):
    ends.end("parent", "Completed")
    assert ends.world.words(ends.runs["parent"]) == ["ran", "went"]
    ends.wait_exit("parent")
    worker = ends.world.parts[1]
    until(lambda: "ignored signals that were not its worker's" in worker.text(), 10, "the worker to note it")
    assert 'signals="SIGTERM x 1"' in worker.text()


@pytest.mark.parametrize(("name", "word"), [("grandchild", "child-"), ("daemon", "daemon-")])
def test_what_a_run_leaves_behind_is_gone_soon_after_its_end(ends, name, word):
    ends.end(name, "Completed")
    left = until(
        lambda: next((w for w in ends.world.words(ends.runs[name]) if w.startswith(word)), None), 10, f"note {word}"
    )
    pid = int(left.removeprefix(word))
    until(lambda: not processes.alive(pid), 20, f"the end of {left}")


def test_ten_megabytes_of_output_are_kept_to_the_last_line(ends):
    ends.end("prints", "Completed")
    log = ends.wait_exit("prints") / "log"
    assert log.stat().st_size > 9_000_000
    assert "after ten megabytes" in log.read_text()[-2000:]


def test_a_suspended_run_frees_its_slot_and_comes_back(ends):
    run_id = ends.runs["suspends"]
    ends.end("suspends", "Suspended")
    until(lambda: run_id not in [run["run_id"] for run in ends.world.seen()["runs"]], 60, "its claim to go", pause=0.2)
    assert ends.world.api.call("POST", f"/flow_runs/{run_id}/resume", {})["status"] == "ACCEPT"

    ends.end("suspends", "Completed")
    assert ends.world.words(run_id) == ["began", "began", "resumed"]


def test_the_environment_has_the_layers_and_nothing_of_ours_but_run_and_claim(ends):
    ends.end("environment", "Completed")
    words = ends.world.words(ends.runs["environment"])
    assert "ours:FLOWFLEET_CLAIM,FLOWFLEET_RUN_ID" in words
    assert {"from:yes", "run:yes", "both:run"} <= set(words)


def test_after_all_of_it_the_ledger_is_empty_and_nothing_runs(ends):
    for name in ends.runs:
        until(
            lambda name=name: ends.world.api.state(ends.runs[name])["type"] in ("COMPLETED", "FAILED", "CRASHED"),
            120,
            f"the end of {name}",
            pause=0.2,
        )
    ends.world.wait_empty()
    status = ends.world.status()
    assert status["counts"]["running"] == 0
    assert status["counts"]["outbox"] == 0
    assert status["workers"][0]["busy"] == 0

    def left() -> list[str]:
        ours = processes.marked("FFTEST_NOTES", str(ends.world.notes_folder))
        return [what for what in ours.values() if "prefect.engine" in what or "sleep" in what]

    until(lambda: left() == [], 10, "all of the runs' processes to be gone")


def test_the_runs_are_told_afterwards(ends):
    ends.end("killed", "Crashed")
    ends.world.wait_empty(seconds=120)
    told = ends.world.command("flowfleet", "explain", ends.runs["killed"])
    assert told.returncode == 0, told.stderr
    assert "SIGKILL" in told.stdout
