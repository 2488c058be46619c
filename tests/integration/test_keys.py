"""Keys of the Prefect API: replaced while poller and worker run, and never shown."""

import json
import signal
import socket
import subprocess
import uuid

import pytest

from tests.lawless_api import LawlessApi
from tests.run_oracle import wrong
from tests.valkey import Valkey, free_port
from tests.waiting import until

RIGHT, WRONG, NEXT = "right-key-3141", "wrong-key-2718", "next-key-1618"


class Keyed(LawlessApi):
    """An API that takes a second key while keys are replaced, and counts the listings that it has answered."""

    also_right = ""
    listed = 0

    def answer(self, method, path, body, headers):
        if self.also_right and headers.get("Authorization") == self.also_right:
            headers = {**headers, "Authorization": self.authorization}
        answer = super().answer(method, path, body, headers)
        self.listed += path.endswith("/get_scheduled_flow_runs")
        return answer


@pytest.fixture
def keyed():
    return Keyed(authorization=f"Bearer {RIGHT}")


@pytest.fixture
def fleet(make_lawless, keyed):
    """Pollers and workers on an API that takes one key only."""
    world = make_lawless(keyed)
    world.env["FLOWFLEET_LOG_LEVEL"] = "DEBUG"
    return world


def start(fleet, kind, **env):
    return fleet.start(kind, kind, env=env, wait=False)


def write(path, text):
    """Its whole text at once."""
    new = path.with_suffix(".new")
    new.write_text(f"{text}\n")
    new.replace(path)


def wait_refused(part):
    until(lambda: "refuses our credentials" in part.text(), 40, "the refusal")


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_a_key_file_that_is_replaced_after_a_refusal_is_used_without_a_restart(fleet, tmp_path, kind):
    key = tmp_path / "key"
    write(key, WRONG)
    part = start(fleet, kind, FLOWFLEET_KEY_FILE=str(key))
    wait_refused(part)
    assert not part.ready()
    write(key, RIGHT)
    until(part.ready, 60, "the part to be ready")

    assert RIGHT not in part.all_text()
    assert WRONG not in part.all_text()


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_a_hangup_ends_nothing_and_brings_the_new_key_into_use(fleet, keyed, tmp_path, kind):
    key = tmp_path / "key"
    write(key, RIGHT)
    # without a live worker there is nothing for a poller to ask the API for
    parts = [start(fleet, each, FLOWFLEET_KEY_FILE=str(key)) for each in dict.fromkeys(("worker", kind))]
    for part in parts:
        until(part.ready, 60, f"{part.name} to be ready")
    # as keys are replaced in life: for a while both are right
    keyed.also_right = f"Bearer {NEXT}"
    write(key, NEXT)
    part.signal(signal.SIGHUP)
    until(lambda: "credentials for the Prefect API were read again" in part.text(), 10, "the new key")
    keyed.authorization, keyed.also_right = keyed.also_right, ""
    if kind == "poller":
        listed = keyed.listed
        assert part.ask("/api/poke")[0] == 200
        # a request that was under way with the old key is refused, and then it asks again in a minute
        until(lambda: keyed.listed > listed, 90, "a listing with the new key")
        until(part.ready, 20, "the poller to be ready")
    assert part.process.poll() is None
    assert part.text().count("refuses our credentials") <= 1, "only what was under way with the old key"
    assert NEXT not in part.all_text()


@pytest.mark.parametrize("how", ["by a hangup", pytest.param("by itself", marks=pytest.mark.stress)])
def test_a_key_that_is_revoked_while_runs_end_and_are_claimed_is_said_and_loses_none(fleet, keyed, tmp_path, how):
    key, gate = tmp_path / "key", tmp_path / "gate"
    write(key, RIGHT)
    fleet.env |= {"FLOWFLEET_KEY_FILE": str(key), "FLOWFLEET_RENEW_SECONDS": "1"}
    parts = [start(fleet, "worker", FLOWFLEET_SLOTS="3"), start(fleet, "poller")]
    for part in parts:
        until(part.ready, 60, f"{part.name} to be ready")
    started = [tmp_path / f"started-{number}" for number in range(3)]
    held = "touch {}; until [ -e {} ]; do sleep 0.05; done; exit 3"
    commands = [f"sh -c '{held.format(path, gate)}'" for path in started[:2]]
    runs = [keyed.add_run(job_variables={"command": command}) for command in commands]
    for path in started[:2]:
        until(path.exists, 60, "the run to start")

    keyed.authorization = f"Bearer {NEXT}"
    runs.append(keyed.add_run(job_variables={"command": f"touch {started[2]}"}))
    gate.touch()
    assert parts[1].ask("/api/poke")[0] == 200
    for part in parts:
        wait_refused(part)
    refused = [{"part": part, "trouble": "key-refused"} for part in ("leader", f"worker@{socket.gethostname()}")]
    until(lambda: fleet.seen()["api_troubles"] == refused, 20, "status to say it")
    assert "refuses the key of: the lead poller, worker@" in fleet.command("flowfleet", "status").stdout
    for part in parts:
        code, body = part.ask("/api/health")
        assert (code, json.loads(body)["api"]) == (200, "key-refused")
    assert parts[1].ask("/api/ready")[0] == 503
    until(lambda: json.loads(parts[0].ask("/api/health")[1])["unreported"] == 2, 20, "both ends to be kept")

    write(key, NEXT)
    if how == "by a hangup":
        for part in parts:
            part.signal(signal.SIGHUP)
    for run_id in runs:
        until(lambda run_id=run_id: keyed.state(run_id)["type"] == "CRASHED", 90, "its end")
        assert wrong(run_id, [], keyed.history(run_id)) == []
    assert started[2].exists()
    assert ["exited with code 3" in keyed.state(run_id)["message"] for run_id in runs] == [True, True, False]
    until(lambda: fleet.seen()["api_troubles"] == [], 20, "status to say it no longer")


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_a_redis_that_is_away_is_waited_for_which_a_hangup_does_not_end_and_a_stop_does(fleet, kind):
    part = start(fleet, kind, FLOWFLEET_REDIS=f"redis://127.0.0.1:{free_port()}/0")
    until(lambda: "does not answer, waiting" in part.text(), 30, "the waiting")
    part.signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        part.wait(1.0)
    status, body = part.ask("/api/health")
    assert (status, json.loads(body)["waits_for"]) == (200, "Redis")
    assert part.ask("/api/ready")[0] == 503
    assert part.stop(10) == 0


