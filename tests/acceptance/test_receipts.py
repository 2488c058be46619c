"""Receipts: ends of real Prefect 3 engines are settled by their own word, and nearly none is asked for at the API."""

import json
import os
import re
from collections import Counter

import pytest

from tests import folders
from tests.waiting import until

FLOWS = {
    "completed": """
        @flow
        def go():
            note("ran")
    """,
    "failed": """
        @flow
        def go():
            note("ran")
            raise ValueError("the flow says no")
    """,
}
#: FLOWFLEET_TEST_RUNS: fewer on a machine that has no time for all
MANY = int(os.environ.get("FLOWFLEET_TEST_RUNS", "500"))


@pytest.mark.parametrize(
    ("number", "slots"),
    [(6, 2), pytest.param(MANY, 4, marks=[pytest.mark.stress, pytest.mark.timeout(10800)])],
    ids=["few", "many"],
)
def test_ends_of_real_engines_have_receipts_and_cost_no_request(fleet, number, slots):
    fleet.start_poller()
    worker = fleet.start_worker(slots=slots)
    deployments = {name: fleet.deploy(source, name=name) for name, source in FLOWS.items()}
    runs = {fleet.create_run(deployments[name]): name for name in [*FLOWS] * (number // 2)}
    state = fleet.folder / "state"
    settled = lambda: len(folders.found(state, "**/settled"))  # noqa: E731
    until(lambda: settled() == number, 30 + 12 * number / slots, f"{number} ends", pause=1.0)
    assert {run_id: fleet.api.state(run_id)["name"].lower() for run_id in runs} == runs, "each has its true end"

    exits = [json.loads(path.read_text()) for path in folders.found(state, "**/exit.json")]
    receipts = Counter((record["receipt"] or {}).get("state_type") for record in exits)
    counted = Counter(
        {
            word: int(float(count))
            for word, count in re.findall(
                r'^flowfleet_receipts_total\{result="(\w+)"\} (\S+)$', worker.ask("/metrics")[1], re.MULTILINE
            )
        }
    )
    ages = sorted(record["receipt_age"] for record in exits if record["receipt_age"] is not None)
    print(f"{number} ends: receipts {dict(receipts)}, {dict(counted)}, the oldest {ages[-1]} s old at its end")
    assert len(exits) == number
    assert receipts["COMPLETED"] + receipts["FAILED"] >= 0.99 * number
    assert counted["wrong"] == 0
    # the sample is one of twenty; no other end has cost a request
    assert counted["believed"] >= 0.99 * number - max(4, number // 10)
