"""The control session of a shim: receipts, intents, and what strangers and broken engines cannot hold up."""

import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from tests.bench_of_runs import FULL, BenchOfRuns, patient_fork_client
from tests.waiting import SCALE, is_quick, until
from workers.deployment import Exit, StartedRun, StartSpec, StopReason
from workers.shim import control_session
from workers.stop import Stop

#: an engine of version 2, as far as its shim can see; `talk` is what the test makes it do
ENGINE = """
import json, os, signal, socket, struct, sys, time

class Session:
    def __init__(self):
        self.port, self.token = int(os.environ.pop("PREFECT__CONTROL_PORT")), os.environ.pop("PREFECT__CONTROL_TOKEN")
        self.socket = None
    def connect(self, word=None):
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.settimeout(20)
        word = self.token if word is None else word
        self.socket.sendall((word if isinstance(word, bytes) else word.encode()) + b"\\n")
    def hello(self):
        began = time.monotonic()
        self.socket.sendall(b"\\0PF\\2\\1")
        print("greeted", self.socket.recv(5), time.monotonic() - began, flush=True)
    def receipt(self, data, length=None):
        self.socket.sendall(b"\\1" + struct.pack("!I", len(data) if length is None else length) + data)
    def answered(self):
        try:
            print("answered", self.socket.recv(1), flush=True)
        except ConnectionResetError:  # closed before all was read
            print("answered", b"", flush=True)
    def ready(self):
        print("ready", flush=True)

session = Session()
"""
#: what takes some hundredths of a second as a rule, on a machine that does four other things
QUICK_SECONDS = 2.0 * SCALE
COMPLETED = {
    "disposition": "STATE_REPORTED",
    "state_id": "0a3f0e52-0c1b-4f0a-9d2c-6e1c6f1d7e11",
    "state_name": "Completed",
    "state_type": "COMPLETED",
}
YES, NO = r"answered b'\x02'", "answered b''"
ABORTED = {"disposition": "ORCHESTRATION_ABORTED"}


def engine(bench: BenchOfRuns, talk: str, **changes) -> StartSpec:
    return bench.python(ENGINE + talk, control=True, **changes)


def cancel(started_run: StartedRun, bench: BenchOfRuns, spec: StartSpec, **how) -> None:
    bench.folder(spec).write_stop(Stop(reason=StopReason.CANCEL, **how), "worker@here")
    started_run.stop()


def lines(end: Exit, about: str) -> list[str]:
    return [line for line in end.last_lines if line.startswith(about)]


@pytest.fixture(scope="module")
def patient_client():
    fork_client = patient_fork_client()
    yield fork_client
    fork_client.close()


@pytest.fixture
def patient_bench(full_bench, tmp_path, patient_client):
    """As `full_bench`, with shims that wait for the answer to a cancel as long as it takes."""
    folder = tmp_path / "patient"
    folder.mkdir()
    bench = BenchOfRuns(folder, FULL, patient_client)
    yield bench
    bench.close()


# -- receipts


@pytest.mark.parametrize("receipt", [COMPLETED, ABORTED])
def test_a_receipt_is_answered_and_stands_beside_the_exit(bench, receipt):
    talk = f"session.connect(); session.hello(); session.receipt({json.dumps(receipt).encode()!r}); session.answered()"

    def attempt() -> float:
        spec = engine(bench, talk)
        end = bench.run(spec)
        assert (end.code, end.receipt, end.intent, end.stopped_by) == (0, receipt, None, None)
        assert bench.folder(spec).exit_record()["receipt"] == receipt
        assert lines(end, "answered") == [YES]
        (greeted,) = lines(end, "greeted")
        assert greeted.startswith(r"greeted b'\x00PF\x02\x01'")
        return float(greeted.split()[-1])

    assert is_quick(attempt, QUICK_SECONDS)


def test_a_receipt_in_one_piece_with_token_and_hello_or_byte_by_byte_is_the_same(full_bench):
    data = json.dumps(COMPLETED).encode()
    whole = f"""
data = {data!r}
session.socket = socket.create_connection(("127.0.0.1", session.port))
session.socket.sendall(session.token.encode() + b"\\n\\0PF\\2\\1\\1" + struct.pack("!I", len(data)) + data)
session.socket.recv(6)
"""
    bytewise = f"""
data = {data!r}
session.socket = socket.create_connection(("127.0.0.1", session.port))
for byte in session.token.encode() + b"\\n\\0PF\\2\\1\\1" + struct.pack("!I", len(data)) + data:
    session.socket.sendall(bytes([byte])); time.sleep(0.001)
session.socket.recv(6)
"""
    for talk in (whole, bytewise):
        assert full_bench.run(engine(full_bench, talk)).receipt == COMPLETED, talk


