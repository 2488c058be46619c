"""Redis in trouble under a whole fleet: nothing is doubled, lost or falsely told, and work is soon back.

Each kind of trouble meets two held runs, some that are under way, and one that falls due meanwhile; another is due when
it is over. `make stress` has all kinds at full length, and prints how long after the end of each the next run began.
"""

import os
import shutil
import time

import pytest

from tests.lawless_api import LawlessApi
from tests.run_oracle import wrong
from tests.tcp_bridge import TO_CLIENT, TO_SERVER, TcpBridge
from tests.valkey import Valkey
from tests.waiting import stays, until
from tests.world import World

LEASE_SECONDS = 4.0
#: none of these hosts is away, so a worker that stalls when it is over has a while to be heard of
GRACE_SECONDS = 8.0
#: at work again so long after the end of the trouble, at most
BACK_SECONDS = 60.0

#: a fleet meets these one after the other; a promotion comes last, since the old primary is gone then
IN_CI = (
    ("no-connections", "deaf", "promoted"),
    ("ahead", "emptied", "older"),
)
ALL = (
    ("restarted", "killed", "emptied", "older", "promoted"),
    ("full", "no-connections"),
    ("slow", "held", "deaf", "mute", "cut"),
    ("ahead", "behind"),
)

#: what shifts the clock that scripts see, by so many seconds as this key says
SKEW = "fftest-skew"
SITE = f"""
try:
    from flowfleet.ledger import store
except ImportError:
    pass
else:
    def read(name, read=store._read):
        time = "local time = redis.call('TIME')"
        return read(name).replace(time, time + " time[1] = time[1] + (redis.call('GET', '{SKEW}') or 0)")
    store._read = read
"""


class Troubled:
    """A fleet on an API that minds its rules, whose Redis and whose link to it get into trouble."""

    def __init__(self, folder, server, replica):
        self.server, self.replica = server, replica
        self.redis = server.client()
        self.bridge = TcpBridge(("127.0.0.1", server.port))
        self.api = LawlessApi(honest=True).start()
        self.world = World(folder, self.api.api_url, f"redis://127.0.0.1:{self.bridge.port}/0")
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        self.world.env |= {
            "PYTHONPATH": str(site),
            "FLOWFLEET_RENEW_SECONDS": "0.5",
            "FLOWFLEET_LEASE_SECONDS": str(LEASE_SECONDS),
            "FLOWFLEET_ADOPT_GRACE": str(GRACE_SECONDS),
        }

    def start(self):
        self.parts = [self.world.start_poller(), self.world.start_worker(slots=4)]
        self.deployment = self.world.deploy_tiny()
        self.pids = [self.world.held()[1] for _ in range(2)]
        return self

    def run(self):
        return self.world.create_run(self.deployment)

    def begin(self, kind):
        if kind == "older":
            # of a moment at which runs were under way that have ended since
            runs = [self.run() for _ in range(3)]
            self.redis.save()
            shutil.copy(self.server.folder / "dump.rdb", self.server.folder / "older.rdb")
            for run in runs:
                self.world.wait_note(run, "done")
        getattr(self, f"begin_{kind.replace('-', '_')}", lambda: None)()

    def end(self, kind):
        getattr(self, f"end_{kind.replace('-', '_')}", self.bridge.let_go)()

    # the server

    def end_restarted(self):
        self.server.restart()

    def end_killed(self):
        self.server.restart(kill=True, wipe=True)

    def end_emptied(self):
        self.redis.flushall()

    def end_older(self):
        self.server.stop()
        shutil.copy(self.server.folder / "older.rdb", self.server.folder / "dump.rdb")
        self.server.start()

    def begin_promoted(self):
        """The replica hears nothing any more from the moment before on: that is the tail that it lacks."""
        with self.replica.client() as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", self.server.port)
            until(lambda: replica.info("replication")["master_link_status"] == "up", 20, "the copy")
            replica.execute_command("REPLICAOF", "NO", "ONE")

    def end_promoted(self):
        self.server.kill()
        self.bridge.lead_to(("127.0.0.1", self.replica.port))

    # its limits

    def begin_full(self):
        self.redis.config_set("maxmemory", 1)

    def end_full(self):
        self.redis.config_set("maxmemory", 0)

    def begin_no_connections(self):
        self.redis.config_set("maxclients", 1)
        for kind in ("normal", "pubsub"):
            self.redis.client_kill_filter(_type=kind, skipme=True)

    def end_no_connections(self):
        self.redis.config_set("maxclients", 1000)

    # the link

    def begin_slow(self):
        self.bridge.delay = 0.5  # in each direction

    def end_slow(self):
        self.bridge.delay = 0.0

    def begin_held(self):
        self.bridge.hold()

    def begin_deaf(self):
        self.bridge.hold(TO_CLIENT)

    def begin_mute(self):
        self.bridge.hold(TO_SERVER)

    def begin_cut(self):
        self.bridge.cut()

    def end_cut(self):
        self.bridge.mend()

    # the clock of its host

    def begin_ahead(self):
        self.redis.set(SKEW, 3600)

    def begin_behind(self):
        self.redis.set(SKEW, -3600)

    def end_ahead(self):
        self.redis.delete(SKEW)

    end_behind = end_ahead

    # what holds

    def alive(self):
        return all(part.process.poll() is None for part in self.parts)

    def meet(self, kind, seconds):
        """One kind of trouble, from start to end; how long after it the next run began."""
        before = [self.run() for _ in range(2)]
        self.begin(kind)
        meanwhile = self.run()
        stays(self.alive, seconds, f"the parts live through {kind}")
        self.end(kind)
        back = time.time()
        after = self.run()
        began = float(self.world.wait_note(after, "ran", BACK_SECONDS)[2])
        for run in (*before, meanwhile, after):
            self.world.wait_state(run, "Completed")
        for pid in self.pids:
            os.kill(pid, 0)
        return began - back

    def check(self):
        self.world.release()
        self.world.all_once(self.world.runs)
        self.world.wait_empty()
        found = [wrong(run, self.world.notes(run), self.api.history(run)) for run in self.world.runs]
        assert [sentence for one in found for sentence in one] == []
        assert [self.api.history(run)[-1] for run in self.world.runs] == ["Completed"] * len(self.world.runs)
        assert self.alive()

    def close(self):
        try:
            self.world.close()
        finally:
            self.redis.close()
            self.bridge.close()
            self.api.stop()


