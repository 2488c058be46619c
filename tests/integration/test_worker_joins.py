"""How a worker joins its fleet: nothing is made at the API before it has its name, and never a work queue."""

import contextlib
import itertools
import logging
import threading

import pytest

from flowfleet.api.connect import connect
from flowfleet.errors import ApiRejected, SettingsError
from flowfleet.retry import Retry
from flowfleet.settings.classes import WorkerSettings
from tests.lawless_api import LawlessApi
from tests.ledger_world import LedgerWorld, row
from tests.valkey import Valkey
from workers.host import Host
from workers.lifecycle.joining import Joining
from workers.lifecycle.sign_on import NameTaken
from workers.state.state_folder import StateFolder

HOST = Host(name="h", machine_id="m" * 32, boot_id="boot-1", pid_ns=1)


class Fleet:
    """A leader, an API with the pool `there`, and `join`, as `worker start` does."""

    def __init__(self, valkey, api, folder):
        self.valkey, self.api, self.folder = valkey, api, folder
        self.ledger = LedgerWorld(valkey.url)
        self.ledger.lead()
        self.api.add_pool("there")
        self.waited_for = []

    def join(self, *pools, **settings):
        given = WorkerSettings(
            redis=self.valkey.url, fleet=self.ledger.fleet, name="w", host="h", api=self.api.api_url, pools=pools,
            **settings,
        )  # fmt: skip
        with contextlib.closing(StateFolder.open(self.folder, HOST.machine_id, "w")) as state:
            return Joining(
                ledger=self.ledger.ledger,
                settings=given,
                api=connect(given, {"HOME": str(self.folder)}),
                state=state,
                host=HOST,
                retry=Retry(wait=lambda _seconds: pytest.fail("it waits")),
                waiting_for=lambda neighbour: contextlib.nullcontext(self.waited_for.append(neighbour)),
            ).join()

    @property
    def row(self):
        (found,) = self.ledger.roster.rows()
        return found


@pytest.fixture
def fleet(valkey: Valkey, tmp_path):
    with LawlessApi() as api:
        yield Fleet(valkey, api, tmp_path)


def test_pools_that_exist_are_served_at_once_and_nothing_is_made(fleet):
    joined = fleet.join("there")
    assert fleet.row.offer.pool_ids == (fleet.api.pools["there"]["id"],) == joined.offer.pool_ids
    assert (fleet.api.counted("POST /work_pools/"), list(fleet.api.pools)) == (0, ["there"])


def test_a_missing_pool_is_made_when_the_worker_has_its_name_and_a_line_says_so(fleet, caplog, monkeypatch):
    rows = []
    made = fleet.api._create_pool
    monkeypatch.setattr(fleet.api, "_create_pool", lambda body: [rows.append(fleet.row), made(body)][1])
    caplog.set_level(logging.INFO)

    joined = fleet.join("there", "new")

    (while_made,) = rows
    assert (while_made.offer.pools, while_made.routes) == (("there",), ())
    assert fleet.row.offer.pools == ("there", "new") == joined.offer.pools
    assert fleet.row.offer.pool_ids == tuple(fleet.api.pools[name]["id"] for name in ("there", "new"))
    (said,) = [record for record in caplog.records if "no such work pool" in record.message]
    assert said.pool == "new"
    assert "--no-create-pool" in said.message


def test_without_create_pool_a_missing_pool_is_refused_and_nothing_is_left(fleet):
    with pytest.raises(SettingsError, match="there is no work pool 'new', and --no-create-pool keeps this worker"):
        fleet.join("there", "new", create_pool=False)
    assert (list(fleet.api.pools), fleet.ledger.roster.rows()) == (["there"], [])
    fleet.join("there", create_pool=False)


def test_a_worker_whose_name_is_taken_leaves_no_pool_behind(fleet):
    fleet.ledger.roster.sign_on(row("w@h", nonce="other"))
    ended, beats = threading.Event(), itertools.count(1)

    def beat():
        while not ended.wait(0.1):
            fleet.ledger.claims.renew("w@h", "other", next(beats), [])

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(NameTaken):
            fleet.join("new")
    finally:
        ended.set()
        other.join()
    assert (list(fleet.api.pools), fleet.row.nonce) == (["there"], "other")


def test_a_pool_that_cannot_be_made_leaves_no_worker_that_looks_alive(fleet):
    fleet.api.fail("POST /work_pools/", status=422, times=-1)
    with pytest.raises(ApiRejected, match="'new' cannot be created"):
        fleet.join("new")
    assert (fleet.row.live, fleet.row.end) == (False, "stopped")


def test_a_name_that_no_pool_may_have_is_refused_before_the_worker_has_its_own(fleet):
    with pytest.raises(SettingsError, match="'prefect-x' cannot be created"):
        fleet.join("prefect-x")
    assert fleet.ledger.roster.rows() == []


def test_a_worker_that_lost_its_name_while_its_pool_was_made_does_not_join(fleet, monkeypatch):
    made = fleet.api._create_pool

    def slowly(body):
        standing = fleet.row
        assert fleet.ledger.roster.sign_on(row("w@h", nonce="other"), over=standing) is None
        return made(body)

    monkeypatch.setattr(fleet.api, "_create_pool", slowly)
    with pytest.raises(NameTaken, match="was started meanwhile"):
        fleet.join("new")
    assert fleet.row.nonce == "other"


def test_a_work_queue_that_does_not_exist_is_named_with_those_that_do_and_not_made(fleet, caplog):
    fleet.api._create_queue("there", {"name": "high"})
    joined = fleet.join("there", work_queues=("hihg", "high"))
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (said.work_queue, said.pools, said.exist) == ("hihg", "there", "default, high")
    assert "no such work queue" in said.message
    assert {queue["name"] for queue in fleet.api.queues.values()} == {"default", "high"}
    assert joined.offer.work_queues == ("hihg", "high")