@pytest.mark.parametrize("kind", ["poller", "worker"])
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_key_of_a_profile_never_shows_in_the_logs(fleet, keyed, kind, style):
    (fleet.home / "profiles.toml").write_text(
        f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{keyed.api_url}"\nPREFECT_API_KEY = "{RIGHT}"\n'
        'PREFECT_API_AUTH_STRING = "admin:unused-password-99"\n'
    )
    keyed.authorization = "Basic nothing-is-right"
    part = start(fleet, kind, FLOWFLEET_LOG_FORMAT=style, PREFECT_API_URL=None)
    wait_refused(part)
    part.signal(signal.SIGHUP)
    until(lambda: "SIGHUP" in part.text(), 10, "the hangup")
    assert RIGHT not in part.all_text()
    assert "unused-password-99" not in part.all_text()


class Guarded:
    """A Redis whose password changes, a poller and a worker that have its address from a file, and runs."""

    def __init__(self, fleet, api, redis):
        self.fleet, self.api, self.redis = fleet, api, redis
        self.file = fleet.folder / "redis"

    def write(self, scheme, password=""):
        """Its address, with the password that it has or that it will have."""
        address = {"redis": self.redis.tcp_url, "redis+socket": self.redis.socket_url}[scheme]
        write(self.file, address.replace(self.redis.password, password or self.redis.password))

    def change(self, password):
        """Another password, and nobody may stay on the strength of the old one."""
        with self.redis.client() as client:
            client.config_set("requirepass", password)
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
        self.redis.password = password

    def run(self):
        """One run, from Scheduled to started by the worker."""
        started = self.fleet.folder / f"started-{uuid.uuid4().hex}"
        run_id = self.api.add_run(job_variables={"command": f"touch {started}"})
        until(started.exists, 60, "the run to start")
        until(lambda: self.api.state(run_id)["type"] == "CRASHED", 30, "its end, without an engine's report")


@pytest.mark.parametrize("scheme", ["redis", "redis+socket"])
def test_a_password_of_redis_that_is_replaced_in_its_file_is_used_without_a_restart(fleet, keyed, scheme):
    passwords = ["first-secret-11", "second-secret-22", "third-secret-33"]
    with Valkey.private(tcp=True, password=passwords[0]) as redis:
        guarded = Guarded(fleet, keyed, redis)
        guarded.write(scheme)
        fleet.env |= {"FLOWFLEET_REDIS": None, "FLOWFLEET_REDIS_FILE": str(guarded.file), "FLOWFLEET_KEY": RIGHT}
        parts = [start(fleet, "worker"), start(fleet, "poller")]
        for part in parts:
            until(part.ready, 60, f"{part.name} to be ready")
        guarded.run()

        # in order: the file, the signal, the server
        guarded.write(scheme, passwords[1])
        for part in parts:
            part.signal(signal.SIGHUP)
            until(lambda part=part: "login at Redis" in part.text(), 10, "the new login")
        guarded.change(passwords[1])
        guarded.run()
        assert not any(refused_by_redis(part) for part in parts)

        # the other way round, and without a signal
        guarded.change(passwords[2])
        for part in parts:
            until(lambda part=part: refused_by_redis(part), 30, "the refusal")
        guarded.write(scheme)
        guarded.run()

        for part in parts:
            assert part.process.poll() is None
            assert not any(password in part.all_text() for password in passwords)
        assert [part.stop(20) for part in parts] == [0, 0]


def refused_by_redis(part):
    return "refuses our password" in part.text()
