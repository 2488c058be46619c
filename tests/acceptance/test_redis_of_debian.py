"""Redis as it is found: Debian's own, by TLS, with a user of the least rights, and by sentinels over a failover."""

import logging
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis

from flowfleet.flow_run import Route
from flowfleet.ledger import connect, store
from tests.container_engine import install
from tests.lawless_api import LawlessApi
from tests.needs import need
from tests.redis_sentinels import PROGRAM, RedisSentinels
from tests.run_oracle import wrong
from tests.valkey import free_port
from tests.waiting import until
from tests.world import World

DOCS = Path(__file__).parents[2] / "docs" / "several-machines.md"
LEASE = {"FLOWFLEET_RENEW_SECONDS": "0.5", "FLOWFLEET_LEASE_SECONDS": "4", "FLOWFLEET_ADOPT_GRACE": "8"}


@pytest.fixture(scope="module")
def debian():
    need(shutil.which(PROGRAM) or shutil.which("apt-get"), "redis-server, or Debian's apt-get to install it")
    install(("redis-server",))


@pytest.fixture
def api():
    made = LawlessApi(honest=True).start()
    yield made
    made.stop()


class Fleet(World):
    """A fleet on an API that minds its rules; `check` holds at the end."""

    def __init__(self, folder, api, redis_url):
        super().__init__(folder, api.api_url, redis_url)
        self.local = api
        self.env |= LEASE

    def start_all(self, *options):
        self.parts_of_it = [self.start_poller("agent", *options), self.start_worker("worker", *options, slots=4)]
        self.deployment = self.deploy_tiny()
        return self

    def check(self):
        self.release()
        self.all_once(self.runs)
        self.wait_empty()
        found = [wrong(run, self.notes(run), self.local.history(run)) for run in self.runs]
        assert [sentence for one in found for sentence in one] == []
        assert all(part.process.poll() is None for part in self.parts_of_it)


# -- a user of the least rights


def documented_rights():
    """The rights of the ACL line in the documents."""
    (line,) = re.findall(r"^    user fleet on >\S+ (.+)$", DOCS.read_text(), re.MULTILINE)
    return line.split()


def openssl(*argv):
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


