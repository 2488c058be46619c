"""Resume wait: a drained worker waits for its operator, through outages of Redis."""

from flowfleet.errors import LedgerUnavailable
from tests.unit.memory_ledger import MemoryLedger
from workers.lifecycle.resume_wait import ResumeWait


def waited(*steps, wanted="draining"):
    """How many pauses there were until it went on; in each of them one step is done."""
    roster, left, pauses = MemoryLedger().roster, list(steps), []
    roster.add("w@h")
    roster.change("w@h", wanted=wanted)

    def pause(_seconds):
        pauses.append(left.pop(0)(roster))

    ResumeWait(roster, "w@h", pause).run()
    assert left == []
    return len(pauses)


def test_it_goes_on_when_the_operator_says_so():
    assert waited(lambda _: None, lambda roster: roster.change("w@h", wanted="active")) == 2
    assert waited(lambda roster: roster.change("w@h", wanted="paused")) == 1


def test_one_that_is_forgotten_goes_on_since_nobody_wants_anything_of_it():
    assert waited(lambda roster: roster.table.pop("w@h")) == 1


def test_an_outage_of_redis_says_nothing(monkeypatch):
    def away(roster):
        def refuse():
            raise LedgerUnavailable("nobody answers")

        monkeypatch.setattr(roster, "rows", refuse)

    def back(roster):
        monkeypatch.undo()
        roster.change("w@h", wanted="active")

    assert waited(away, back) == 2
