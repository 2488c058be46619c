"""Election: one leads, the others watch its counter by their own clock."""

import threading

from flowfleet.ledger.claims import Lease
from flowfleet.retry import RetrySchedule
from poller.leader import Leadership, LeadershipThread
from tests.unit.poller_world import FakeGate, Time
from tests.waiting import until


def candidate(gate, time, name="a"):
    return Leadership(
        gate, name=name, host="h", nonce=name, lease=Lease(), leader_seconds=15.0, clock=time.clock.monotonic
    )


def test_the_first_leads_at_once():
    time, gate = Time(), FakeGate()

    assert candidate(gate, time).tend() == 1


def test_a_standby_waits_while_the_counter_moves():
    time, gate = Time(), FakeGate()
    first, second = candidate(gate, time), candidate(gate, time, "b")
    first.tend()
    for _ in range(100):
        time.now += 3
        assert first.tend() == 1
        assert second.tend() is None


def test_a_standby_takes_over_after_fifteen_seconds_without_a_beat():
    time, gate = Time(), FakeGate()
    first, second = candidate(gate, time), candidate(gate, time, "b")
    first.tend()
    second.tend()
    time.now += 14.9
    assert second.tend() is None
    time.now += 0.2
    assert second.tend() == 2

    assert first.tend() is None  # it comes back and finds another
    assert first.term is None


def test_only_one_of_two_standbys_wins():
    time, gate = Time(), FakeGate()
    gone, second, third = (candidate(gate, time, name) for name in "abc")
    gone.tend()
    second.tend(), third.tend()
    time.now += 16

    assert [second.tend(), third.tend()] == [2, None]


def test_an_outage_begins_the_watch_anew():
    time, gate = Time(), FakeGate()
    first, second = candidate(gate, time), candidate(gate, time, "b")
    first.tend()
    second.tend()
    time.now += 14
    second.begin_anew()
    time.now += 5

    assert second.tend() is None


def test_after_resigning_the_standby_need_not_wait_and_the_old_one_stays_out():
    time, gate = Time(), FakeGate()
    first, second = candidate(gate, time), candidate(gate, time, "b")
    first.tend()
    second.tend()
    first.resign()

    assert first.tend() is None
    assert second.tend() is not None


def test_a_refused_term_is_left_at_once_and_an_older_refusal_is_ignored():
    time, gate = Time(), FakeGate()
    first = candidate(gate, time)
    first.tend()
    first.lose(0)
    assert first.term == 1
    first.lose(1)
    assert first.term is None


def test_a_leader_whose_loop_hangs_stops_its_counter():
    time, gate = Time(), FakeGate()
    first = candidate(gate, time)
    first.tend()
    beat = gate.written.beat
    leadership_thread = LeadershipThread(
        first, outage=RetrySchedule("Redis", time.clock.monotonic), changed=lambda: None, working=lambda: False
    )
    leadership_thread._once()

    assert gate.written.beat == beat


def test_the_leadership_thread_says_an_outage_and_survives_it():
    time, gate = Time(), FakeGate()
    outage = RetrySchedule("Redis", time.clock.monotonic)
    elected = threading.Event()
    leadership_thread = LeadershipThread(
        candidate(gate, time), outage=outage, changed=elected.set, working=lambda: True, beat_seconds=0.01
    )
    gate.away = True
    leadership_thread.start()
    try:
        until(lambda: outage.away, 5, "the outage to be seen")
        gate.away = False
        assert elected.wait(10)
        assert not outage.away
    finally:
        leadership_thread.stop()