@pytest.fixture
def troubled(tmp_path):
    # a stop in order writes a snapshot
    with Valkey.private(tcp=True, config=("--save", "3600 1")) as server, Valkey.private(tcp=True) as replica:
        made = Troubled(tmp_path, server, replica)
        try:
            yield made.start()
        finally:
            made.close()


def meet_all(troubled, kinds, seconds):
    for kind in kinds:
        took = troubled.meet(kind, seconds)
        print(f"Redis {kind} for {seconds:.0f} s: the next run began {took:.1f} s after it was back")
    troubled.check()


@pytest.mark.parametrize("kinds", IN_CI, ids=" ".join)
def test_a_fleet_comes_through_the_trouble_of_its_redis(troubled, kinds):
    meet_all(troubled, kinds, LEASE_SECONDS + 1.0)


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kinds", ALL, ids=" ".join)
def test_a_fleet_comes_through_long_trouble_of_its_redis(troubled, kinds):
    meet_all(troubled, kinds, 30.0)


def test_the_oracle_sees_what_must_not_be():
    ran, done = ["ran", "7", "1.0", "-", "a"], ["done", "7", "2.0", "-", "a"]
    again, other = ["ran", "8", "1.5", "-", "a"], ["ran", "8", "3.0", "-", "b"]
    whole = ["Scheduled", "Submitted", "Launching", "Running", "Completed"]
    twice = ["Scheduled", "Submitted", "Scheduled", "Submitted", "Running", "Completed"]
    assert wrong("r", [ran, done], whole) == []
    assert wrong("r", [ran, done, other], twice) == []
    assert wrong("r", [ran, done], whole[:-1]) == ["run r: 0 ends: Scheduled Submitted Launching Running"]
    assert "run r: 2 starts for 1 claims" in wrong("r", [ran, done, other], whole)
    assert wrong("r", [ran, again, done], twice) == [
        "run r: 2 starts for the claim a",
        "run r: two attempts at the same time",
    ]
    assert "run r: Crashed was told of an attempt that completed" in wrong("r", [ran, done], [*whole, "Crashed"])