def test_a_receipt_that_was_sent_right_before_the_end_is_not_lost(full_bench):
    talk = f"session.connect(); session.hello(); session.receipt({json.dumps(COMPLETED).encode()!r}); os._exit(3)"
    end = full_bench.run(engine(full_bench, talk))
    assert (end.code, end.receipt) == (3, COMPLETED)


def test_the_first_receipt_counts(full_bench):
    second = json.dumps({**COMPLETED, "state_type": "FAILED"}).encode()
    talk = f"""
session.connect(); session.hello()
session.receipt({json.dumps(COMPLETED).encode()!r}); session.answered(); session.receipt({second!r}); session.answered()
"""
    assert full_bench.run(engine(full_bench, talk)).receipt == COMPLETED


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"[]", b"null", b"\xff", b"[" * 4000, b'{"disposition": "STATE_REPORTED"}', b'{"disposition": "OTHER"}',
        json.dumps({**COMPLETED, "state_type": 3}).encode(), b"9" * 4096,
    ],
)  # fmt: skip
def test_what_is_no_receipt_is_not_answered_and_harms_nobody(full_bench, data):
    talk = f"session.connect(); session.hello(); session.receipt({data!r}); session.answered(); sys.exit(7)"
    end = full_bench.run(engine(full_bench, talk))
    assert (end.code, end.receipt, lines(end, "answered")) == (7, None, [NO])


def test_a_record_with_the_longest_names_fits_into_its_reserved_place():
    names = {"state_name": "ü" * 1500, "state_type": "X" * 900, "state_id": "0" * 36}
    receipt = control_session.parse_receipt(json.dumps({**COMPLETED, **names}).encode())
    assert len(json.dumps(receipt)) < 2000


# -- who may connect


def test_the_token_is_on_no_disk_in_no_arguments_and_not_in_the_shim(full_bench):
    spec = engine(full_bench, "print(session.token); session.ready(); time.sleep(60)")
    started_run = full_bench.start_ready(spec)
    token = (spec.folder / "log").read_text().split()[0]
    assert len(token) >= 32
    on_disk = b"".join(path.read_bytes() for path in spec.folder.rglob("*") if path.is_file() and path.name != "log")
    shim = Path(f"/proc/{started_run.handle['pid']}")
    shown = (shim / "cmdline").read_bytes() + (shim / "environ").read_bytes()
    assert token.encode() not in on_disk + shown


def test_a_run_without_a_session_has_neither_port_nor_token(bench):
    end = bench.run(bench.python("import os; print([name for name in os.environ if 'CONTROL' in name])"))
    assert end.last_lines == ("[]",)
    assert end.receipt is None


@pytest.mark.parametrize("word", ["x" * 64, "x", "", "x" * 5000])
def test_a_wrong_token_is_closed_and_the_right_one_still_accepted(full_bench, word):
    talk = f"""
session.connect({word!r}); session.answered()
session.connect(); session.hello(); session.receipt({json.dumps(COMPLETED).encode()!r}); session.answered()
"""
    end = full_bench.run(engine(full_bench, talk))
    assert lines(end, "answered") == [NO, YES]
    assert end.receipt == COMPLETED


def test_nobody_can_connect_once_the_engine_has(full_bench):
    talk = """
session.connect(); session.hello()
try:
    socket.create_connection(("127.0.0.1", session.port)); print("second connected")
except ConnectionRefusedError:
    print("second refused")
"""
    assert lines(full_bench.run(engine(full_bench, talk)), "second") == ["second refused"]


# -- what must not hold up signals and the end

IDLE = 'others = [socket.create_connection(("127.0.0.1", session.port)) for _ in range(64)]\n'
SLOW = """
import threading
def drip(connection):
    with __import__("contextlib").suppress(OSError):
        for byte in session.token.encode() * 100:
            connection.sendall(bytes([byte])); time.sleep(1)
threading.Thread(target=drip, args=(socket.create_connection(("127.0.0.1", session.port)),), daemon=True).start()
"""
CONNECTED = "session.connect(); session.hello()\n"
LONG = CONNECTED + 'session.receipt(b"", length=0xFFFFFFFF)\n'
HALF = CONNECTED + 'session.receipt(b"{", length=4096)\n'
TIDY = "signal.signal(signal.SIGTERM, lambda *_: os._exit(5))\nsession.ready()\nwhile True: time.sleep(0.05)\n"


