"""Top: what its keys do, and a page that fits the terminal to the line, however much there is to show."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from flowfleet.flow_run import Route
from flowfleet.ledger.claims import State
from flowfleet.monitor.keyboard import keys
from flowfleet.monitor.top import SORTS, Look, Screenful, View, page
from tests.unit.memory_ledger import POOL
from tests.unit.test_status import AT, _claim, _row, _snapshot, _tomb

_PAGE = Screenful(content="", rows=10, most_above=25)


@pytest.mark.parametrize(
    ("typed", "pressed"),
    [
        ("q", ["q"]),
        ("ab\r", ["a", "b", "enter"]),
        ("\x1b", ["escape"]),
        ("\x1b[A\x1bOB", ["up", "down"]),
        ("\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["page-up", "page-down", "home", "end"]),
        ("\x1b[1;5C\x1b[24~x", ["x"]),
        ("ä\x7f\x01", ["ä", "backspace"]),
    ],
)
def test_what_a_terminal_sends_is_read_as_keys_and_what_nobody_needs_is_passed_over(typed, pressed):
    assert keys(typed) == pressed


def _pressed(*pressed: str, view: View | None = None) -> View:
    view = view or View()
    for key in pressed:
        view = view.press(key, _PAGE)
    return view


def test_the_keys_quit_sort_turn_and_move_within_what_there_is():
    assert _pressed("q").over
    assert [_pressed(*["s"] * times).sort for times in range(len(SORTS) + 1)] == [*SORTS, SORTS[0]]
    assert _pressed("r").reverse
    moves = (["down"], ["up"], ["page-down"] * 4, ["end", "page-up"], ["end", "home"])
    assert [_pressed(*which).above for which in moves] == [1, 0, 25, 15, 0]
    assert _pressed("end", "s").above == _pressed("end", "/").above == 0, "another list begins at its first run"
    assert _pressed("x", "enter", "backspace") == View()


def test_a_filter_is_typed_taken_mended_and_left():
    assert _pressed("/", "q", "s") == View(typing=True, filter="qs"), "letters are no keys while it is typed"
    assert _pressed("/", "a", "b", "backspace", "up", "enter") == View(filter="a")
    assert _pressed("/", "a", "clear", "c", "enter") == View(filter="c")
    assert _pressed("/", "a", "escape") == _pressed("/", "a", "enter", "escape") == View()


def _fleet(runs=0, queues=1, workers=1, **facts):
    claims = [
        _claim(run_id=f"{number:08d}-2222-4222-8222-222222222222", flow=f"flow-{number % 3}") for number in range(runs)
    ]
    claims = [replace(claim, name=f"run-{number:03d}", since=AT - number) for number, claim in enumerate(claims)]
    made = _snapshot(claims=claims, rows=[_row(f"worker@host-{number}") for number in range(workers)], **facts)
    several = [replace(made.queues[0], route=Route("prefect3", POOL, f"q{number}")) for number in range(queues)]
    return replace(made, queues=tuple(several))


def _shown(snapshot, view=None, *, width=80, height=24, **about):
    out = Console(file=io.StringIO(), width=width, height=height, no_color=True)
    made = page(view or View(), Look(snapshot=snapshot, **about), out)
    out.print(made.content, end="")
    return made, out.file.getvalue().removesuffix("\n").split("\n")


@pytest.mark.parametrize("height", [10, 24, 60, 200])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    "snapshot",
    [
        _fleet(0, 0, 0, leader=False),
        _fleet(3),
        _fleet(300),
        replace(_fleet(300, 50, 40, gate_open=False), tombs=(_tomb(),)),
    ],
    ids=["empty", "small", "many runs", "many of all"],
)
def test_the_page_fills_the_terminal_to_the_line_and_ends_with_its_keys(snapshot, width, height):
    made, lines = _shown(snapshot, width=width, height=height)
    assert max(map(len, lines)) <= width
    assert "q quit" in lines[-1]
    assert len(lines) == height
    if height >= 24:
        assert made.rows >= min(3, len(snapshot.claims)), "runs keep their place"
        assert sum("run-" in line for line in lines) == min(len(snapshot.claims), made.rows)


def test_the_runs_are_sorted_filtered_and_moved_and_the_page_says_which_are_shown():
    snapshot = _fleet(100)
    made, lines = _shown(snapshot, View(above=10))
    text = "\n".join(lines)
    assert f"runs 11 to {10 + made.rows} of 100, by since" in text
    assert made.most_above == 100 - made.rows
    first = next(line for line in lines if line.startswith("run-"))
    assert first.startswith("run-089"), "the oldest first"
    assert "runs 34 with 'Flow-0' of 100, by run, the other way round" in "\n".join(
        _shown(snapshot, View(filter="Flow-0", sort="run", reverse=True), height=80)[1]
    )
    _, beyond = _shown(snapshot, View(above=1000))
    assert "of 100" in "\n".join(beyond), "what has ended meanwhile leaves no empty page"
    _, none = _shown(snapshot, View(filter="[red]nothing", typing=True))
    assert "runs 0 with '[red]nothing' of 100" in "\n".join(none)
    assert none[-1].startswith("filter: [red]nothing")


@pytest.mark.parametrize("sort", SORTS)
def test_each_order_is_one_of_a_column(sort):
    claims = [
        _claim(run_id=str(number), state=state, flow=flow, worker=worker)
        for number, (state, flow, worker) in enumerate(
            [(State.STARTING, "b", "v@h"), (State.RUNNING, "a", "w@h"), (State.QUEUED, "c", None)]
        )
    ]
    found = View(sort=sort).chosen(_snapshot(claims=claims))
    told = {
        "since": [claim.since for claim in found],
        "run": [claim.name for claim in found],
        "flow": [claim.flow for claim in found],
        "state": [str(claim.state) for claim in found],
        "worker": [claim.worker or "" for claim in found],
    }[sort]
    assert told == sorted(told)


def test_a_redis_that_is_away_is_told_with_the_age_of_what_is_shown():
    _, lines = _shown(_fleet(3), trouble="Redis at redis://box/0 does not answer", away_seconds=75.0)
    told = " ".join(" ".join(lines[:3]).split())
    assert "Redis at redis://box/0 does not answer" in told
    assert "as it was at 2026-01-02T03:04:05.000Z, 1m 15s ago" in told
    assert len(lines) == 24
