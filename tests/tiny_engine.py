"""Tiny engine: stands in for the real one, of either Prefect, where a test needs many runs or held ones.

`tiny_engine.py SECONDS|hold EXIT-CODE`, or `TINY_HOLD` and `TINY_EXIT`. What it writes is what the real one writes, in
its order: Running, then the end. `hold` leaves the file `RUN.held` among the notes once the API has *answered* that it
runs, and waits there for the file `release`.
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path


# flows of tests have the text of these two, so that they count themselves
def notes_path():
    # Prefect 1, a worker of ours, a stock worker
    names = ("PREFECT__CONTEXT__FLOW_RUN_ID", "FLOWFLEET_RUN_ID", "PREFECT__FLOW_RUN_ID")
    return Path(os.environ["FFTEST_NOTES"], next(os.environ[name] for name in names if name in os.environ))


def note(word):
    """A line in the run's own notes."""
    with notes_path().open("ab", buffering=0) as notes:
        who, claim = os.environ.get("FFTEST_WHO", "-"), os.environ.get("FLOWFLEET_CLAIM", "-")
        notes.write(f"{word} {os.getpid()} {time.time():.6f} {who} {claim}\n".encode())


def tell_prefect1(url, kind):
    query = "mutation($input: set_flow_run_states_input!) { set_flow_run_states(input: $input) { states { id } } }"
    state = {"type": kind, "message": kind, "context": {}}
    run_id = os.environ["PREFECT__CONTEXT__FLOW_RUN_ID"]
    variables = {"input": {"states": [{"flow_run_id": run_id, "version": None, "state": state}]}}
    post(
        url,
        {"query": query, "variables": json.dumps(variables)},
        10,
        lambda answer: answer.get("data") and not answer.get("errors"),
    )


def tell_prefect3(kind):
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{os.environ['FLOWFLEET_RUN_ID']}/set_state"
    post(url, {"state": {"type": kind.upper(), "name": kind}}, 30, lambda _answer: True)


def post(url, body, seconds, accepted):
    for _ in range(400):
        try:
            asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=seconds) as answer:
                if accepted(json.load(answer)):
                    return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    sys.exit(9)


def main():
    hold = sys.argv[1] if len(sys.argv) > 1 else "hold" if os.environ.get("TINY_HOLD") else "0"
    code = int(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("TINY_EXIT", "0"))
    of_prefect1 = os.environ.get("PREFECT__CLOUD__API")
    tell = (lambda kind: tell_prefect1(of_prefect1, kind)) if of_prefect1 else tell_prefect3
    note("ran")
    tell("Running")
    if hold == "hold":
        notes_path().with_suffix(".held").touch()
        gate, end = notes_path().with_name("release"), time.monotonic() + 600
        while not gate.exists() and time.monotonic() < end:
            time.sleep(0.02)
    else:
        time.sleep(float(hold))
    note("done")
    if code == 0:
        tell("Success" if of_prefect1 else "Completed")
    sys.exit(code)


if __name__ == "__main__":
    main()
