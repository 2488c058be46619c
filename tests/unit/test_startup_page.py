"""Startup page: the page of a part that waits for its neighbours, and how it becomes the page of the whole part."""

import socket
import threading

import pytest
import requests

from flowfleet.errors import SettingsError
from flowfleet.page.server import PageAnswer
from flowfleet.page.startup import StartupPage
from tests.waiting import until

FULL = {"/api/health": lambda _request: PageAnswer.json({"whole": True})}


@pytest.fixture
def startup_page():
    startup_page = StartupPage(lambda: None, clock=iter(range(100, 200)).__next__)
    yield startup_page
    startup_page.close()


def ask(startup_page, path):
    return requests.get(startup_page._page.address + path, timeout=60)


def test_who_waits_is_alive_and_not_ready_and_says_what_it_waits_for(startup_page):
    startup_page.open("127.0.0.1:0")
    with startup_page.waiting_for("Redis"):
        health, ready = ask(startup_page, "/api/health"), ask(startup_page, "/api/ready")
    starting = {"role": "starting", "waits_for": "Redis"}
    assert (health.status_code, ready.status_code) == (200, 503)
    assert health.json() == {"ok": True, **starting, "starting_for_seconds": 1}
    assert ready.json() == {"ok": False, **starting, "starting_for_seconds": 2}

    early = {"error": "This is served after the start: it is being put together."}
    assert ask(startup_page, "/metrics").json() == early
    with startup_page.waiting_for("the Prefect API"):
        late = ask(startup_page, "/metrics")
    assert (late.status_code, "waits for the Prefect API" in late.text) == (503, True)


def test_a_part_that_has_ended_and_waits_to_be_started_anew_is_alive_and_not_ready(startup_page):
    startup_page.open("127.0.0.1:0")
    startup_page.show(FULL)
    startup_page.show_start()
    with startup_page.waiting_for("worker resume w@h"):
        health, ready = ask(startup_page, "/api/health"), ask(startup_page, "/api/ready")
    assert (health.status_code, ready.status_code) == (200, 503)
    assert ready.json()["waits_for"] == "worker resume w@h"


def test_the_whole_part_is_shown_at_the_same_address_without_a_gap(startup_page):
    startup_page.open("127.0.0.1:0")
    seen, over = [], threading.Event()

    def look():
        while not over.is_set():
            seen.append(ask(startup_page, "/api/health").json())

    looking = threading.Thread(target=look)
    looking.start()
    until(lambda: len(seen) >= 3, 10, "three answers")
    startup_page.show(FULL)
    listing = len(seen)
    until(lambda: len(seen) >= listing + 3, 10, "three more")
    over.set()
    looking.join()

    assert "role" in seen[0]
    assert seen[-1] == {"whole": True}
    assert ask(startup_page, "/api/ready").status_code == 404


def test_another_address_is_moved_to_and_none_ends_it(startup_page):
    startup_page.open("127.0.0.1:0")
    first = startup_page._page.address
    startup_page.open("127.0.0.1:0")
    assert startup_page._page.address == first
    startup_page.show(FULL)
    startup_page.open("http://127.0.0.1:0")
    assert ask(startup_page, "/api/health").json() == {"whole": True}
    with pytest.raises(requests.ConnectionError):
        requests.get(first + "/api/health", timeout=60)
    startup_page.open(None)
    assert startup_page._page is None

    # before there is an address: it is served with it
    startup_page.show({"/api/health": lambda _request: PageAnswer.json({"late": True})})
    startup_page.open("127.0.0.1:0")
    assert ask(startup_page, "/api/health").json() == {"late": True}


def test_an_address_in_use_is_named(startup_page):
    words = "is in use, so choose another, or stop what has it"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError, match=words):
        startup_page.open(f"127.0.0.1:{taken.getsockname()[1]}")
