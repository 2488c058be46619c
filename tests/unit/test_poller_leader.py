"""Election: one leads, the others watch its counter by their own clock."""

import threading

import pytest

from flowfleet.ledger.claims import Lease
from flowfleet.retry import RetrySchedule
from poller.leader import Leadership, LeadershipThread
from tests.unit.memory_ledger import MemoryLedger
from tests.unit.poller_world import Time
from tests.waiting import until


class Race:
    """A gate, a clock, and those who would lead; the first has just been elected."""

    def __init__(self):
        self.ledger, self.time = MemoryLedger(), Time()
        self.gate = self.ledger.gate
        self.first, self.second, self.third = (self.candidate(name) for name in "abc")
        assert self.first.tend() == 1
        self.second.tend(), self.third.tend()

    def candidate(self, name="a"):
        clock = self.time.clock.monotonic
        return Leadership(self.gate, name=name, host="h", nonce=name, lease=Lease(), leader_seconds=15.0, clock=clock)


@pytest.fixture
def race():
    return Race()


def test_the_first_leads_at_once_and_a_standby_waits_while_the_counter_moves(race):
    for _ in range(100):
        race.time.now += 3
        assert race.first.tend() == 1
        assert race.second.tend() is None


def test_a_standby_takes_over_after_fifteen_seconds_without_a_beat(race):
    race.time.now += 14.9
    assert race.second.tend() is None
    race.time.now += 0.2
    assert race.second.tend() == 2
    assert race.first.tend() is None  # it comes back and finds another
    assert race.first.term is None


def test_only_one_of_two_standbys_wins(race):
    race.time.now += 16
    assert [race.second.tend(), race.third.tend()] == [2, None]


def test_an_outage_begins_the_watch_anew(race):
    race.time.now += 14
    race.second.begin_anew()
    race.time.now += 5
    assert race.second.tend() is None


def test_after_resigning_the_standby_need_not_wait_and_the_old_one_stays_out(race):
    race.first.resign()
    assert race.first.tend() is None
    assert race.second.tend() is not None


# the id of the ledger


def test_the_leader_gives_an_emptied_redis_its_id_back(race):
    before = race.first.ledger
    assert race.gate.ledgers() == (before,)
    race.gate.lose()
    assert race.first.tend() is not None
    assert (race.first.ledger, race.gate.ledgers()) == (before, (before,))


def test_a_standby_gives_an_emptied_redis_its_id_back_where_the_leader_is_gone_too(race):
    before = race.first.ledger
    race.gate.lose()
    assert race.second.tend() is not None
    assert (race.second.ledger, race.gate.ledgers()) == (before, (before,))


def test_a_redis_that_is_emptied_in_the_middle_of_a_beat_makes_its_leader_forget_nothing(race):
    before, lead = race.first.ledger, race.gate.lead

    def lead_and_lose(*numbers):
        race.gate.lead = lead
        answer = lead(*numbers)
        race.gate.lose()
        return answer

    race.gate.lead = lead_and_lose
    race.first.tend()
    assert race.gate.ledgers() == ()
    race.first.tend()
    assert race.gate.ledgers() == (before,)


def test_a_poller_that_stops_while_nobody_leads_gives_an_emptied_redis_its_id_back(race):
    before = race.first.ledger
    race.gate.lose()
    assert race.second.stand_down() is not None
    assert race.second.ledger == before


def test_a_poller_that_remembers_nothing_makes_an_emptied_redis_another_ledger_and_hears_of_the_earlier_one(race):
    before = race.first.ledger
    race.gate.lose()
    newcomer = race.candidate("new")
    assert newcomer.tend() is not None
    assert newcomer.ledger not in ("", before)

    assert race.second.tend() is None  # it stands by, and gives what it remembers
    assert race.gate.ledgers() == (newcomer.ledger, before)
    newcomer.tend()
    race.gate.lose()
    newcomer.tend()
    assert race.gate.ledgers() == (newcomer.ledger, before)


def test_a_refused_term_is_left_at_once_and_an_older_refusal_is_ignored(race):
    race.first.lose(0)
    assert race.first.term == 1
    race.first.lose(1)
    assert race.first.term is None


def test_a_leader_whose_loop_hangs_stops_its_counter(race):
    beat = race.gate.written.beat
    outage = RetrySchedule("Redis", race.time.clock.monotonic)
    LeadershipThread(race.first, outage=outage, changed=lambda: None, working=lambda: False)._once()
    assert race.gate.written.beat == beat


def test_the_leadership_thread_says_an_outage_and_survives_it(race):
    outage, elected = RetrySchedule("Redis", race.time.clock.monotonic), threading.Event()
    race.gate.written = None
    leadership_thread = LeadershipThread(
        race.candidate(), outage=outage, changed=elected.set, working=lambda: True, beat_seconds=0.01
    )
    race.ledger.away = True
    leadership_thread.start()
    try:
        until(lambda: outage.away, 5, "the outage to be seen")
        race.ledger.away = False
        assert elected.wait(10)
        assert not outage.away
    finally:
        leadership_thread.stop()


def test_a_standby_believes_an_outage_over_when_it_has_seen_a_write(race):
    outage = RetrySchedule("Redis", race.time.clock.monotonic)
    thread = LeadershipThread(race.second, outage=outage, changed=lambda: None, working=lambda: True)
    race.ledger.refuses = True
    race.time.now += 16
    thread._once()
    assert outage.away, "it could not be elected"
    for _ in range(5):
        race.time.now += 2
        thread._once()
        assert outage.away, "that the leader's row can be read proves nothing"
    race.ledger.refuses = False
    race.first.tend()
    thread._once()
    assert not outage.away
