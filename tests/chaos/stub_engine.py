"""Stub engine: what runs in chaos tests. It marks its own start and end, tells the API what an engine tells, and ends.

`stub_engine.py SECONDS|hold EXIT-CODE`, or by the variables STUB_HOLD and STUB_EXIT. A line of its marks is
`WORD CLAIM PID BOOT-CLOCK`: `start`, `overlap` (another process of the same run is alive, whose claim comes fifth),
`running`, `told`, `end`; `lives`, ten times a second, where STUB_PULSE is set; and `hooks`, where it was started for
the hooks of its flow alone. A run that stays looks for Cancelling, as engines do that cancel themselves, unless
STUB_DEAF is set.
Where it finds a control session it speaks as Prefect 3's engine does: hello, receipt, or the acknowledgement of an
intent.
"""

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import urllib.request
from pathlib import Path

RUN = os.environ.get("PREFECT__CONTEXT__FLOW_RUN_ID") or os.environ["FLOWFLEET_RUN_ID"]
CLAIM = os.environ.get("FLOWFLEET_CLAIM", "-")
PREFECT1 = os.environ.get("PREFECT__CLOUD__API")
MARKS = Path(os.environ["FFTEST_NOTES"], RUN)
RECEIPT_STATE = "00000000-0000-4000-8000-000000000001"


def mark(word, *more):
    at = f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}"
    with MARKS.open("ab", buffering=0) as marks:
        marks.write((" ".join([word, CLAIM, str(os.getpid()), at, *more]) + "\n").encode())


def looks_for_another():
    """Processes of this run that have not marked their end: alive, they overlap with this one."""
    lines = [line.split() for line in MARKS.read_text().splitlines()] if MARKS.exists() else []
    ended = {line[2] for line in lines if line[0] == "end"}
    for _, claim, pid, *_ in (line for line in lines if line[0] == "start" and line[2] not in ended):
        try:
            environment = Path("/proc", pid, "environ").read_bytes().split(b"\0")
            state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"FLOWFLEET_CLAIM={claim}".encode() in environment and state not in "ZX":
            mark("overlap", claim)


def post(url, body, patience=60.0):
    """The answer; None where the API has refused for good, or does not answer in time."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=10) as answer:
                found = json.load(answer)
            # a refusal has the data null, or the field
            if not PREFECT1 or (found.get("data") and not found.get("errors")):
                return found
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    return None


def tell(kind, patience=60.0):
    """True when the API has taken the state."""
    if PREFECT1:
        query = "mutation($input: set_flow_run_states_input!) { set_flow_run_states(input: $input) { states { id } } }"
        state = {"type": {"Completed": "Success"}.get(kind, kind), "message": f"{kind}, says the stub", "context": {}}
        given = {"input": {"states": [{"flow_run_id": RUN, "version": None, "state": state}]}}
        return post(PREFECT1, {"query": query, "variables": json.dumps(given)}, patience) is not None
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{RUN}/set_state"
    answer = post(url, {"state": {"type": kind.upper(), "name": kind, "message": f"{kind}, says the stub"}}, patience)
    return bool(answer) and answer.get("status") == "ACCEPT"


def cancelling():
    """Is the run being cancelled at the API?"""
    if PREFECT1:
        query = f'query {{ flow_run(where: {{id: {{_eq: "{RUN}"}}}}) {{ state }} }}'
        answer = post(PREFECT1, {"query": query}, 2.0)
        rows = (answer or {}).get("data", {}).get("flow_run") or [{}]
        return rows[0].get("state") == "Cancelling"
    try:
        with urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/flow_runs/{RUN}", timeout=10) as answer:
            return (json.load(answer).get("state") or {}).get("type") == "CANCELLING"
    except (OSError, ValueError):
        return False


class Session:
    """The engine's side of a control session, where there is one."""

    def __init__(self):
        self.line = None
        self.asked = threading.Event()
        port, token = os.environ.pop("PREFECT__CONTROL_PORT", ""), os.environ.pop("PREFECT__CONTROL_TOKEN", "")
        if not port:
            return
        self.line = socket.create_connection(("127.0.0.1", int(port)), timeout=5)
        self.line.settimeout(None)
        self.line.sendall(token.encode() + b"\n\0PF\x02\x01")
        self._answered = threading.Event()
        self._acknowledged = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._answered.wait(1.0)

    def _read(self):
        hello = b""
        while True:
            try:
                data = self.line.recv(1)
            except OSError:
                return
            if not data:
                return
            if data == b"\0" or 0 < len(hello) < 5:
                hello += data
                if len(hello) == 5:
                    self._answered.set()
            elif data in (b"c", b"r", b"q"):
                self.line.sendall(b"a")
                self.asked.set()
                self.line.close()
                return
            elif data == b"\x02":
                self._acknowledged.set()

    def receipt(self, kind):
        if self.line is None or not self._answered.is_set() or self.asked.is_set():
            return
        told = {"disposition": "STATE_REPORTED", "state_id": RECEIPT_STATE, "state_type": kind.upper()}
        data = json.dumps({**told, "state_name": kind}).encode()
        try:
            self.line.sendall(b"\x01" + struct.pack("!I", len(data)) + data)
            self._acknowledged.wait(1.0)
        except OSError:
            pass


def main():
    hold = sys.argv[1] if len(sys.argv) > 2 and sys.argv[1] != "-m" else os.environ.get("STUB_HOLD", "0")
    code = int(sys.argv[2] if len(sys.argv) > 2 and sys.argv[1] != "-m" else os.environ.get("STUB_EXIT", "0"))
    deaf = bool(os.environ.get("STUB_DEAF"))
    if CLAIM.endswith("-hooks"):
        mark("hooks")
        sys.exit(0)
    looks_for_another()
    mark("start")
    session = Session()
    if session.line is not None:
        # as the engine does after an intent: it stops, writes nothing, and ends 0
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if session.asked.is_set() else os._exit(143))
    tell("Running")
    mark("running")
    until = time.monotonic() + (600 if hold == "hold" else float(hold))
    gate, look, pulse = MARKS.with_name("release"), time.monotonic() + 0.3, 0.0
    while time.monotonic() < until and not (hold == "hold" and gate.exists()):
        time.sleep(0.02)
        if os.environ.get("STUB_PULSE") and time.monotonic() > pulse:
            pulse = time.monotonic() + 0.1
            mark("lives")
        if hold == "hold" and not deaf and session.line is None and time.monotonic() > look:
            look = time.monotonic() + 0.3
            if cancelling():
                time.sleep(2.5)  # the runner of Prefect 3 takes 5 s
                tell("Cancelled")
                mark("end")
                sys.exit(1)
    if code == 0 and tell("Completed"):
        mark("told")
        session.receipt("Completed")
    mark("end")
    sys.exit(code)


if __name__ == "__main__":
    main()
