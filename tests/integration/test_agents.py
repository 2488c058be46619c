"""Agents of Prefect 1 as Python programs use them: a real Redis, a local Prefect 1 API, processes of their own."""

import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowfleet.errors import LedgerError
from flowfleet.flow_run import Route
from tests import folders, processes
from tests.prefect1_env import python
from tests.prefect1_world import World1
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, stays, until
from tests.world import BIN, MARK, Part

#: an agent that deploys by its own means: it starts the tiny engine, and notes that it was asked
OWN = """
import os, subprocess
from flowfleet import LocalAgent

class Own(LocalAgent):
    def deploy_flow(self, flow_run):
        with open("deployed", "a") as file:
            file.write(flow_run.id + "\\n")
        if flow_run.run_config.env.get("REFUSE"):
            raise ValueError("no quota left")
        env = {**os.environ, **self.populate_env_vars(flow_run)}
        argv = [os.environ["FLOWFLEET_PYTHON"], "-m", "prefect", "execute", "flow-run"]
        return f"Job: {subprocess.Popen(argv, env=env, start_new_session=True).pid} of {flow_run['flow']['name']}"
"""
HOOKS = """
from flowfleet import LocalAgent

class Hooked(LocalAgent):
    def on_startup(self): print("startup", flush=True)
    def on_shutdown(self): print("shutdown", flush=True)
    def heartbeat(self): print("heartbeat", flush=True)
    def on_flow_run_deploy_attempt(self, fut, flow_run_id): print("attempt", fut.done(), flow_run_id, flush=True)
"""
TWICE = """
import os, time
from flowfleet import LocalAgent

{agent}
while not os.path.exists("again"):
    time.sleep(0.02)
{agent}
"""
#: for those whose polls are held
PATIENT = {"FLOWFLEET_API_READ_SECONDS": "120"}


class AgentWorld(World1):
    """Programs that start an agent, in a folder of their own."""

    def program(self, source: str, name: str = "agent", **env: str) -> Part:
        """It is started; what it prints is in `.out`, its logs are in `.log`."""
        path = self.folder / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        own = {"XDG_DATA_HOME": str(self.folder / "data"), "FLOWFLEET_PYTHON": str(self.tiny_python()), **env}
        return self.part(name, [sys.executable, str(path)], own)

    def claims(self) -> list[Any]:
        with self.ledger() as ledger:
            return list(ledger.claims.live())

    def know(self, *labels: str) -> None:
        """No poll is needed to learn of these."""
        with self.ledger() as ledger:
            ledger.roster.know([Route.of_labels(self.api.tenant, labels)])

    def hold_polls(self) -> None:
        """Until `serve`."""
        self.api.faults.held("get_runs_in_queue", times=-1)

    def serve(self, part: Part, *, learning: bool, before: Collection[str] = ()) -> list[str]:
        """Its polls go on when its worker can take runs; -> the life of that, which is none of those before.

        If `learning` its first poll goes on at once: it tells which labels there are.
        """
        if learning:
            until(lambda: self.api.counted("get_runs_in_queue"), 60, "its first poll")
            self.api.faults.release()
        lives = until(lambda: set(self._serving(part)).difference(before), 60, "its worker to serve the labels")
        self.api.faults.heal()
        return [*before, *lives]

    def _serving(self, part: Part) -> list[str]:
        assert part.process.poll() is None, part.tail()
        embedded = re.search(r"embedded Redis is ready.*?(redis://\S+?)[\s\"]", part.text())
        try:
            with self.ledger(embedded[1] if embedded else "") as ledger:
                return [row.nonce for row in ledger.roster.rows() if row.routes]
        except LedgerError:
            return []

    def deployed(self) -> list[str]:
        path = self.folder / "deployed"
        return path.read_text().splitlines() if path.exists() else []

    def embedded_redis(self) -> int:
        """Its pid; the server writes over what /proc tells of it."""
        (note,) = folders.found(self.folder, "data/**/parts/redis.json")
        return int(json.loads(note.read_text())["pid"])

    def left(self) -> list[str]:
        """Processes of ours that live, but for the runs."""
        return [line for line in processes.marked(MARK, self.mark).values() if "tiny_engine.py" not in line]


@pytest.fixture
def world1(tmp_path: Path, valkey: Valkey) -> Iterator[AgentWorld]:
    world = AgentWorld(tmp_path, valkey.tcp_url)
    yield world
    world.release()  # what a program has started by itself is its own to end
    world.close()