@pytest.mark.parametrize(
    "others",
    [
        pytest.param("", id="nobody"),
        pytest.param(IDLE, id="64 idle connections"),
        pytest.param(IDLE + CONNECTED, id="64 idle connections beside the engine"),
        pytest.param(SLOW, id="1 byte a second"),
        pytest.param(SLOW + CONNECTED, id="1 byte a second beside the engine"),
        pytest.param(LONG, id="a length of 4 GiB"),
        pytest.param(HALF, id="half a receipt"),
        pytest.param('session.connect("wrong")\n', id="a wrong token"),
        pytest.param(CONNECTED + 'session.receipt(b"{")\n', id="broken JSON"),
        pytest.param(CONNECTED + "session.socket.sendall(os.urandom(1 << 16))\n", id="noise"),
    ],
)  # fmt: skip
def test_others_hold_up_neither_a_signal_nor_the_end(full_bench, others):
    def attempt() -> float:
        spec = engine(full_bench, others + TIDY)
        started_run = full_bench.start_ready(spec)
        before = time.monotonic()
        full_bench.stop(started_run, spec)
        end = full_bench.end_of(started_run)
        assert (end.code, end.stopped_by, end.receipt) == (5, "term", None)
        return time.monotonic() - before

    assert is_quick(attempt, QUICK_SECONDS)


def test_a_length_that_no_receipt_has_ends_the_session_at_once(full_bench):
    assert lines(full_bench.run(engine(full_bench, LONG + "session.answered()")), "answered") == [NO]


def test_an_engine_is_greeted_at_once_though_64_others_were_first(full_bench):
    def attempt() -> float:
        (greeted,) = lines(full_bench.run(engine(full_bench, IDLE + CONNECTED)), "greeted")
        return float(greeted.split()[-1])

    assert is_quick(attempt, QUICK_SECONDS)


def test_an_engine_is_greeted_within_a_fifth_of_a_second_of_its_connection(full_bench):
    talk = """
began = time.monotonic()
session.connect(); session.socket.sendall(b"\\0PF\\2\\1")
session.socket.recv(5); print("greeted", time.monotonic() - began, flush=True)
"""

    def attempt() -> float:
        (greeted,) = lines(full_bench.run(engine(full_bench, talk)), "greeted")
        return float(greeted.split()[-1])

    assert is_quick(attempt, 0.2 * SCALE)  # a shim that looks by the clock is slow each time


def test_what_strangers_send_is_bounded():
    session = control_session.ControlSession.open()
    port = int(session.variables()["PREFECT__CONTROL_PORT"])
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(b"x" * 50)
        for _ in range(20):
            session.serve(session.descriptors())
        assert len(session.descriptors()) <= 8
    session.close()
    assert session.descriptors() == []


# -- intents

COOPERATES = """
session.connect(); session.hello()
told = []
signal.signal(signal.SIGTERM, lambda *_: os._exit(0 if told else 9))
session.ready()
told.append(session.socket.recv(1))
assert told == [b"c"]
session.socket.sendall(b"a"); session.socket.close()
while True: time.sleep(0.05)
"""


def test_an_engine_hears_of_its_cancel_before_the_term_and_answers(patient_bench):
    spec = engine(patient_bench, COOPERATES)
    started_run = patient_bench.start_ready(spec)
    cancel(started_run, patient_bench, spec, intent=True)
    end = patient_bench.end_of(started_run)
    assert (end.code, end.intent, end.stopped_by, end.stop_reason) == (0, "acknowledged", "term", "cancelled")


def test_an_engine_is_not_told_of_a_stop_that_is_no_cancel(full_bench):
    spec = engine(full_bench, COOPERATES)
    started_run = full_bench.start_ready(spec)
    full_bench.stop(started_run, spec)
    end = full_bench.end_of(started_run)
    assert (end.code, end.intent, end.stopped_by) == (9, None, "term")


