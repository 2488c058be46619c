"""The id of a ledger in the calls that claim through it, and what is remembered of ids."""

import random
import uuid

import pytest

from flowfleet.ledger.ledger_id import KEPT, ledger_of, new_call, new_id, remembered


@pytest.mark.parametrize("seed", range(20))
def test_a_call_is_a_version_4_uuid_that_says_through_which_ledger_it_claims(seed):
    ledger = new_id(random.Random(seed))
    calls = [new_call(ledger) for _ in range(3)]
    assert len(set(calls)) == 3
    for call in calls:
        read = uuid.UUID(call)
        assert (read.version, read.variant, str(read)) == (4, uuid.RFC_4122, call)
        assert ledger_of(call) == ledger


def test_a_call_through_a_ledger_without_an_id_is_an_ordinary_one():
    assert uuid.UUID(new_call("")).version == 4


def test_an_id_has_eight_digits_also_where_chance_is_low():
    class Low(random.Random):
        def getrandbits(self, k):
            return 7

    assert new_id(Low()) == "00000007"


def test_what_was_heard_last_comes_first_and_the_oldest_of_too_many_are_forgotten():
    old = [f"{number:08x}" for number in range(KEPT)]
    assert remembered(["aaaaaaaa", old[1]], old) == ("aaaaaaaa", old[1], old[0], *old[2:-1])
    assert remembered([], old) == tuple(old)


def test_what_is_no_id_is_not_remembered():
    assert remembered(["", "x,y", "AAAAAAAA", "0000000a0"], ["0000000a"]) == ("0000000a",)
