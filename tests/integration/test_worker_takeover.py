"""Two worker names on one host: what the first leaves when it dies, the second looks after, to its true end."""

import json
import os
from dataclasses import replace

import pytest

from flowfleet.errors import LedgerUnavailable
from flowfleet.ledger.claims import State
from tests.ledger_world import LedgerWorld, other_claim, row
from tests.processes import alive
from tests.waiting import until
from tests.world import World

HOST = "one-host"


class OneHost(World):
    """Starts workers of several names as processes on one host, on the ledger and API of a worker's world."""

    def __init__(self, world, folder):
        super().__init__(folder, world.api.api_url, world.settings.redis, fleet=world.ledger.fleet)
        self.ledger = world.ledger
        self.env |= {
            "FLOWFLEET_PLAIN": os.environ.get("FLOWFLEET_TEST_PLAIN", ""),
            "FLOWFLEET_STATE_DIR": str(folder / "states"),
        }
        self.ledger.lead()
        self.ledger.open()

    def serving(self, name, *options, host=HOST, **env):
        """A worker of this name that can be given runs."""
        nonces = {row.nonce for row in self.ledger.roster.rows()}
        env = {"FLOWFLEET_HOST": host, **env}
        worker = self.start("worker", name, ["--name", name, "--slots", "2", *options], env, wait=False)

        def serves():
            rows = [row for row in self.ledger.roster.rows() if row.worker == f"{name}@{host}"]
            return [row for row in rows if row.nonce not in nonces and row.routes and row.live]

        until(serves, 30, f"{name} to serve")
        return worker

    def folder_of(self, message):
        (found,) = (self.folder / "states").glob(f"*/*/runs/{message.task_id}")
        return found


@pytest.fixture
def host(world, tmp_path):
    made = OneHost(world, tmp_path)
    yield made
    made.close()


def owner(world, message):
    claim = world.ledger.claims.get(message.run_id)
    return claim.worker if claim else None


def wait_owner(world, message, name, seconds=10, host=HOST):
    until(lambda: owner(world, message) == f"{name}@{host}", seconds, f"{name} to own the run")


def begin(world, host, code=7):
    """The first worker, and a run of it that has begun."""
    worker = host.serving("first")
    message = world.submit(f"{world.marking()}\n{world.holding(code)}")
    world.wait_state(message, "running", 30)
    until(world.marks, 10, "the run to begin")
    return worker, message


def end(world, message, code=7):
    world.end(message, code, 30)
    assert world.marks() == "ran;", "one start"


def test_the_run_of_a_killed_worker_is_looked_after_and_reported_by_another_of_its_host(world, host):
    first, message = begin(world, host)
    before = world.ledger.claims.get(message.run_id)
    assert before.worker == f"first@{HOST}"
    first.kill()
    host.serving("second")
    wait_owner(world, message, "second")

    after = world.ledger.claims.get(message.run_id)
    assert (after.claim, after.state, after.handle) == (before.claim, "running", before.handle)
    assert alive(after.handle["command_pid"])
    end(world, message)
    until((host.folder_of(message) / "settled").exists, 10, "the folder to be settled")
    record = next(one for one in world.ledger.claims.records() if one["claim"] == message.claim)
    assert record["by"] == f"second@{HOST}"


def test_the_old_name_starts_again_at_once_and_leaves_its_run_to_the_living_keeper(world, host):
    first, message = begin(world, host)
    first.kill()
    second = host.serving("second")
    wait_owner(world, message, "second")
    again = host.serving("first")
    assert owner(world, message) == f"second@{HOST}"
    assert again.process.poll() is None

    # the keeper dies too: the next worker that starts takes the run, by whatever name
    second.kill()
    again.kill()
    host.serving("first")
    wait_owner(world, message, "first")
    end(world, message)


def test_a_keeper_killed_before_the_ledger_heard_of_it_asks_again_when_it_starts(world, host):
    first, message = begin(world, host)
    first.kill()
    second = host.serving("second")
    wait_owner(world, message, "second")
    second.kill()
    # as it stands on disk and in Redis when the crash came between the two
    world.ledger.set(world.ledger.claims.get(message.run_id), worker=f"first@{HOST}")
    assert json.loads((host.folder_of(message) / "keeper.json").read_text())["name"] == "second"
    second = host.serving("second")
    wait_owner(world, message, "second")
    # and when Redis loses it later, the keeper takes it again instead of ending a run that is not its own
    world.ledger.set(world.ledger.claims.get(message.run_id), worker=f"first@{HOST}")
    wait_owner(world, message, "second", 20)
    end(world, message)


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended"])
def test_a_worker_whose_host_has_another_name_now_looks_after_its_runs(world, host, ended):
    first, message = begin(world, host)
    first.kill()
    if ended:
        world.release()
        until((host.folder_of(message) / "cleared").exists, 10, "the shim to record the exit")
    host.serving("first", host="renamed")
    if not ended:
        wait_owner(world, message, "first", host="renamed")
        # also when Redis loses that later
        world.ledger.set(world.ledger.claims.get(message.run_id), worker=f"first@{HOST}")
        wait_owner(world, message, "first", 20, host="renamed")
    end(world, message)


def test_a_run_that_ended_while_nobody_lived_is_reported_by_the_sibling(world, host):
    first, message = begin(world, host, code=9)
    first.kill()
    world.release()
    until((host.folder_of(message) / "cleared").exists, 10, "the shim to record the exit")
    host.serving("second")
    world.wait_gone(message, 30)
    assert "exited with code 9" in world.told(message)