@pytest.mark.parametrize(
    ("talk", "intent"),
    [
        pytest.param(TIDY, None, id="there is no session"),
        pytest.param(
            CONNECTED + TIDY.replace("while", "session.socket.recv(1); session.socket.close()\nwhile"),
            "sent", id="it closes",
        ),
        pytest.param(
            CONNECTED + f"session.receipt({json.dumps(COMPLETED).encode()!r}); session.answered()\n" + TIDY,
            None, id="it has ended by its own word",
        ),
    ],
)  # fmt: skip
def test_an_engine_of_which_no_answer_will_come_gets_its_term_without_waiting_for_one(patient_bench, talk, intent):
    spec = engine(patient_bench, talk)
    started_run = patient_bench.start_ready(spec)
    cancel(started_run, patient_bench, spec, intent=True)
    end = patient_bench.end_of(started_run)
    assert (end.code, end.intent, end.stopped_by) == (5, intent, "term")


def test_an_engine_that_does_not_answer_gets_its_term_after_a_second(full_bench):
    def attempt() -> float:
        spec = engine(full_bench, CONNECTED + TIDY)
        started_run = full_bench.start_ready(spec)
        before = time.monotonic()
        cancel(started_run, full_bench, spec, intent=True)
        end = full_bench.end_of(started_run)
        taken = time.monotonic() - before
        assert (end.code, end.intent, end.stopped_by) == (5, "sent", "term")
        assert taken >= 1.0
        return taken

    assert is_quick(attempt, 1.0 + QUICK_SECONDS)


def test_an_engine_that_answers_and_takes_no_term_is_killed_after_its_grace(patient_bench):
    deaf = COOPERATES.replace("lambda *_: os._exit(0 if told else 9)", "signal.SIG_IGN")
    spec = engine(patient_bench, deaf, stop_grace=0.3)
    started_run = patient_bench.start_ready(spec)
    cancel(started_run, patient_bench, spec, intent=True)
    end = patient_bench.end_of(started_run)
    assert (end.signal, end.intent, end.stopped_by, end.stop_reason) == (9, "acknowledged", "kill", "cancelled")


def test_a_second_cancel_kills_while_the_engine_has_still_to_answer(patient_bench):
    spec = engine(patient_bench, CONNECTED + TIDY, stop_grace=600.0)
    started_run = patient_bench.start_ready(spec)
    cancel(started_run, patient_bench, spec, intent=True)
    patient_bench.folder(spec).write_stop(Stop(reason=StopReason.CANCEL, kill=True), "worker@here")
    started_run.kill()
    end = patient_bench.end_of(started_run)
    assert (end.signal, end.stopped_by) == (9, "kill")


def test_an_engine_that_no_shim_can_tell_of_its_cancel_is_killed_at_once(full_bench):
    spec = engine(full_bench, TIDY, stop_grace=600.0)
    started_run = full_bench.start_ready(spec)
    full_bench.kill_shim(started_run, spec)
    cancel(started_run, full_bench, spec, intent=True)
    end = full_bench.end_of(started_run)
    assert (end.stopped_by, end.stop_reason) == ("kill", "cancelled")
    assert end.code is None  # 5 would be its answer to a TERM


# -- an unknown future


def test_an_engine_of_another_version_is_told_of_a_cancel_without_a_hello(patient_bench):
    older = COOPERATES.replace("session.hello()", "pass")
    spec = engine(patient_bench, older)
    started_run = patient_bench.start_ready(spec)
    cancel(started_run, patient_bench, spec, intent=True)
    assert patient_bench.end_of(started_run).intent == "acknowledged"


def test_an_end_of_before_an_upgrade_has_no_receipt():
    record = Exit(code=0, receipt=COMPLETED, intent="sent").to_record()
    assert Exit.from_record(record) == Exit(code=0, receipt=COMPLETED, intent="sent")
    del record["receipt"], record["intent"]
    assert Exit.from_record(record) == Exit(code=0)


def test_tokens_are_never_the_same():
    sessions = [control_session.ControlSession.open() for _ in range(3)]
    tokens = {session.variables()["PREFECT__CONTROL_TOKEN"] for session in sessions}
    for session in sessions:
        session.close()
    assert len(tokens) == 3


def test_a_session_that_ends_in_the_middle_of_a_word_is_over(full_bench):
    talk = CONNECTED + "session.socket.sendall(b'\\1\\0'); session.socket.close(); sys.exit(4)"
    end = full_bench.run(engine(full_bench, talk))
    assert (end.code, end.receipt) == (4, None)
    until(lambda: full_bench.folder(full_bench.start_specs[-1]).cleared(), 10, "the run to be cleared")
