"""The outbox of a worker: ends that the API does not take at once are told once, whatever it does meanwhile."""

import pytest

from flowfleet.api.client import StateType
from flowfleet.api.transport.session import READ_SECONDS
from flowfleet.errors import ApiUnavailable
from flowfleet.flow_run import report_id
from tests.run_oracle import wrong
from tests.waiting import SCALE, until
from tests.worker_world import WorkerWorld
from workers.background import BackgroundJobs
from workers.runs.revived import OUTCOME

WRITE = "bulk_set_state"
BREAKS = "the line breaks after it"
FAULTS = {
    "500": {"status": 500},
    "429": {"status": 429, "Retry_After": "1"},
    "in maintenance": {"status": 503, "Prefect_Maintenance": "true"},
    "no answer": {"kind": "mute"},
    "a proxy's page": {"kind": "page", "status": 200},
    BREAKS: {"kind": "drop_after"},
    "it is carried out after the time-out": {"kind": "late"},
}


@pytest.fixture
def world(valkey, tmp_path):
    made = WorkerWorld(valkey.tcp_url, tmp_path)
    made.api.honest = True
    yield made
    made.close()


def fail(world, fault):
    """From now on, and no answer is waited for longer than a moment: before that a slow one might spoil the start."""
    world.client.session.read_seconds = 0.5 * SCALE
    how = dict(FAULTS[fault])
    world.api.fail(WRITE, how.pop("kind", "status"), times=-1, **how)


def heal(world):
    world.client.session.read_seconds = READ_SECONDS
    world.api.heal()


def waiting(world):
    """How many reports are on the disk."""
    return sum(1 for _ in world.state.outbox)


def ended_with_report(world, fault):
    """A run whose end cannot be told now."""
    message = world.begin(6)
    world.api.write(message.run_id, "RUNNING")
    fail(world, fault)
    asked = world.api.counted(WRITE)
    world.release()
    until(lambda: world.api.counted(WRITE) > asked, 20, "a try that came to nothing")
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_an_end_is_told_once_when_the_api_takes_it_again_also_by_the_next_worker(world, service, fault):
    message = ended_with_report(world, fault)
    # the slot does not wait
    world.wait_free()
    world.next_worker()
    if fault == BREAKS:
        until(lambda: waiting(world) == 0, 20, "what was carried out to be known as ours when it is read again")
    else:
        assert waiting(world) == 1
    heal(world)
    world.api.release()
    world.service.to_api.retry()
    world.wait_gone(message, 60)
    assert waiting(world) == 0
    assert "exited with code 6" in world.told(message)
    assert world.api.state(message.run_id)["state_details"]["transition_id"] == report_id(
        message.claim, StateType.CRASHED
    )
    assert wrong(message.run_id, [], world.api.history(message.run_id)) == []


@pytest.mark.parametrize("back", [False, True], ids=["deleted", "not found once"])
def test_a_run_that_is_deleted_while_its_end_waits_is_settled_when_it_is_not_found_twice(world, service, back):
    message = ended_with_report(world, "500")
    run = world.api.runs.pop(message.run_id)
    asked = world.api.counted("GET /flow_runs/ID")
    heal(world)
    world.service.to_api.retry()
    looked = lambda: world.api.counted("GET /flow_runs/ID") > asked  # noqa: E731
    until(looked, 20, "the API to be asked")
    if back:
        # it was another server behind its address, or one without its data
        world.api.runs[message.run_id] = run
    service.to_api.hurry()
    record = world.wait_gone(message, 60)
    assert record["reason"] == ("crashed" if back else "gone")


@pytest.mark.parametrize("settled", [True, False], ids=["it was told", "nobody knows"])
def test_a_claim_that_redis_has_again_after_its_end_was_told_is_released_when_the_gate_opens(world, service, settled):
    """An older snapshot, or a replica that lacks the last writes: the claim would take up its slot."""
    message = world.begin(6)
    store = world.ledger.ledger.store
    key = store.key(f"claim:{message.run_id}")
    older = store.client.hgetall(key)
    world.end(message, 6)
    if not settled:
        (world.run_folder(message).path / "settled").unlink()
    records = len(world.ledger.claims.records())
    world.ledger.shut()
    service.heartbeat.nudge()
    until(lambda: not service.ledger_view.gate_open, 20, "the gate to be seen shut")
    store.client.hset(key, mapping=older)
    store.client.sadd(store.key("claims"), message.run_id)
    world.ledger.open()
    until(lambda: service.ledger_view.gate_open, 20, "the gate to be seen open")
    if settled:
        until(lambda: world.ledger.claims.get(message.run_id) is None, 20, "the claim to be released")
        assert world.ledger.claims.records()[0]["outcome"] == OUTCOME
    else:
        # the leader judges it
        service.heartbeat.renew()
        assert world.ledger.claims.get(message.run_id) is not None
        assert len(world.ledger.claims.records()) == records


@pytest.mark.parametrize("restarted", [False, True], ids=["the same worker", "the next worker"])
def test_an_end_that_was_overtaken_by_a_restart_is_logged_with_its_exit_and_covers_nothing(
    world, service, restarted, caplog
):
    """By somebody else: in the fleet itself the claim stands until its end is told."""
    message = ended_with_report(world, "500")
    with world.api.at_once():  # a try that read the first of these would find an end that was told
        for kind, name in (("FAILED", None), ("SCHEDULED", None), ("PENDING", "Submitted"), ("RUNNING", None)):
            world.api.write(message.run_id, kind, name, transition_id=None)
    if restarted:
        world.next_worker()
    heal(world)
    world.service.to_api.retry()
    assert world.wait_gone(message, 60)["reason"] == "overtaken"
    assert world.api.history(message.run_id)[-1] == "Running"
    (told,) = [record for record in caplog.records if "claimed anew" in record.message]
    assert "exited with code 6" in told.end


def test_an_api_that_is_away_for_ten_minutes_is_asked_now_and_then_and_told_as_soon_as_it_is_back():
    now, asked, away = [1000.0], [], [True]
    jobs = BackgroundJobs("the Prefect API", lambda: now[0])
    jobs.start()

    def report():
        asked.append(now[0])
        if away[0]:
            raise ApiUnavailable("no answer")

    def tick():
        """A second later."""
        now[0] += 1.0
        jobs.post(lambda: None)  # wakes the thread, which sleeps by the real clock
        return jobs.wait_idle(0)

    def settled():
        # in this order: a job that is taken between the two looks is seen in the second
        return all(at > now[0] for at, *_ in list(jobs._jobs)) and not jobs._busy

    jobs.post(report)
    for _ in range(600):
        tick()
        until(settled, 10, "the thread to be done with this second", pause=0.0005)
    assert 600 / 10 <= len(asked) < 600 / 10 + 10
    away[0] = False
    back = now[0]
    while not jobs.wait_idle(0) and now[0] < back + 60:
        tick()
        until(settled, 10, "the thread to be done with this second", pause=0.0005)
    assert asked[-1] - back <= 11
    jobs.close()