def with_polls(number: int) -> str:
    return f'(labels=["x"], env_vars={{"A": "b"}}, max_polls={number}, hostname_label=False).start(); print("returned")'


def test_a_local_agent_runs_a_flow_by_the_real_engine_and_ends_after_its_polls(world1, tmp_path):
    out = tmp_path / "sum"
    flow = world1.real.register("parameters", labels=["x"])["parameters"]
    run_id = world1.create_run(flow, parameters={"out": str(out)})

    world1.hold_polls()
    agent = world1.program(
        "from flowfleet import LocalAgent\nLocalAgent" + with_polls(3), FLOWFLEET_PYTHON=str(python()), **PATIENT
    )
    world1.serve(agent, learning=True)
    assert agent.wait(90) == 0, agent.tail()
    assert agent.said()[-1] == "returned"
    # its run need not be over: it was started, and goes on
    assert world1.wait_end(run_id) == "Success"
    assert out.read_text() == "3"
    assert world1.api.history(run_id) == ["Scheduled", "Submitted", "Running", "Success"]
    assert any("Submitted for execution: PID: " in line for line in world1.lines(run_id))
    (row,) = world1.api.agents()
    assert (row["type"], row["name"], row["labels"]) == ("LocalAgent", "agent", ["x"])


def test_an_agent_brings_its_own_redis_and_calls_its_hooks(world1):
    run_id = world1.tiny_run("x")
    world1.hold_polls()
    agent = world1.program(HOOKS + "Hooked" + with_polls(3), FLOWFLEET_REDIS="", **PATIENT)
    world1.serve(agent, learning=True)
    assert agent.wait(90) == 0, agent.tail()
    assert world1.wait_end(run_id) == "Success"
    said = agent.said()
    assert said[0] == "startup"
    assert said[-2:] == ["shutdown", "returned"]
    assert "heartbeat" in said
    assert f"attempt True {run_id}" in said
    until(lambda: world1.left() == [], 20, "poller, Redis and helpers to be gone")


@pytest.mark.parametrize("by", ["its argument", "an agent config"])
def test_a_single_poll_is_enough_and_its_run_goes_on_also_where_a_stop_ends_runs(world1, by):
    run_id = world1.tiny_run("x", hold=True)
    config = world1.api.add_agent_config({"max_polls": 1})
    polls = "max_polls=1" if by == "its argument" else f'agent_config_id="{config}"'
    agent = world1.program(
        f'from flowfleet import LocalAgent\nLocalAgent(labels=["x"], hostname_label=False, {polls}, on_stop="wait",'
        ' stop_grace=0).start()\nprint("returned")\n'
    )
    assert agent.wait(60) == 0, agent.tail()
    assert agent.said()[-1] == "returned"
    assert world1.api.state(run_id) in ("Submitted", "Running")
    until(lambda: not any("poller start" in line for line in world1.left()), 10, "the poller to be gone")
    world1.release()
    assert world1.wait_end(run_id) == "Success"


def test_an_agent_whose_poller_stands_by_ends_after_its_rounds_too_and_what_is_claimed_for_it_goes_on(world1):
    source = 'from flowfleet import LocalAgent\nLocalAgent("{}", labels=["{}"], hostname_label=False{}).start()\n'
    first = world1.program(source.format("first", "x", ""))
    until(lambda: "elected" in first.text(), 60, "the first one's poller to lead")
    world1.know("y")
    run_id = world1.tiny_run("y", hold=True)
    second = world1.program(source.format("second", "y", ", max_polls=3"), "second")
    world1.wait_note(run_id, "ran")
    assert second.wait(60) == 0, second.tail()
    assert "standing by" in second.text()
    assert "elected" not in second.text()
    world1.release()
    assert world1.wait_end(run_id) == "Success"
    assert first.stop() == 0


def test_flowfleet_leave_ends_an_agent_after_its_runs(world1):
    agent = world1.program(
        'from flowfleet import LocalAgent\nLocalAgent(labels=["x"], hostname_label=False).start()\nprint("returned")\n'
    )
    run_id = world1.tiny_run("x", hold=True)
    world1.wait_note(run_id, "ran")
    leave = world1.part("leave", [str(BIN / "flowfleet"), "leave"])
    until(lambda: not any("poller start" in line for line in world1.left()), 30, "its poller to have left")
    stays(lambda: agent.process.poll() is None, 2, "the agent waits for its run")
    world1.release()
    assert world1.wait_end(run_id) == "Success"
    assert (leave.wait(60), agent.wait()) == (0, 0)
    assert agent.said()[-1] == "returned"


