"""Two worker names on one host: what the first leaves when it dies, the second looks after, to its true end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ledger_world import other_claim, row
from tests.processes import alive
from tests.waiting import SCALE, until
from tests.worker_world import WorkerWorld

WORKER = Path(sys.executable).parent / "worker"
HOST = "one-host"


class OneHost:
    """Starts workers of several names as processes on one host, on the world's ledger and API."""

    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLOWFLEET_", "PREFECT_"))
        }
        self.env |= {
            "HOME": str(folder),
            "FLOWFLEET_PLAIN": os.environ.get("FLOWFLEET_TEST_PLAIN", ""),
            "FLOWFLEET_STATE_DIR": str(folder / "states"),
            "FLOWFLEET_REDIS": world.settings.redis,
            "FLOWFLEET_FLEET": world.ledger.fleet,
            "FLOWFLEET_HOST": HOST,
            "PREFECT_API_URL": world.api.api_url,
        }
        self.started = []
        world.ledger.lead()
        world.ledger.open()

    def start(self, name, *args, **env):
        log = self.folder / f"{name}-{len(self.started)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [str(WORKER), "start", "--name", name, "--slots", "2", *args],
                env=self.env | env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.started.append((process, log))
        return process

    def serving(self, name, *args, **env):
        nonces = {row.nonce for row in self.world.ledger.roster.rows()}
        process = self.start(name, *args, **env)
        until(
            lambda: [row for row in self.world.ledger.roster.rows() if row.worker == f"{name}@{HOST}"
                     and row.nonce not in nonces and row.routes and row.live],
            30, f"{name} to serve",
        )  # fmt: skip
        return process

    def text(self, process):
        return next(log for started, log in self.started if started is process).read_text()

    def folder_of(self, message):
        (found,) = (self.folder / "states").glob(f"*/*/runs/{message.task_id}")
        return found

    def close(self):
        for process, _ in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for record in (self.folder / "states").glob("*/*/runs/*/started.json"):
            for name in ("command_pid", "pid"):
                pid = json.loads(record.read_text()).get(name)
                if pid and alive(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def world(valkey, tmp_path):
    made = WorkerWorld(valkey.tcp_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def host(world, tmp_path):
    made = OneHost(world, tmp_path)
    yield made
    made.close()


def run_of(world, folder, code):
    gate, mark = folder / "gate", folder / "mark"
    text = (
        f"import os,time\nopen({str(mark)!r},'a').write(f'{{os.getpid()}}\\n')\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)\nraise SystemExit({code})"
    )
    return world.submit_command(f"{shlex.quote(sys.executable)} -c {shlex.quote(text)}")


def owner(world, message):
    claim = world.ledger.claims.get(message.run_id)
    return claim.worker if claim else None


def kill(process):
    process.kill()
    process.wait()


def begin(world, host, folder, name="first", code=7):
    process = host.serving(name)
    message = run_of(world, folder, code)
    world.wait_state(message, "running", 30)
    until((folder / "mark").exists, 10, "the run to begin")
    return process, message


def end(world, folder, message, code=7):
    (folder / "gate").touch()
    world.wait_gone(message, 30)
    assert f"exited with code {code}" in world.api.state(message.run_id)["message"]
    assert len((folder / "mark").read_text().splitlines()) == 1, "one start"


def test_the_run_of_a_killed_worker_is_looked_after_and_reported_by_another_of_its_host(world, host, tmp_path):
    first, message = begin(world, host, tmp_path)
    before = world.ledger.claims.get(message.run_id)
    assert before.worker == f"first@{HOST}"
    kill(first)
    second = host.serving("second")
    until(lambda: owner(world, message) == f"second@{HOST}", 10, f"the new owner:\n{host.text(second)}")

    after = world.ledger.claims.get(message.run_id)
    assert (after.claim, after.state, after.handle) == (before.claim, "running", before.handle)
    pid = int((tmp_path / "mark").read_text())
    assert alive(pid)
    end(world, tmp_path, message)
    until((host.folder_of(message) / "settled").exists, 10, "the folder to be settled")
    record = next(one for one in world.ledger.claims.records() if one["claim"] == message.claim)
    assert record["by"] == f"second@{HOST}"


def test_the_old_name_starts_again_at_once_and_leaves_its_run_to_the_living_keeper(world, host, tmp_path):
    first, message = begin(world, host, tmp_path)
    kill(first)
    second = host.serving("second")
    until(lambda: owner(world, message) == f"second@{HOST}", 10, "the new owner")
    again = host.serving("first")
    assert owner(world, message) == f"second@{HOST}"
    assert again.poll() is None

    # the keeper dies too: the next worker that starts takes the run, by whatever name
    kill(second)
    kill(again)
    third = host.serving("first")
    until(lambda: owner(world, message) == f"first@{HOST}", 10, f"the old owner:\n{host.text(third)}")
    end(world, tmp_path, message)


def test_a_keeper_killed_before_the_ledger_heard_of_it_asks_again_when_it_starts(world, host, tmp_path):
    first, message = begin(world, host, tmp_path)
    kill(first)
    second = host.serving("second")
    until(lambda: owner(world, message) == f"second@{HOST}", 10, "the new owner")
    kill(second)
    # as it stands on disk and in Redis when the crash came between the two
    world.ledger.set(world.ledger.claims.get(message.run_id), worker=f"first@{HOST}")
    assert json.loads((host.folder_of(message) / "keeper.json").read_text())["name"] == "second"
    second = host.serving("second")
    until(lambda: owner(world, message) == f"second@{HOST}", 10, f"the new owner:\n{host.text(second)}")
    # and when Redis loses it later, the keeper takes it again instead of ending a run that is not its own
    world.ledger.set(world.ledger.claims.get(message.run_id), worker=f"first@{HOST}")
    until(lambda: owner(world, message) == f"second@{HOST}", 20, "the new owner again")
    end(world, tmp_path, message)


def test_a_run_that_ended_while_nobody_lived_is_reported_by_the_sibling(world, host, tmp_path):
    first, message = begin(world, host, tmp_path, code=9)
    kill(first)
    (tmp_path / "gate").touch()
    until((host.folder_of(message) / "cleared").exists, 10, "the shim to record the exit")
    host.serving("second")
    world.wait_gone(message, 30)
    assert "exited with code 9" in world.api.state(message.run_id)["message"]


def test_a_living_sibling_and_one_of_another_fleet_or_api_are_left_alone(world, host, tmp_path):
    first, message = begin(world, host, tmp_path)
    second = host.serving("second")
    assert owner(world, message) == f"first@{HOST}"
    kill(second)
    kill(first)
    folder = host.folder_of(message)
    intent = json.loads((folder / "intent.json").read_text())
    for stranger in (
        {"fleet": "another"},
        {"api": "http://elsewhere/api", "route": "prefect3/00000000-0000-4000-8000-00000000abcd/default"},
    ):
        (folder / "intent.json").write_text(json.dumps(intent | stranger))
        third = host.serving("third")
        until(lambda third=third: "adoption done" in host.text(third), 10, "the adoption")
        assert not (folder / "keeper.json").exists()
        assert owner(world, message) == f"first@{HOST}"
        kill(third)
    (folder / "intent.json").write_text(json.dumps(intent))
    host.serving("first")
    end(world, tmp_path, message)


def test_a_run_that_never_began_goes_back_through_the_sibling(world, host, tmp_path):
    first = host.serving("first", FLOWFLEET_FAILPOINT="start.before_fork:kill")
    message = world.submit(f"open({str(tmp_path / 'mark')!r}, 'a').write('ran')")
    first.wait(30 * SCALE)
    assert world.ledger.claims.get(message.run_id).state == "starting"
    host.serving("second")
    world.wait_gone(message, 30)
    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
    assert not (tmp_path / "mark").exists()


def test_adoption_is_refused_to_a_worker_of_another_host_or_an_old_process(world, host, tmp_path):
    first, message = begin(world, host, tmp_path)
    kill(first)
    claims = world.ledger.claims
    for name in ("other@elsewhere", f"other@{HOST}"):
        assert world.ledger.roster.sign_on(row(name, nonce="n")) is None
    ask = lambda worker, nonce: claims.adopt(message.run_id, message.claim, worker, nonce).refusal  # noqa: E731
    assert ask("other@elsewhere", "n") == "owner"
    assert ask(f"other@{HOST}", "old") == "owner"
    assert owner(world, message) == f"first@{HOST}"
    assert ask(f"other@{HOST}", "n") is None
    assert owner(world, message) == f"other@{HOST}"
    assert ask(f"other@{HOST}", "n") is None, "a repeat is told the same"
    other = other_claim(claims.get(message.run_id))
    assert claims.adopt(message.run_id, other, f"other@{HOST}", "n").refusal == "other-claim"


def test_a_real_worker_shows_what_its_runs_print_to_the_last_line(world, host):
    process = host.serving("shows", "--show-flow-logs")
    message = world.submit("print('first'); print('gr\\xfcn'); print('no end', end=''); raise SystemExit(3)")
    name = world.api.runs[message.run_id]["name"]
    world.wait_gone(message, 30)
    process.terminate()
    assert process.wait(20 * SCALE) == 0

    shown = [line for line in host.text(process).splitlines() if line.startswith(f"{name} | ")]
    assert shown == [f"{name} | {text}" for text in ("first", "gr\xfcn", "no end")]


def test_a_real_worker_that_waits_at_its_stop_ends_its_runs_after_the_grace(world, host):
    process = host.serving("waits", "--on-stop", "wait", "--stop-grace", "1")
    message = world.submit("import time; time.sleep(600)")
    world.wait_state(message, "running", 30)
    process.terminate()
    assert process.wait(30 * SCALE) == 0

    assert world.ledger.claims.get(message.run_id) is None
    assert "was stopped by the worker" in world.api.state(message.run_id)["message"]
    assert "no run is left" in host.text(process)