def test_a_living_sibling_and_one_of_another_fleet_or_api_are_left_alone(world, host):
    first, message = begin(world, host)
    second = host.serving("second")
    assert owner(world, message) == f"first@{HOST}"
    second.kill()
    first.kill()
    folder = host.folder_of(message)
    intent = json.loads((folder / "intent.json").read_text())
    for stranger in (
        {"fleet": "another"},
        {"api": "http://elsewhere/api", "route": "prefect3/00000000-0000-4000-8000-00000000abcd/default"},
    ):
        (folder / "intent.json").write_text(json.dumps(intent | stranger))
        third = host.serving("third")
        until(lambda third=third: "adoption done" in third.text(), 10, "the adoption")
        assert not (folder / "keeper.json").exists()
        assert owner(world, message) == f"first@{HOST}"
        third.kill()
    (folder / "intent.json").write_text(json.dumps(intent))
    host.serving("first")
    end(world, message)


def test_a_run_that_never_began_goes_back_through_the_sibling(world, host):
    first = host.serving("first", FLOWFLEET_FAILPOINT="start.before_fork:kill")
    message = world.submit(world.marking())
    first.wait(30)
    assert world.ledger.claims.get(message.run_id).state == "starting"
    host.serving("second")
    world.wait_gone(message, 30)
    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
    assert world.marks() == ""


def test_adoption_is_refused_to_a_worker_of_another_host_or_an_old_process(world, host):
    first, message = begin(world, host)
    first.kill()
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


def test_a_run_that_the_ledger_has_as_another_hosts_goes_back_to_its_own_worker(world):
    world.start()
    message = world.begin(5)
    folder = world.run_folder(message)
    world.stop()
    settings = world.settings
    # its state folder does not tell where it ran, so only the ledger knows
    world.settings = replace(settings, name="second", host="elsewhere")
    world.worker = world.settings.identity
    world.start()
    assert world.service.attempts.all() == []
    assert folder.keeper() == settings.name
    world.stop()
    world.settings, world.worker = settings, settings.identity
    world.start()
    assert [attempt.folder for attempt in world.service.attempts.running()] == [folder]
    world.end(message, 5)


def test_a_ledger_that_answers_later_that_a_run_is_another_hosts_gives_it_back_then(world, monkeypatch):
    world.start()
    message = world.begin(5)
    folder = world.run_folder(message)
    world.stop()
    settings, asked, adopt = world.settings, [], world.near.claims.adopt

    def away_at_first(*args):
        asked.append(folder.keeper())
        if len(asked) == 1:
            raise LedgerUnavailable("Redis is away")
        return adopt(*args)

    monkeypatch.setattr(world.near.claims, "adopt", away_at_first)
    world.settings = replace(settings, name="second", host="elsewhere")
    world.worker = world.settings.identity
    world.start()
    until(lambda: folder.keeper() == settings.name, 10, "the run to be given back")
    assert asked == ["second", "second"]
    world.stop()
    world.settings, world.worker = settings, settings.identity
    world.start()
    world.end(message, 5)


HERE = {"machine": "m", "boot_id": "b"}


@pytest.mark.parametrize(
    ("before", "now", "refusal"),
    [
        (HERE, HERE, None),
        (HERE, HERE | {"boot_id": "another"}, "owner"),
        (HERE, HERE | {"machine": "another"}, "owner"),
        ({}, {}, "owner"),
        (HERE, {}, "owner"),
    ],
    ids=["its name has changed", "another boot, perhaps a copy", "another machine", "nobody knows", "it does not tell"],
)
@pytest.mark.parametrize("state", [State.TAKEN, State.RUNNING])
def test_a_host_of_another_name_is_the_same_one_by_machine_and_boot(valkey, state, before, now, refusal):
    ledger = LedgerWorld(valkey.url).up(replace(row(), **before), replace(row("w@renamed"), **now))
    claim = ledger.bring(state)
    assert ledger.claims.adopt(claim.run_id, claim.claim, "w@renamed", "n1").refusal == refusal
    assert ledger.claims.get(claim.run_id).worker == ("w@h" if refusal else "w@renamed")


def test_a_host_is_told_by_what_it_was_when_the_run_began(valkey):
    ledger = LedgerWorld(valkey.url).up(replace(row(), **HERE), replace(row("w@renamed"), **HERE))
    claim = ledger.bring(State.RUNNING)
    ledger.set(claim, boot_id="an earlier one")
    assert ledger.claims.adopt(claim.run_id, claim.claim, "w@renamed", "n1").refusal == "owner"


def test_a_real_worker_shows_what_its_runs_print_to_the_last_line(world, host):
    worker = host.serving("shows", "--show-flow-logs")
    message = world.submit("print('first'); print('gr\\xfcn'); print('no end', end=''); raise SystemExit(3)")
    name = world.api.runs[message.run_id]["name"]
    world.wait_gone(message, 30)
    assert worker.stop(20) == 0

    shown = [line for line in worker.all_text().splitlines() if line.startswith(f"{name} | ")]
    assert shown == [f"{name} | {text}" for text in ("first", "gr\xfcn", "no end")]


def test_a_real_worker_that_waits_at_its_stop_ends_its_runs_after_the_grace(world, host):
    worker = host.serving("waits", "--on-stop", "wait", "--stop-grace", "1")
    message = world.submit("import time; time.sleep(600)")
    world.wait_state(message, "running", 30)
    assert worker.stop(30) == 0

    assert world.ledger.claims.get(message.run_id) is None
    assert "was stopped with its worker waits@one-host" in world.told(message)
    assert "no run is left" in worker.all_text()
