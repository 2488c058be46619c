"""A Redis that lives and answers with errors: a fleet says it once, waits without a storm, and loses nothing."""

import os
import time
from pathlib import Path

import pytest

from tests.lawless_api import LawlessApi
from tests.valkey import Valkey
from tests.waiting import SCALE, stays, until
from tests.world import World

#: how long each outage lasts, from the first sentence on
SECONDS = 4.0
FAULTS = ("NOREPLICAS", "READONLY", "MISCONF", "OOM", "NOPERM")


class Errors:
    """A fleet whose Redis can be made to refuse, by each of `FAULTS`, and be cured under the same process."""

    def __init__(self, folder, server, other):
        self.server, self.other = server, other
        self.redis = server.client()
        self.grant()
        self.api = LawlessApi().start()
        self.world = World(folder, self.api.api_url, server.tcp_url.replace("://", "://app:pw@"))
        self.world.env |= {"FLOWFLEET_RENEW_SECONDS": "1", "FLOWFLEET_LEASE_SECONDS": "8"}

    def start(self):
        self.poller = self.world.start_poller()
        self.worker = self.world.start_worker()
        return self

    def close(self):
        self.world.close()
        self.api.stop()

    def grant(self):
        self.acl("allkeys", "allchannels", "allcommands")

    def acl(self, *rules):
        self.redis.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)

    def refuse(self, code):
        if code == "NOREPLICAS":
            self.redis.config_set("min-replicas-to-write", 1)
        elif code == "READONLY":
            # a failover: the other has all that this one has, and is followed by it
            with self.other.client() as other:
                other.execute_command("REPLICAOF", "127.0.0.1", self.server.port)
                until(lambda: other.info("replication")["master_link_status"] == "up", 20, "the copy")
                other.execute_command("REPLICAOF", "NO", "ONE")
            self.redis.execute_command("REPLICAOF", "127.0.0.1", self.other.port)
        elif code == "MISCONF":
            # as a replica it may have fetched a whole copy, which lies there
            (self.server.folder / "dump.rdb").unlink(missing_ok=True)
            (self.server.folder / "dump.rdb").mkdir()
            self.save("err")
        elif code == "OOM":
            self.redis.config_set("maxmemory", 1)
        else:
            self.acl("~*", "&*", "+@connection", "+info")

    def cure(self, code):
        if code == "NOREPLICAS":
            self.redis.config_set("min-replicas-to-write", 0)
        elif code == "READONLY":
            self.redis.execute_command("REPLICAOF", "NO", "ONE")
        elif code == "MISCONF":
            (self.server.folder / "dump.rdb").rmdir()
            self.save("ok")
            self.redis.config_set("save", "")
        elif code == "OOM":
            self.redis.config_set("maxmemory", 0)
        else:
            self.grant()

    def save(self, status):
        self.redis.config_set("save", "3600 1")
        self.redis.bgsave()
        until(lambda: self.redis.info("persistence")["rdb_last_bgsave_status"] == status, 10, f"a save to be {status}")

    def refusals(self):
        """How many error answers the server has given."""
        return int(self.redis.info("stats")["total_error_replies"])


class Lines:
    """The lines of a part's log from now on."""

    def __init__(self, part):
        self.part, self.seen = part, len(part.text())

    def all(self):
        return self.part.text()[self.seen :].splitlines()

    def warnings(self):
        """Without the lines about runs: of the last fault's run one may come late."""
        return [line for line in self.all() if " INFO " not in line]

    def having(self, words):
        return [line for line in self.all() if words in line]


@pytest.fixture
def errors(tmp_path):
    with Valkey.private(tcp=True) as server, Valkey.private(tcp=True) as other:
        made = Errors(tmp_path, server, other)
        try:
            yield made.start()
        finally:
            made.close()


def test_each_kind_of_refusal_is_said_once_and_waited_for(errors):
    world, parts = errors.world, (errors.poller, errors.worker)
    process = errors.redis.info("server")["run_id"]
    deployment, (_, pid) = world.deploy_tiny(), world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run")
    files = Path(f"/proc/{errors.worker.pid}/fd")
    before = len(list(files.iterdir()))
    for code in FAULTS:
        logs = [Lines(part) for part in parts]
        errors.refuse(code)
        for log in logs:
            until(log.warnings, 10, f"{log.part.name} to say that Redis refuses by {code}")
        refused, since = errors.refusals(), time.monotonic()
        waiting = world.create_run(deployment)
        stays(lambda: all(part.process.poll() is None for part in parts), SECONDS, f"the parts live through {code}")
        for log in logs:
            (line,) = log.having("Redis does not answer, waiting")
            # a replica has another history, which shuts the gate; the poller may say so first
            assert len(log.warnings()) <= (2 if code == "READONLY" else 1)
            # a read that waits is told so first, or one that comes while the copy is loaded; what is asked next meets
            # the refusal itself
            assert code in line or (code == "READONLY" and ("UNBLOCKED" in line or "loading" in line.lower()))
        more, seconds = errors.refusals() - refused, time.monotonic() - since
        assert more < 10 * seconds, "no part asks in a tight loop"
        errors.cure(code)
        cured = time.monotonic()
        world.wait_note(waiting, "done", 15)
        assert time.monotonic() - cured < 15 * SCALE
        for log in logs:
            until(lambda log=log: log.having("Redis answers again"), 10, f"{log.part.name} to say that it is over")
            assert len(log.having("outage: Redis ")) == 2
        until(
            lambda: len(world.seen()["runs"]) == 1, 20, "its end to be told, and the next fault to find nothing in hand"
        )
    assert len(list(files.iterdir())) < before + 5, "no try leaves its connections open"
    os.kill(pid, 0)
    world.release()
    world.all_once(world.runs)
    world.wait_empty()
    assert errors.redis.info("server")["run_id"] == process
    assert [part.stop(10) for part in parts] == [0, 0]


@pytest.mark.parametrize("on_stop", ["detach", "cancel"])
def test_a_stop_amid_refusals_is_quick_and_the_next_worker_tells_the_ends(errors, on_stop):
    world = errors.world
    assert errors.worker.stop(10) == 0
    worker = world.start_worker("worker", "--on-stop", on_stop)
    run, _ = world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run")
    log = Lines(worker)
    errors.refuse("NOREPLICAS")
    until(log.warnings, 10, "the worker to say it")
    for part in (worker, errors.poller):
        began = time.monotonic()
        assert part.stop(10) == 0
        assert time.monotonic() - began < 5 * SCALE
    errors.cure("NOREPLICAS")
    errors.start()
    if on_stop == "detach":
        world.release()
        world.all_once([run])
    else:
        assert "was stopped with its worker" in world.wait_state(run, "Crashed")["message"]
    world.wait_empty()