def test_an_agent_may_be_started_again_in_one_program(world1, tmp_path):
    world1.know("x")
    first = world1.tiny_run("x")
    world1.hold_polls()
    agent = world1.program(TWICE.format(agent="LocalAgent" + with_polls(2)), **PATIENT)
    lives = world1.serve(agent, learning=False)
    until(lambda: "returned" in agent.said(), 60, "the first start to end")
    second = world1.tiny_run("x")
    world1.hold_polls()
    (tmp_path / "again").touch()
    world1.serve(agent, learning=False, before=lives)
    assert agent.wait(90) == 0, agent.tail()
    assert (world1.wait_end(first), world1.wait_end(second)) == ("Success", "Success")


def test_a_deploy_flow_of_one_s_own_is_asked_once_and_its_run_holds_a_slot_to_its_end(world1):
    run_id = world1.tiny_run("x", hold=True)
    agent = world1.program(OWN + 'Own(labels=["x"], hostname_label=False, slots=1).start()\n')
    world1.wait_state(run_id, "Running")
    (claim,) = until(lambda: [one for one in world1.claims() if one.handle], 20, "the claim to have a handle")
    assert (claim.handle["kind"], claim.handle["id"].endswith(" of tiny")) == ("external", True)
    until(lambda: any("Submitted for execution: Job: " in line for line in world1.lines(run_id)), 10, "its line")

    waiting = world1.tiny_run("x")
    world1.release()
    assert (world1.wait_end(run_id), world1.wait_end(waiting, 90)) == ("Success", "Success")
    until(lambda: world1.claims() == [], 30, "both claims to be released")
    assert world1.deployed() == [run_id, waiting]  # one after the other: there is one slot
    assert agent.stop() == 0


def test_what_a_deploy_flow_raises_fails_its_run(world1):
    run_id = world1.tiny_run("x", env={"REFUSE": "1"})
    agent = world1.program(OWN + 'Own(labels=["x"], hostname_label=False).start()\n')
    assert world1.wait_end(run_id) == "Failed"
    assert world1.message(run_id) == "no quota left"
    until(lambda: "no quota left" in world1.lines(run_id), 20, "its line")
    assert world1.deployed() == [run_id]
    assert agent.stop() == 0


def test_a_deploy_flow_that_calls_the_one_below_gets_a_process_of_the_worker(world1):
    source = """
    from flowfleet import LocalAgent

    class Below(LocalAgent):
        def deploy_flow(self, flow_run):
            text = super().deploy_flow(flow_run)
            print(text, flow_run.flow.name, flush=True)
            return text

        def populate_env_vars(self, flow_run):
            return {**super().populate_env_vars(flow_run), "TINY_HOLD": "1"}

    Below(labels=["x"], hostname_label=False).start()
    """
    run_id = world1.tiny_run("x")
    agent = world1.program(source)
    world1.wait_state(run_id, "Running")
    (claim,) = until(lambda: [one for one in world1.claims() if one.handle], 20, "the claim to have a handle")
    assert claim.handle["kind"] == "process"
    until(lambda: any("PID: " in line for line in agent.said()), 10, "its own words")
    pid = int(agent.said()[0].split()[1])
    os.kill(pid, signal.SIGKILL)  # it is watched as any other
    assert world1.wait_end(run_id) == "Failed"
    assert "SIGKILL" in world1.message(run_id)
    assert agent.stop() == 0


def test_env_vars_are_read_at_each_start_and_none_takes_a_variable_of_the_host_away(world1, tmp_path):
    source = """
    import os
    from flowfleet import LocalAgent

    class Renewing(LocalAgent):
        def on_startup(self):
            self.labels = ["x"]
            self.heartbeat_period = 0.1
        def heartbeat(self):
            if os.path.exists("renew"):
                self.env_vars["FFTEST_WHO"] = "renewed"

    Renewing(labels=["other"], env_vars={"FFTEST_WHO": None}, hostname_label=False).start()
    """
    first = world1.tiny_run("x")
    agent = world1.program(source, FFTEST_WHO="the-host")
    assert world1.wait_end(first) == "Success"
    assert world1.notes(first)[0][3] == "-"
    (tmp_path / "renew").touch()

    def renewed() -> bool:
        run_id = world1.tiny_run("x")
        assert world1.wait_end(run_id) == "Success"
        return bool(world1.notes(run_id)[0][3] == "renewed")

    until(renewed, 60, "a run with the renewed variable")
    assert agent.stop() == 0


