"""Keys of the Prefect API: replaced while poller and worker run, and never shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest

from flowfleet.ledger import connect
from tests.lawless_api import LawlessApi
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, until

BIN = Path(sys.executable).parent
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


class Parts:
    """Pollers and workers with an environment of their own, against an API that takes one key only."""

    def __init__(self, folder, redis_url, api):
        self.folder, self.api = folder, api
        self.key = folder / "key"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLOWFLEET_", "PREFECT_"))
        }
        self.env |= {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "FLOWFLEET_REDIS": redis_url,
            "FLOWFLEET_FLEET": f"k{os.getpid()}-{folder.name[-20:]}".replace("_", "-"),
            "FLOWFLEET_LOG_LEVEL": "DEBUG",
            "PREFECT_API_URL": api.api_url,
        }
        self.ledger = connect(redis_url, self.env["FLOWFLEET_FLEET"])
        self.started = []

    def write(self, key):
        new = self.folder / "key.new"
        new.write_text(f"{key}\n")
        new.replace(self.key)

    def start(self, kind, *args, **env):
        log = self.folder / f"{kind}.log"
        address = f"http://127.0.0.1:{free_port()}"
        with log.open("w") as output:
            process = subprocess.Popen(
                [str(BIN / kind), "start", "--agent-address", address, *args],
                env=self.env | env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder,
            )  # fmt: skip
        process.log, process.address = log, address
        self.started.append(process)
        return process

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.wait(15 * SCALE)
        self.ledger.close()


@pytest.fixture
def parts(valkey, tmp_path):
    with Keyed(authorization=f"Bearer {RIGHT}") as api:
        made = Parts(tmp_path, valkey.tcp_url, api)
        yield made
        made.close()


def ready(process):
    try:
        with urllib.request.urlopen(f"{process.address}/api/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def refused(process):
    return "refuses our credentials" in process.log.read_text()


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_a_key_file_that_is_replaced_after_a_refusal_is_used_without_a_restart(parts, kind):
    parts.write(WRONG)
    process = parts.start(kind, FLOWFLEET_KEY_FILE=str(parts.key))
    until(lambda: refused(process), 30, "the refusal")
    assert not ready(process)
    parts.write(RIGHT)
    until(lambda: ready(process), 60, f"the part to be ready:\n{process.log.read_text()}")

    text = process.log.read_text()
    assert process.poll() is None
    assert RIGHT not in text
    assert WRONG not in text


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_a_hangup_ends_nothing_and_brings_the_new_key_into_use(parts, kind):
    parts.write(RIGHT)
    if kind == "poller":
        # without a live worker there is nothing to ask the API for
        beside = parts.start("worker", FLOWFLEET_KEY_FILE=str(parts.key))
        until(lambda: ready(beside), 60, "the worker beside it to be ready")
    process = parts.start(kind, FLOWFLEET_KEY_FILE=str(parts.key))
    until(lambda: ready(process), 60, f"the part to be ready:\n{process.log.read_text()}")
    # as keys are replaced in life: for a while both are right
    parts.api.also_right = f"Bearer {NEXT}"
    parts.write(NEXT)
    process.send_signal(signal.SIGHUP)
    until(lambda: "credentials for the Prefect API were read again" in process.log.read_text(), 10, "the new key")
    parts.api.authorization, parts.api.also_right = parts.api.also_right, ""
    if kind == "poller":
        listed = parts.api.listed
        urllib.request.urlopen(f"{process.address}/api/poke", timeout=60).close()
        # a request that was under way with the old key is refused, and then it asks again in a minute
        until(lambda: parts.api.listed > listed, 90, "a listing with the new key")
        until(lambda: ready(process), 20, "the poller to be ready")
    assert process.poll() is None
    text = process.log.read_text()
    assert text.count("refuses our credentials") <= 1, "only what was under way with the old key"
    assert NEXT not in text


def test_a_hangup_while_a_part_waits_for_redis_or_a_key_ends_nothing(parts):
    process = parts.start("poller", FLOWFLEET_REDIS=f"redis://127.0.0.1:{free_port()}/0")
    until(lambda: "does not answer" in process.log.read_text(), 30, "the waiting")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)


@pytest.mark.parametrize("kind", ["poller", "worker"])
@pytest.mark.parametrize("style", ["text", "json"])
def test_a_key_of_a_profile_never_shows_in_the_logs(parts, kind, style):
    (parts.folder / ".prefect").mkdir()
    (parts.folder / ".prefect" / "profiles.toml").write_text(
        f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{parts.api.api_url}"\nPREFECT_API_KEY = "{RIGHT}"\n'
        'PREFECT_API_AUTH_STRING = "admin:unused-password-99"\n'
    )
    environ = {"FLOWFLEET_LOG_FORMAT": style}
    del parts.env["PREFECT_API_URL"]
    parts.api.authorization = "Basic nothing-is-right"
    process = parts.start(kind, **environ)
    until(lambda: refused(process), 40, "the refusal")
    process.send_signal(signal.SIGHUP)
    until(lambda: "SIGHUP" in process.log.read_text(), 10, "the hangup")
    text = process.log.read_text()
    assert RIGHT not in text
    assert "unused-password-99" not in text


class Guarded:
    """A Redis whose password changes, a poller and a worker that have its address from a file, and runs."""

    def __init__(self, parts, redis):
        self.parts, self.redis = parts, redis
        self.file = parts.folder / "redis"
        self.password = redis.password

    def write(self, scheme):
        address = {"redis": self.redis.tcp_url, "redis+socket": self.redis.socket_url}[scheme]
        new = self.parts.folder / "redis.new"
        new.write_text(f"{address}\n")
        new.replace(self.file)

    def change(self, password):
        """Another password, and nobody may stay on the strength of the old one."""
        with self.redis.client() as client:
            client.config_set("requirepass", password)
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
        self.redis.password = password

    def run(self):
        """One run, from Scheduled to started by the worker."""
        started = self.parts.folder / f"started-{uuid.uuid4().hex}"
        run_id = self.parts.api.add_run(job_variables={"command": f"touch {started}"})

        def story():
            return [process.log.read_text()[-3000:] for process in self.parts.started]

        try:
            until(started.exists, 60, "the run to start")
            until(lambda: self.parts.api.state(run_id)["type"] == "CRASHED", 30, "its end, without an engine's report")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *story()])) from error


@pytest.mark.parametrize("scheme", ["redis", "redis+socket"])
def test_a_password_of_redis_that_is_replaced_in_its_file_is_used_without_a_restart(parts, scheme):
    passwords = ["first-secret-11", "second-secret-22", "third-secret-33"]
    with Valkey.private(tcp=True, password=passwords[0]) as redis:
        guarded = Guarded(parts, redis)
        guarded.write(scheme)
        del parts.env["FLOWFLEET_REDIS"]
        parts.env |= {"FLOWFLEET_REDIS_FILE": str(guarded.file), "FLOWFLEET_KEY": RIGHT}
        processes = [parts.start("worker"), parts.start("poller")]
        for process in processes:
            until(lambda one=process: ready(one), 60, f"the part to be ready:\n{process.log.read_text()}")
        guarded.run()

        # in order: the file, the signal, the server
        redis.password = passwords[1]
        guarded.write(scheme)
        redis.password = passwords[0]
        for process in processes:
            process.send_signal(signal.SIGHUP)
            until(lambda one=process: "login at Redis" in one.log.read_text(), 10, "the new login")
        guarded.change(passwords[1])
        guarded.run()
        assert not any(refused_by_redis(process) for process in processes)

        # the other way round, and without a signal
        guarded.change(passwords[2])
        for process in processes:
            until(lambda one=process: refused_by_redis(one), 30, "the refusal")
        guarded.write(scheme)
        guarded.run()

        for process in processes:
            assert process.poll() is None
            text = process.log.read_text()
            assert not any(password in text for password in passwords)
            process.terminate()
        assert [process.wait(20 * SCALE) for process in processes] == [0, 0]


def refused_by_redis(process):
    return "refuses our password" in process.log.read_text()
