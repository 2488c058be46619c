"""The transition table against the scripts and the page that come from it."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from flowfleet.ledger.protocol import render
from flowfleet.ledger.transitions import REFUSALS, TRANSITIONS, Refusal, State

SCRIPTS = {
    item.name.removesuffix(".lua"): item.read_text() for item in (files("flowfleet.ledger") / "scripts").iterdir()
}
BUILT = [row for row in TRANSITIONS if row.built]


def test_the_page_about_the_protocol_is_what_the_table_says():
    page = Path(__file__).parents[2] / "docs" / "protocol.md"
    if not page.parent.exists():
        pytest.skip("the docs are not here: this is a wheel without its source tree")
    assert page.read_text() == render(), "print it again: see the head of docs/protocol.md"


def test_each_built_move_has_its_script_and_the_others_have_none():
    assert {row.script for row in BUILT} <= set(SCRIPTS)
    assert not {row.script for row in TRANSITIONS if not row.built} & set(SCRIPTS)


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.name)
def test_each_script_asks_the_table_for_the_states_that_it_goes_from(row):
    if row.sources:
        assert "from_source(" in SCRIPTS[row.script]


def test_each_place_is_led_to_and_each_refusal_of_the_table_has_a_sentence_that_is_used():
    reached = {row.target for row in TRANSITIONS} | {State.TAKEN}
    assert {state for row in TRANSITIONS for state in row.sources} <= reached

    assert {why for row in TRANSITIONS for why in row.refusals} == set(Refusal) == set(REFUSALS)


def test_only_display_and_clean_up_look_at_the_clock_of_the_redis_host():
    for name, source in SCRIPTS.items():
        code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))
        uses = re.findall(r"^.*(?:now\(\)|'TIME').*$", code, re.MULTILINE)
        allowed = (
            "local function now",
            "redis.call('TIME')",
            "since = now()",
            "_at = now()",
            "key('attempted'), ",
            "key('forgotten'), now()",
            "key('due_at'), now()",
            "seen",
            "ZRANGEBYSCORE",
        )
        assert all(any(word in line for word in allowed) for line in uses), (name, uses)
        assert "EXPIRE" not in code