@pytest.mark.parametrize("way", ["warm", "cold", "by hand"])
def test_a_run_has_no_variable_that_the_agent_s_methods_have_taken_out(world1, tmp_path, way):
    source = """
    import os
    from concurrent.futures import ThreadPoolExecutor
    from flowfleet import LocalAgent

    class Own(LocalAgent):
        def populate_env_vars(self, flow_run, run_config=None):
            env = super().populate_env_vars(flow_run, run_config=run_config)
            del env["TAKEN_OUT"], env["FLOWFLEET_CLAIM"]
            return env

    way = os.environ["WAY"]
    variables = {"NO_MORE": None, "KEPT": "k"}
    agent = Own(labels=["x"], env_vars=variables, hostname_label=False, warm_start=way == "warm")
    if way == "by hand":
        with ThreadPoolExecutor(1) as executor:
            agent.agent_process(executor)
    else:
        agent.start()
    """
    out = tmp_path / "told.json"
    flow = world1.real.register("inside", labels=["x"], script=True)["inside"]
    env = {"TAKEN_OUT": "t", "NO_MORE": "n", "FLOWFLEET_PYTHON": str(python())}
    run_id = world1.create_run(flow, labels=["x"], parameters={"out": str(out), "spawn": False})
    world1.hold_polls()
    agent = world1.program(source, WAY=way, **env)
    if way == "warm":
        until(lambda: "warm parent" in agent.text(), 90, "the warm parent")
    world1.api.faults.heal()
    assert world1.wait_end(run_id, 120) == "Success", world1.lines(run_id)
    told = json.loads(out.read_text())
    seen = told["seen"]["environ"]
    assert {name for name in ("TAKEN_OUT", "NO_MORE", "FLOWFLEET_PYTHON") if name in seen} == set()
    assert (seen["KEPT"], seen["FLOWFLEET_RUN_ID"], len(seen["FLOWFLEET_CLAIM"])) == ("k", run_id, 36)
    assert way == "by hand" or told["by"] == {"warm": "flowfleet-warm", "cold": "flowfleet-fork"}[way]


def test_a_run_of_another_agent_is_left_as_it_is_and_one_that_is_slow_to_deploy_is_started(world1):
    source = """
    import time
    from flowfleet import LocalAgent

    class Own(LocalAgent):
        def update_state(self, flow_run):
            print("asked", flow_run.id, flush=True)
            super().update_state(flow_run)
            if flow_run.run_config.env.get("OF_ANOTHER"):
                raise RuntimeError("State update failed: it is another agent's")

        def deploy_flow(self, flow_run):
            self.update_state(flow_run)
            time.sleep(9)  # longer than the lease that the run has at this moment, but for its last 3 s
            return super().deploy_flow(flow_run)

    Own(labels=["x"], hostname_label=False, slots=2).start()
    """
    left = world1.tiny_run("x", env={"OF_ANOTHER": "1"})
    agent = world1.program(source, FLOWFLEET_LEASE_SECONDS="10", FLOWFLEET_RENEW_SECONDS="1")
    (claim,) = until(lambda: [one for one in world1.claims() if one.handle], 60, "the claim to have a handle")
    assert (claim.run_id, claim.handle["kind"], claim.handle["doubtful"]) == (left, "external", True)

    def beat() -> int:
        with world1.ledger() as ledger:
            return ledger.roster.rows()[0].beat

    before = beat()
    until(lambda: beat() >= before + 2, 30, "the worker to know the lease")
    slow = world1.tiny_run("x")
    assert world1.wait_end(slow) == "Success"
    assert world1.api.history(slow) == ["Scheduled", "Submitted", "Running", "Success"]
    assert world1.api.history(left) == ["Scheduled", "Submitted"]
    assert world1.lines(left) == []
    assert [line for line in agent.said() if left in line] == [f"asked {left}"], "it was never handed out again"

    world1.real.set_state(left, "Running")
    world1.real.set_state(left, "Success")
    until(lambda: world1.claims() == [], 30, "the claim to be released")
    assert agent.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_parts_in_order_and_the_runs_go_on(world1, number):
    run_id = world1.tiny_run("x", hold=True)
    agent = world1.program(HOOKS + 'Hooked(labels=["x"], hostname_label=False).start()\nprint("returned")\n')
    world1.wait_state(run_id, "Running")
    agent.signal(number)
    assert agent.wait(30) == 0, agent.tail()
    assert agent.said()[-2:] == ["shutdown", "returned"]
    until(lambda: not any("poller start" in line for line in world1.left()), 10, "the poller to be gone")

    assert world1.api.state(run_id) == "Running"
    world1.release()
    assert world1.wait_end(run_id) == "Success"


