"""Ids of runs as people are shown them."""

import uuid

from flowfleet.flow_run import telling_ids

#: of one second, made one after the other
ORDERED = [
    "01987abc-1a2b-7c3d-8e4f-000000000001",
    "01987abc-1a2c-7c3d-8e4f-000000000002",
    "01987abc-1b00-7c3d-8e4f-000000000003",
]


def test_ids_are_shown_by_their_first_eight_letters_where_these_tell_them_apart() -> None:
    ids = [f"{number}987abcd-1a2b-4c3d-8e4f-000000000000" for number in range(4)]
    assert telling_ids(ids) == {run_id: run_id[:8] for run_id in ids}
    assert telling_ids(ids[:1]) == {ids[0]: ids[0][:8]}
    assert telling_ids([]) == {}


def test_time_ordered_ids_are_shown_by_as_many_letters_as_tell_all_of_them_apart() -> None:
    assert list(telling_ids(ORDERED).values()) == ["01987abc-1a2b", "01987abc-1a2c", "01987abc-1b00"]
    assert list(telling_ids(ORDERED[::2]).values()) == ["01987abc-1a", "01987abc-1b"]


def test_a_run_that_is_listed_twice_lengthens_no_id() -> None:
    assert telling_ids([ORDERED[0], ORDERED[0]]) == {ORDERED[0]: "01987abc"}


def test_any_thousand_ids_stay_apart() -> None:
    ids = [str(uuid.UUID(int=(1 << 120) + number)) for number in range(1000)]
    assert len(set(telling_ids(ids).values())) == 1000
