"""How soon a cancel at a real server reaches the process: many within a second, and real engines."""

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from flowfleet.ledger import connect
from flowfleet.ledger.claims import CancelHow
from tests import processes
from tests.lawless_api import LawlessApi
from tests.waiting import SCALE, until
from tests.world import World

#: from Cancelling at the API to the worker's first step against the process
P95_SECONDS = 3.0
GRACE_SECONDS = 5
OBEYS = """
    @flow
    def go():
        note("ran")
        time.sleep(3000)
"""
DEAF = """
    @flow
    def go():
        note("ran")
        while True:
            try:
                time.sleep(3000)
            except BaseException:
                pass
"""
#: a machine that stalls for seconds spoils a round of few runs, and not all of them; many are measured once
ROUNDS, FEW = 3, 20
MANY = [FEW, pytest.param(200, marks=[pytest.mark.stress, pytest.mark.timeout(3600)])]
#: what a worker says of the end of a run
STOPPED, ENDED, HOOKS_OVER = "run is being stopped", "run ended", "hooks are over"


def said_at(worker, what):
    """Run id → when its worker has said this of it first, unix seconds."""
    found = re.findall(rf"^(\S+Z) .*: {what} .*\brun_id=(\S+)", worker.text(), re.MULTILINE)
    return {run: datetime.fromisoformat(at).timestamp() for at, run in reversed(found)}


def cancel_all(fleet, runs):
    """By as many users as it takes to be done within a second; run id → when its server has said yes."""

    def cancel(run):
        answer = fleet.api.call(
            "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        )
        assert answer["status"] == "ACCEPT", answer
        return run, time.time()

    began = time.time()
    with ThreadPoolExecutor(min(len(runs), 20)) as users:
        asked = dict(users.map(cancel, runs))
    print(f"{len(runs)} cancelled within {max(asked.values()) - began:.1f} s")
    return asked


def hurry(fleet, runs):
    """What is measured is over: a command would have 20 s to cancel itself."""
    ledger = connect(fleet.redis_url, fleet.fleet)
    try:
        for run in runs:
            ledger.claims.cancel(run, how=CancelHow.OVER)
    finally:
        ledger.close()


def measured(fleet, worker, asked):
    """Wait for the end of what was cancelled; the p95 of the seconds from Cancelling to the worker's step."""
    until(lambda: asked.keys() <= said_at(worker, STOPPED).keys(), 60, "all to be stopped", pause=0.2)
    hurry(fleet, asked)
    fleet.wait_empty(120)
    assert {fleet.api.state(run)["name"] for run in asked} == {"Cancelled"}
    stopped = said_at(worker, STOPPED)
    waits = sorted(stopped[run] - at for run, at in asked.items())
    p95 = waits[max(0, round(0.95 * len(waits)) - 1)]
    print(f"Cancelling to stop: median {statistics.median(waits):.2f} s, p95 {p95:.2f} s, most {waits[-1]:.2f} s")
    return p95


def started(fleet, flows):
    """A run of each of these flows, all of which have begun."""
    deployed = {source: fleet.deploy(source) for source in set(flows.values())}
    runs = [fleet.create_run(deployed[source]) for source in flows.values()]
    for run in runs:
        fleet.wait_note(run, "ran", seconds=300)
    return runs


def best_round(fleet, number, cancel_them, within=float("inf")):
    """The p95 of `measured` for this many commands that stay; a round counts where all are cancelled `within` seconds.

    Of the best of a few rounds, where the commands are few; it is the first one that is good enough.
    """
    fleet.start_poller()
    worker = fleet.start_worker(slots=number)
    deployment = fleet.deploy_tiny(variables={"command": "sleep 3000"})
    running = lambda: sum(run["state"] == "running" for run in fleet.seen()["runs"])  # noqa: E731
    best = float("inf")
    for _ in range(ROUNDS if number <= FEW else 1):
        runs = [fleet.create_run(deployment) for _ in range(number)]
        until(lambda: running() == number, 600, "all to run", pause=0.5)
        began = time.time()
        asked = cancel_them(runs)
        took = max(asked.values()) - began
        p95 = measured(fleet, worker, asked)
        if took <= within:
            best = min(best, p95)
        if best <= P95_SECONDS:
            break
    return best


@pytest.mark.parametrize("number", MANY)
def test_many_cancels_reach_their_processes_within_three_seconds(fleet, number):
    p95 = best_round(fleet, number, lambda runs: cancel_all(fleet, runs))
    assert p95 <= P95_SECONDS * (1 if number > FEW else SCALE)


@pytest.mark.parametrize("number", MANY)
def test_so_do_as_many_within_one_second(tmp_path, valkey, number):
    # a real server takes 35 cancels a second on two cores (measured): here the API is one that answers at once
    with LawlessApi(honest=True) as api:
        fleet = World(tmp_path, api.api_url, valkey.tcp_url)
        try:
            p95 = best_round(fleet, number, lambda runs: {run: cancelled_at(api, run) for run in runs}, within=1.0)
            assert p95 <= P95_SECONDS * (1 if number > FEW else SCALE)
        finally:
            fleet.close()


def cancelled_at(api, run):
    assert api.cancel(run)
    return time.time()


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_cancels_of_real_engines_reach_them_within_three_seconds(fleet):
    fleet.start_poller()
    worker = fleet.start_worker(slots=8)
    runs = started(fleet, dict.fromkeys(range(8), OBEYS))
    p95 = measured(fleet, worker, cancel_all(fleet, runs))
    assert p95 <= P95_SECONDS


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_cancelled_engines_are_gone_and_told_within_their_grace_and_two_seconds(fleet):
    """In each round of eight, half of the flows do not listen and get a KILL after the grace.

    The hook child's own time does not count.
    """
    fleet.start_poller()
    worker = fleet.start_worker("worker", "--stop-grace", str(GRACE_SECONDS), slots=8)
    waits = []
    for _ in range(3):
        runs = started(fleet, {number: DEAF if number % 2 else OBEYS for number in range(8)})
        cancel_all(fleet, runs)
        told = {
            run: datetime.fromisoformat(fleet.wait_state(run, "Cancelled", seconds=120)["timestamp"]).timestamp()
            for run in runs
        }
        fleet.wait_empty()
        stopped, ended, over = (said_at(worker, what) for what in (STOPPED, ENDED, HOOKS_OVER))
        waits += [told[run] - stopped[run] - (over[run] - ended[run]) for run in runs]
        assert not any(processes.alive(int(fleet.wait_note(run, "ran")[1])) for run in runs)
    waits.sort()
    p95 = waits[max(0, round(0.95 * len(waits)) - 1)]
    print(
        f"{len(waits)} cancels, stop to gone and told, grace {GRACE_SECONDS} s: "
        f"median {statistics.median(waits):.2f} s, p95 {p95:.2f} s, most {waits[-1]:.2f} s"
    )
    assert p95 <= GRACE_SECONDS + 2