@pytest.fixture
def guarded(debian, tmp_path):
    """A server of TLS alone, with the documented user: its port, its authority's file, and a client of its operator."""
    need(shutil.which("openssl"), "openssl")
    key, made, port = tmp_path / "key", tmp_path / "ca.pem", free_port()
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(made))  # fmt: skip
    conf = tmp_path / "redis.conf"
    conf.write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file {made}\ntls-key-file {key}\ntls-ca-cert-file {made}\n"
        f'tls-auth-clients no\nsave ""\nappendonly yes\ndir {tmp_path}\nuser default off\n'
        f"user operator on >op ~* &* +@all\nuser fleet on >pw {' '.join(documented_rights())}\n"
    )
    with (tmp_path / "redis.log").open("wb") as log:
        server = subprocess.Popen([PROGRAM, str(conf)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    client = redis.Redis(
        port=port, ssl=True, ssl_ca_certs=str(made), username="operator", password="op", decode_responses=True
    )

    def answers():
        try:
            return client.ping()
        except redis.ConnectionError:
            return False

    try:
        until(answers, 20, "Redis by TLS")
        yield port, made, client
    finally:
        client.close()
        server.kill()
        server.wait()


def test_a_fleet_over_tls_needs_no_more_rights_than_the_documents_give(guarded, api, tmp_path):
    port, authority, operator = guarded
    fleet = Fleet(tmp_path, api, f"rediss://fleet@localhost:{port}/0")
    (tmp_path / "password").write_text("pw\n")
    fleet.env |= {"FLOWFLEET_REDIS_PASSWORD_FILE": str(tmp_path / "password"), "FLOWFLEET_CA_FILE": str(authority)}
    # what looks behind the fleet needs the whole address
    whole = f"rediss://fleet:pw@localhost:{port}/0?ssl_ca_certs={authority}"
    try:
        fleet.start_all()
        fleet.redis_url = whole
        held, _ = fleet.held()
        for _ in range(3):
            fleet.create_run(fleet.deployment)
        for run in fleet.runs[1:]:
            fleet.wait_state(run, "Completed")
        for argv, code in (
            (("flowfleet", "status"), 0),
            (("flowfleet", "runs"), 0),
            (("flowfleet", "explain", held), 0),
            (("flowfleet", "doctor"), 0),
            (("worker", "list"), 0),
            (("worker", "drain", "--all"), 0),
            (("worker", "resume", "--all"), 0),
            (("flowfleet", "cancel", held, "--now"), 0),
        ):
            done = fleet.command(*argv)
            assert done.returncode == code, (argv, done.stdout, done.stderr)
        fleet.runs.remove(held)
        fleet.check()
        told = operator.acl_log()
        assert told == [], "nothing was refused"
        with redis.Redis(
            port=port, ssl=True, ssl_ca_certs=str(authority), username="fleet", password="pw", decode_responses=True
        ) as client:
            for command in (
                ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "maxmemory", "1"), ("GET", "other"), ("SHUTDOWN",),
                ("SCRIPT", "FLUSH"), ("ACL", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("PUBLISH", "other", "x"),
                ("REPLICAOF", "NO", "ONE"), ("MONITOR",),
            ):  # fmt: skip
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
    finally:
        fleet.redis_url = whole
        fleet.close()


# -- sentinels


def route_of(number):
    return Route("prefect3", "11111111-1111-4111-8111-111111111111", f"q{number}")


@pytest.fixture
def sentinels(debian):
    with RedisSentinels.private() as made:
        yield made


@pytest.fixture
def calm(debian):
    """Sentinels that take no primary for dead that only stalls."""
    with RedisSentinels.private(down_seconds=120.0) as made:
        yield made


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_a_failover_by_sentinels_loses_and_doubles_nothing(sentinels, api, tmp_path, end):
    fleet = Fleet(tmp_path, api, sentinels.address)
    try:
        fleet.start_all()
        for _ in range(2):
            fleet.held()
        first = sentinels.primary()
        before = [fleet.create_run(fleet.deployment) for _ in range(4)]
        first.kill() if end == "killed" else first.freeze()
        meanwhile = fleet.create_run(fleet.deployment)
        sentinels.wait_other_than(first)
        first.start() if end == "killed" else first.thaw()
        after = fleet.create_run(fleet.deployment)
        for run in (*before, meanwhile, after):
            fleet.wait_state(run, "Completed", seconds=90)
        sentinels.wait_copied()
        fleet.check()
        text = "".join(part.all_text() for part in fleet.parts_of_it)
        assert "Traceback" not in text
    finally:
        fleet.close()


def test_what_a_script_has_written_is_at_the_replica_when_it_answers(calm, monkeypatch):
    # without WAIT a failover right after it would lose it; how long a write waits for a replica is not looked at here
    monkeypatch.setattr(store, "CONFIRM_MS", 30_000)
    replica, thawed = calm.servers[1], []
    ledger = connect(calm.address, "f", socket_timeout=60)

    def thaw():
        thawed.append(True)
        replica.thaw()

    try:
        ledger.roster.know([route_of(0)])
        replica.freeze()
        later = threading.Timer(0.5, thaw)
        later.start()
        ledger.roster.know([route_of(1)])
        assert thawed, "a write was answered that no replica had"
        later.join()
        with replica.client() as client:
            assert str(route_of(1)) in client.smembers(ledger.store.key("routes"))
    finally:
        replica.thaw()
        ledger.close()


def test_without_a_replica_the_fleet_does_not_stand(calm, caplog):
    calm.servers[1].kill()
    ledger = connect(calm.address, "f")
    try:
        began = time.monotonic()
        for number in range(50):
            ledger.roster.know([route_of(number)])
        assert time.monotonic() - began < 10
        assert [text for text in map(logging.LogRecord.getMessage, caplog.records) if "no replica" in text] == [
            "no replica of Redis confirms what is written, a failover now may lose some"
        ]
    finally:
        ledger.close()