@pytest.mark.parametrize("source", [HOOKS + "Hooked", OWN + "Own"])
def test_the_runs_of_a_killed_agent_are_adopted_by_its_next_start_and_not_started_again(world1, source):
    run_id = world1.tiny_run("x", hold=True)
    source += '(labels=["x"], hostname_label=False, slots=1).start()\n'
    first = world1.program(source)
    world1.wait_state(run_id, "Running")
    until(lambda: [one for one in world1.claims() if one.handle], 20, "the claim to be noted")
    first.kill()
    until(lambda: world1.left() == [], 20, "all that the agent has started to be gone")
    assert "the program that has started this process is gone" in first.text()
    assert "resigned" in first.text()  # its poller has ended in order
    assert world1.api.state(run_id) == "Running"

    second = world1.program(source)
    until(lambda: "adopted" in second.text(), 60, "the run to be adopted")
    world1.release()
    assert world1.wait_end(run_id) == "Success"
    until(lambda: world1.claims() == [], 30, "the claim to be released")
    assert len(world1.words(run_id)) == 2  # ran and done: once
    assert len([line for line in world1.left() if "poller start" in line]) == 1
    assert second.stop() == 0


def test_a_second_signal_leaves_nothing_but_the_runs(world1):
    run_id = world1.tiny_run("x", hold=True)
    agent = world1.program(
        HOOKS + 'Hooked(labels=["x"], hostname_label=False, on_stop="wait").start()\n', FLOWFLEET_REDIS=""
    )
    world1.wait_state(run_id, "Running")
    agent.signal(signal.SIGTERM)
    until(lambda: "a second signal leaves them" in agent.text(), 20, "it to wait for its run")
    redis = world1.embedded_redis()
    assert agent.stop() == 128 + signal.SIGTERM
    until(lambda: world1.left() == [] and not processes.alive(redis), 20, "poller, Redis and helpers to be gone")
    assert world1.api.state(run_id) == "Running"


def test_an_agent_whose_embedded_redis_dies_says_so_and_its_run_goes_on(world1):
    run_id = world1.tiny_run("x", hold=True)
    agent = world1.program(
        'from flowfleet import LocalAgent\nLocalAgent(labels=["x"], hostname_label=False, on_stop="wait").start()\n',
        FLOWFLEET_REDIS="",
    )
    world1.wait_state(run_id, "Running")
    os.kill(world1.embedded_redis(), signal.SIGKILL)
    assert agent.wait(60) == 1
    assert re.search(
        r"AgentEnded: The embedded Redis of LocalAgent was killed by signal 9: see \S+redis\.log\.$", agent.tail()
    )
    assert world1.api.state(run_id) == "Running"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(
            f'api="http://127.0.0.1:{free_port()}", require_api=True',
            r"ApiUnavailable: the Prefect API at http://127\.0\.0\.1:\d+ cannot be reached: Connection refused",
            id="no API, and require_api",
        ),
        pytest.param(
            "agent_address=os.environ['FLOWFLEET_API']",
            r"AgentEnded: The poller of LocalAgent ended with code 2: The address \S+ cannot be served: port \d+ is ",
            id="an address that is taken",
        ),
    ],
)
def test_a_start_that_cannot_be_raises_with_its_reason(world1, options, says):
    agent = world1.program(f"import os\nfrom flowfleet import LocalAgent\nLocalAgent({options}).start()\n")
    assert agent.wait(60) == 1
    assert re.search(says, agent.tail(1))
    assert world1.left() == []


def test_a_program_with_logs_of_its_own_gets_each_line_once(world1):
    agent = world1.program(
        'import logging\nlogging.basicConfig(format="mine %(message)s")\nfrom flowfleet import LocalAgent\n'
        'LocalAgent(labels=["x"], hostname_label=False, max_polls=0).start()\n'
    )
    assert agent.wait(60) == 0, agent.tail()
    for line in ("agent starts  type=LocalAgent labels=x", "worker joins the fleet  worker=agent@", "worker stopped,"):
        found = [each for each in agent.text().splitlines() if line in each]
        assert [each.startswith(f"mine {line}") for each in found] == [True], found


def test_a_second_agent_with_an_embedded_redis_is_refused_in_a_sentence(world1):
    source = 'from flowfleet import LocalAgent\nLocalAgent("{}", labels=["x"], hostname_label=False).start()\n'
    first = world1.program(source.format("one"), FLOWFLEET_REDIS="")
    until(lambda: "embedded Redis is ready" in first.text(), 60, "the first agent's Redis")
    second = world1.program(source.format("two"), "second", FLOWFLEET_REDIS="")
    assert second.wait(60) == 1
    assert "share a Redis that you give to each, by redis= or FLOWFLEET_REDIS." in second.tail(1)
    assert first.stop() == 0


def test_an_agent_config_of_the_api_wins_over_what_the_agent_was_given(world1):
    config = world1.api.add_agent_config({"labels": ["other"], "env_vars": {"TINY_EXIT": "7"}})
    run_id = world1.tiny_run("other")
    source = f'Own(labels=["x"], hostname_label=False, agent_config_id="{config}").start()\n'
    agent = world1.program(OWN + source)
    world1.wait_state(run_id, "Running")
    until(lambda: "done" in " ".join(map(str, world1.words(run_id))), 20, "the run to have ended")
    assert world1.api.state(run_id) == "Running"  # with the exit code of the config it says no end
    assert agent.stop() == 0


def test_one_poll_by_hand_needs_no_redis_and_leaves_a_line_and_a_running_process(world1):
    run_id = world1.tiny_run("x")
    source = """
    from concurrent.futures import ThreadPoolExecutor
    from flowfleet import LocalAgent

    agent = LocalAgent(labels=["x"], hostname_label=False)
    with ThreadPoolExecutor(2) as executor:
        print(agent.agent_process(executor))
    print(agent.query_flow_runs())
    """
    program = world1.program(source, FLOWFLEET_REDIS="redis://127.0.0.1:1/0")
    assert program.wait(60) == 0, program.tail()
    assert program.said() == ["True", "[]"]
    assert world1.wait_end(run_id) == "Success"
    assert [line.split(":")[:2] for line in world1.lines(run_id)] == [["Submitted for execution", " PID"]]


def test_by_hand_a_run_starts_at_its_time_one_that_never_began_is_failed_and_a_missing_folder_is_a_value_error(world1):
    due = datetime.now(UTC) + timedelta(seconds=8)
    soon, refused = world1.tiny_run("x", start=due), world1.tiny_run("y", start=due)
    config = {"type": "LocalRun", "env": {}, "labels": ["z"], "working_dir": "/no/such/folder"}
    world1.api.add_run(world1.api.rows("flow", name="tiny")[0]["id"], labels=["z"], run_config=config)
    source = """
    import time
    from concurrent.futures import ThreadPoolExecutor
    from flowfleet import LocalAgent

    print(time.time())
    soon, refusing, misplaced = (LocalAgent(labels=[label], hostname_label=False) for label in "xyz")
    with ThreadPoolExecutor(2) as executor:
        print(soon.agent_process(executor))
        print(soon.agent_process(executor))  # it is under way
        (refused,) = refusing.query_flow_runs()
        refusing.mark_failed(refused, OSError("not here"))
        try:
            misplaced.deploy_flow(misplaced.query_flow_runs()[0])
        except ValueError as exc:
            print(exc)
    """
    program = world1.program(source, FLOWFLEET_REDIS="redis://127.0.0.1:1/0")
    assert program.wait(60) == 0, program.tail()
    asked, *found, misplaced = program.said()
    assert found == ["True", "False"]
    assert "its working folder /no/such/folder does not exist on" in misplaced
    assert world1.wait_end(soon) == "Success"
    _, _, at, *_ = world1.wait_note(soon, "ran")
    assert due.timestamp() <= float(at) < max(due.timestamp(), float(asked)) + 10 * SCALE
    assert (world1.api.history(refused), world1.message(refused)) == (["Scheduled", "Failed"], "not here")
