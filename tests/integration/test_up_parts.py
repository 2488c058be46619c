"""Parts of `up`: children apart, their logs and ends, the data folder, and the embedded Redis."""

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from flowfleet.errors import SettingsError
from flowfleet.flow_run import Offer
from flowfleet.ledger import connect
from flowfleet.ledger.roster import WorkerRow
from flowfleet.local import data_folder, redis_process
from flowfleet.local.child import Part, PartDied, part_died, wait_ready
from flowfleet.local.data_folder import DataFolder, default_path, is_free
from flowfleet.page.server import PageAnswer, serve
from flowfleet.settings.classes import UpSettings
from flowfleet.up import leftover_runs, prefect_server
from flowfleet.up import stack as stack_module
from flowfleet.up.stack import Stack, StackSignals, StopRequested
from tests import processes
from tests.bench_of_runs import BenchOfRuns
from tests.valkey import free_port
from tests.waiting import SCALE, until
from workers.host import Abilities


@pytest.fixture
def folder(tmp_path):
    opened = DataFolder.open(tmp_path / "data")
    yield opened
    opened.close()


def _child(folder, code, name="part", **facts):
    return Part.start(name, folder, [sys.executable, "-c", code], env=dict(os.environ), cwd=folder.path, **facts)


def _said(part):
    """What it has written, once that is something."""
    wait_ready(part, lambda: part.log.read_text().strip(), 20)
    return part.log.read_text()


#: starts a child, whose pid it prints, and sleeps; the two ignore TERM
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(15, signal.SIG_IGN)
code = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'
print(subprocess.Popen([sys.executable, '-c', code]).pid, flush=True)
time.sleep(60)
"""
SLEEPS = "import time; time.sleep(60)"


def test_a_part_is_apart_logs_to_its_file_and_ends_in_order(folder):
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(60)"
    )
    part = _child(folder, code)
    assert _said(part) == "up\n"

    assert os.getsid(part.pid) == part.pid != os.getsid(0)
    assert part.ended() is None
    part.stop()
    assert part.ended() == "ended with code 0"
    assert not folder.note("part").exists()


@pytest.mark.parametrize(("grace", "hurry"), [(0.3, False), (60, True)], ids=["after its grace", "at a second signal"])
def test_a_part_that_ignores_term_is_killed_with_its_group(folder, grace, hurry):
    part = _child(folder, STUBBORN, grace=grace)
    grandchild = int(_said(part))
    part.stop(lambda: hurry)

    assert part.ended() == "was killed by signal 9"
    until(lambda: not processes.alive(grandchild), 5, "the grandchild to go")


def test_a_part_that_dies_while_starting_is_told_with_its_last_lines(folder):
    part = _child(folder, "import sys\nfor n in range(40): print('line', n)\nsys.exit(3)", name="server")
    with pytest.raises(PartDied) as caught:
        wait_ready(part, lambda: False, 20)

    assert "The server ended with code 3 while it was starting" in str(caught.value)
    assert "line 39" in str(caught.value)
    assert "line 20" not in str(caught.value)
    assert caught.value.exit_code == 1
    part.stop()


def test_a_part_that_never_gets_ready_is_told_too(folder):
    part = _child(folder, SLEEPS, grace=0.2)
    with pytest.raises(PartDied, match="was not ready after 0 s"):
        wait_ready(part, lambda: False, 0.2)
    assert "(it wrote nothing)" in str(part_died(part, "ended"))
    part.stop()


def test_a_note_finds_its_process_and_no_other_with_the_same_pid(folder):
    part = _child(folder, SLEEPS)
    facts = json.loads(folder.note("part").read_text())
    folder.note("other").write_text(json.dumps({**facts, "created": facts["created"] - 100}))
    assert Part.left("other", folder) is None
    adopted = Part.left("part", folder)
    assert (adopted.pid, adopted.ended()) == (part.pid, None)
    part.stop()

    assert adopted.ended() == "has ended"
    assert Part.left("nothing", folder) is None


#: starts a tied part, and where it is told to, a fork of itself that holds all of its descriptors
KEEPER = """
import os, sys, time
from pathlib import Path
from flowfleet.local.child import Part
from flowfleet.local.data_folder import DataFolder
folder = DataFolder.open(Path(sys.argv[1]))
part = Part.start("part", folder, [sys.executable, "-c", sys.argv[2]], env=dict(os.environ), tied=True)
if sys.argv[3] == "fork" and os.fork() == 0:
    time.sleep(60)
print(part.pid, flush=True)
time.sleep(60)
"""
TIED = """
import os, sys, time
from flowfleet.local import lifeline
assert lifeline.watch(os.environ) and not lifeline.watch(os.environ) and sys.stdin.read() == ""
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_tied_part_ends_with_the_program_that_started_it_also_when_that_is_killed(tmp_path, how):
    argv = [sys.executable, "-c", KEEPER, str(tmp_path), TIED, how]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as keeper:
        pid = int(keeper.stdout.readline())
        log = tmp_path / "logs" / "part.log"
        until(lambda: "up" in log.read_text(), 20, "the part to watch")
        assert processes.alive(pid)
        try:
            keeper.kill()
            until(lambda: not processes.alive(pid), 10, "the part to end")
        finally:
            os.killpg(keeper.pid, signal.SIGKILL)


def test_a_tied_part_is_stopped_by_one_signal_and_its_last_words_are_those_of_this_start(folder):
    code = (
        "import os, signal, sys, time\nfrom flowfleet.local import lifeline\nlifeline.watch(os.environ)\n"
        "signal.signal(15, lambda *_: seen.append(1))\nseen = []\nprint('up', flush=True)\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.3)\nlifeline.tell(f'{len(seen)} signal.', os.environ)\nsys.exit(3)"
    )
    part = _child(folder, code, tied=True)
    _said(part)
    part.stop()
    assert (part.ended(), part.last_words()) == ("ended with code 3", "1 signal.")
    again = _child(folder, SLEEPS, tied=True)
    assert again.last_words() == ""
    again.stop()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--data-dir"):
        DataFolder.open(tmp_path / "file" / "data")


def test_the_data_folder_follows_xdg():
    assert default_path({"XDG_DATA_HOME": "/data", "HOME": "/home/a"}) == Path("/data/flowfleet")
    assert default_path({"HOME": "/home/a"}) == Path("/home/a/.local/share/flowfleet")


def test_up_json_is_whole_or_absent_and_goes_with_up_also_that_of_one_that_was_killed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "up.json").write_text('{"parts": {"poller": {"pid": 4711}}}')
    opened = DataFolder.open(tmp_path / "data")
    assert not opened.state_file.exists()
    opened.write_state({"api": "x"})
    assert json.loads(opened.state_file.read_text()) == {"api": "x"}
    assert list(opened.path.glob("*.new")) == []
    opened.close()

    assert not opened.state_file.exists()
    assert not opened.scratch.exists()


def test_ports_are_kept_from_start_to_start(folder):
    port = folder.port("server")
    assert folder.port("server") == port
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
        assert folder.port("server") != port


def test_a_new_port_is_none_that_the_system_gives_to_others_meanwhile_while_there_is_one(folder, monkeypatch):
    assert folder.port("server") in data_folder.PORTS
    monkeypatch.setattr(data_folder, "is_free", lambda port: False)
    assert folder.port("worker") not in data_folder.PORTS


OF_A_CHILD = """
import subprocess, sys
server = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); print(1, flush=True); time.sleep(60)"
subprocess.run([sys.executable, "-c", server])
"""


def test_an_answer_of_a_stranger_is_not_the_parts(folder):
    """As when another program gets the port between the choice and the part's start, which then cannot listen."""
    port = free_port()
    url, other = (f"http://127.0.0.1:{number}/x" for number in (port, port + 1))
    listener = _child(folder, OF_A_CHILD.format(port=port), whole_group=True)
    late = _child(folder, "import time; time.sleep(60)", name="late")
    try:
        _said(listener)
        assert listener.listens(url), "the server is a process below it"
        assert not late.listens(url)
        assert not listener.listens(other)
    finally:
        listener.stop()
        late.stop()
    assert not listener.listens(url)


@pytest.mark.parametrize("who", ["redis", "page"])
def test_a_part_whose_port_a_stranger_serves_is_not_ready(folder, who, page_of_stranger):
    with _redis(folder) as client:
        server = client.connection_pool.connection_kwargs["port"]
        late = _child(folder, "import sys, time; time.sleep(1); sys.exit('no port')", name="late")
        ready = {
            "redis": lambda: redis_process.ready(late, redis_process.url_of(server)),
            "page": lambda: stack_module._serves(late, page_of_stranger),
        }
        try:
            with pytest.raises(PartDied, match="no port"):
                wait_ready(late, ready[who], 30)
        finally:
            late.stop()


@pytest.fixture
def page_of_stranger():
    page = serve("127.0.0.1:0", lambda: {"/": lambda _: PageAnswer()}, lambda: None)
    yield f"{page.address}/"
    page.close()


@contextmanager
def _redis(folder):
    part, url = redis_process.start(folder, os.environ)
    try:
        wait_ready(part, lambda: redis_process.ready(part, url), 30)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield client
    finally:
        part.stop()


def test_the_embedded_redis_keeps_what_it_is_given_and_throws_nothing_away(folder):
    with _redis(folder) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        client.set("kept", "1")
    assert Part.left("redis", folder) is None
    with _redis(folder) as client:
        assert client.get("kept") == "1"


def test_an_embedded_redis_that_still_runs_is_adopted_not_doubled(folder):
    first, url = redis_process.start(folder, os.environ)
    wait_ready(first, lambda: redis_process.ready(first, url), 30)
    second, same = redis_process.start(folder, os.environ)
    try:
        assert (second.adopted, second.pid, same) == (True, first.pid, url)
    finally:
        second.stop()

    assert first.ended() == "ended with code 0"
    assert not folder.note("redis").exists()


def test_no_redis_to_start_is_one_sentence_with_three_remedies(monkeypatch):
    def nothing(name):
        raise ImportError(name)

    monkeypatch.setattr(redis_process.importlib, "import_module", nothing)
    assert redis_process.binary(lambda name: f"/usr/bin/{name}") == "/usr/bin/valkey-server"
    with pytest.raises(SettingsError) as caught:
        redis_process.binary(lambda name: None)

    for remedy in ("flowfleet[embedded]", "redis-server", "--redis"):
        assert remedy in str(caught.value)


def test_no_prefect_or_an_old_one_is_one_sentence(monkeypatch):
    monkeypatch.setattr(prefect_server.metadata, "version", lambda name: "2.20.1")
    monkeypatch.setattr(prefect_server, "console_script", lambda name: "/x/prefect")
    with pytest.raises(SettingsError, match=r"prefect is version 2\.20\.1"):
        prefect_server.prefect_command()
    monkeypatch.setattr(prefect_server, "console_script", lambda name: None)
    with pytest.raises(SettingsError, match="not installed") as caught:
        prefect_server.prefect_command()

    assert "flowfleet[demo]" in str(caught.value)
    assert "--api" in str(caught.value)


def test_signals_are_taken_even_where_they_were_ignored():
    code = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from flowfleet.up.stack import StackSignals, StopRequested\n"
        "signals = StackSignals(); signals.install(); os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n    signals.pause(5)\nexcept StopRequested:\n    print('stopped', signals.first)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60 * SCALE, check=False)

    assert done.stdout.split() == ["stopped", str(int(signal.SIGINT))]


def test_our_server_gets_nothing_of_the_users_prefect_and_its_ui_is_told_where_its_api_is(folder, monkeypatch):
    """Prefect's UI would look at port 4200, whatever port the server has."""
    theirs = {"PREFECT_UI_API_URL": "http://elsewhere/api", "PREFECT_API_KEY": "k", "PREFECT_PROFILE": "cloud"}
    monkeypatch.setattr(Part, "start", lambda name, folder, argv, *, env, **how: env)
    monkeypatch.setattr(prefect_server, "prefect_command", lambda: "/x/prefect")
    env = prefect_server.start(folder, theirs, 4711)

    assert env["PREFECT_HOME"] == str(folder.path / "prefect")
    assert "PREFECT_API_KEY" not in env
    assert "PREFECT_PROFILE" not in env
    assert env["PREFECT_UI_API_URL"] == "http://127.0.0.1:4711/api"


@pytest.mark.parametrize(("wanted", "word"), [("draining", "drained"), ("paused", "paused")])
def test_up_resumes_its_own_workers_and_no_others(folder, valkey, wanted, word):
    """A drained worker would end at its start, and `up` with it, with no Redis left to resume it in."""
    settings = UpSettings(redis=valkey.tcp_url, fleet=f"up-{wanted}", host="h")
    ledger = connect(settings.redis, settings.fleet)
    said = []
    try:
        for worker in ("worker@h", "worker@other", "mine@h"):
            offer = Offer(backend="prefect3", pools=("p",))
            ledger.roster.sign_on(WorkerRow(worker=worker, nonce="n", offer=offer, routes=(), slots=1, version="1"))
            ledger.roster.want(worker, wanted)
        _stack(folder, settings, said.append).resume(["worker"])
        now = {row.worker: row.wanted for row in ledger.roster.rows()}
    finally:
        ledger.close()

    assert now == {"mine@h": wanted, "worker@h": "active", "worker@other": wanted}
    assert said == [f"worker@h was {word}, and is resumed"]


def test_an_adopted_server_goes_with_all_that_it_has_started(folder):
    """`prefect` is only the parent of its server, and need not pass the signal on."""
    code = STUBBORN.replace("signal.SIG_IGN", "signal.SIG_DFL")
    part = _child(folder, code)
    grandchild = int(_said(part))
    Part.left("part", folder, whole_group=True).stop()

    assert not processes.alive(grandchild)
    assert part.ended() == "was killed by signal 15"
    assert not folder.note("part").exists()


def test_the_port_of_its_own_leftover_server_is_free_again_when_it_is_looked_at(folder, monkeypatch):
    """Else `up --port` would refuse the port because of what an `up` that was killed has left."""
    monkeypatch.setattr(prefect_server, "prefect_command", lambda: "/x/prefect")
    port = free_port()
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print(1, flush=True); time.sleep(60)"
    left = _child(folder, code, name="server")
    _said(left)
    stack = _stack(folder, UpSettings(port=port))
    monkeypatch.setattr(stack, "_start_redis", _stop_here)
    with pytest.raises(StopRequested):
        stack.start()

    assert left.ended() == "was killed by signal 15"
    assert is_free(port)


@pytest.fixture
def bench(folder):
    """Runs of a worker of this `up`."""
    made = BenchOfRuns(folder.path / "state" / "machine" / "worker", Abilities.probe({}))
    yield made
    made.close()


def _stop_here(*_, **__):
    raise StopRequested("far enough")


def _stack(folder, settings, say=lambda sentence: None):
    return Stack(settings=settings, folder=folder, environ={}, say=say, pause=lambda seconds: None)


class _Stubborn:
    """A part whose end goes wrong."""

    name, pid = "worker", 0

    def stop(self, hurry):
        raise OSError("a full disk")


def test_a_part_that_cannot_be_ended_keeps_no_other_from_it(folder):
    first = _child(folder, SLEEPS, name="redis")
    stack = _stack(folder, UpSettings())
    stack.parts += [first, _Stubborn()]
    with pytest.raises(OSError, match="a full disk"):
        stack.stop(lambda: False)

    assert first.ended() == "was killed by signal 15"


def test_the_runs_of_a_worker_that_died_are_ended_after_the_workers_and_before_the_poller(folder, bench):
    """A shim has a session of its own: killing the worker's group does not reach it."""
    told = []
    poller, worker = (_child(folder, SLEEPS, name=name) for name in ("poller", "worker"))
    stack = _stack(folder, UpSettings(), lambda sentence: told.append((sentence, poller.ended(), worker.ended())))
    stack.parts += [poller, worker]
    spec = bench.sh("trap '' TERM; sleep 300")
    run = bench.start(spec)
    os.killpg(worker.pid, signal.SIGKILL)
    stack.stop(lambda: False)

    assert bench.living(spec) == []
    assert not bench.folder(spec).shim_alive()
    assert (bench.end_of(run).stopped_by, bench.end_of(run).stop_reason) == ("kill", "worker-stopped")
    ((sentence, poller_then, worker_then),) = told
    assert sentence.startswith("killed 1 run that a worker has left")
    assert (poller_then, worker_then) == (None, "was killed by signal 9")


def test_a_run_whose_shim_was_killed_too_is_ended(folder, bench):
    spec = bench.sh("sleep 300")
    bench.start(spec)
    os.kill(bench.folder(spec).started()["pid"], signal.SIGKILL)

    assert leftover_runs.end_all(folder.path / "state", {}) == 1
    assert bench.living(spec) == []


def test_records_of_another_boot_and_of_runs_that_have_ended_kill_nobody(folder, bench):
    ended, other = bench.sh("exit 0"), bench.sh("sleep 300")
    bench.run(ended)
    bench.start(other)

    assert leftover_runs.end_all(folder.path / "state", {"FLOWFLEET_BOOT_ID": "another"}) == 0
    assert bench.living(other) != []


SLEEPERS = """
import os, sys
from pathlib import Path
from flowfleet.commands import program
from flowfleet.up import command, stack
from flowfleet.local.child import Part, wait_ready

class Sleepers(stack.Stack):
    def start(self):
        for name in ("redis", "worker"):
            code = "import signal, time; print('x', flush=True); time.sleep(300)"
            if "stubborn" in sys.argv[-1]:
                code = "import signal; signal.signal(15, signal.SIG_IGN); " + code
            argv = [sys.executable, "-c", code]
            part = Part.start(name, self.folder, argv, env=self.environ, cwd=Path("/"), grace=60)
            self.parts.append(part)
            wait_ready(part, lambda: part.log.read_text(), 60)
        self.folder.write_state(self.state())

command.Stack = Sleepers
sys.exit(program.run(command.up, sys.argv[1:]))
"""


class _Sleepers:
    """A whole `flowfleet up` as a child, with two sleepers as its parts."""

    def __init__(self, data, **facts):
        facts = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **facts}
        argv = [sys.executable, "-c", SLEEPERS, "--data-dir", str(data)]
        self.state = data / "up.json"
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **facts)

    def ready(self):
        until(self.state.exists, 30, "up.json")
        self.parts = [part["pid"] for part in json.loads(self.state.read_text())["parts"].values()]

    def ended(self):
        """Its exit code, and what it has said that was not read yet; none of its parts is left."""
        code = self.process.wait(30 * SCALE)
        assert not self.state.exists()
        assert not any(map(processes.alive, self.parts))
        if self.process.stdout is None:
            return code, ""
        with self.process.stdout as said:
            return code, said.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_up_in_order_with_0(tmp_path, number):
    up = _Sleepers(tmp_path / "data")
    up.ready()
    up.process.send_signal(number)
    code, said = up.ended()

    assert code == 0
    assert "stopping worker, redis" in said


def test_a_second_signal_hurries_and_shows_in_the_exit_code(tmp_path):
    up = _Sleepers(tmp_path / "stubborn")
    up.ready()
    up.process.send_signal(signal.SIGTERM)
    assert any("stopping worker, redis" in line for line in up.process.stdout)
    up.process.send_signal(signal.SIGINT)

    assert up.ended()[0] == 128 + signal.SIGINT


def test_a_pipe_that_nobody_reads_any_more_keeps_no_part_running(tmp_path):
    """`make up | tee log`: at Ctrl-C the reader dies too, often first."""
    reader, writer = os.pipe()
    up = _Sleepers(tmp_path / "data", stdout=writer, stderr=writer)
    os.close(writer)
    up.ready()
    os.close(reader)
    up.process.send_signal(signal.SIGINT)

    assert up.ended()[0] == 0


def test_a_closed_terminal_keeps_no_part_running(tmp_path):
    master, slave = pty.openpty()

    def own_terminal():
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    up = _Sleepers(tmp_path / "data", stdout=slave, stderr=slave, start_new_session=True, preexec_fn=own_terminal)
    os.close(slave)
    up.ready()
    os.close(master)  # the kernel sends SIGHUP, and each word from here on is an error

    assert up.ended()[0] == 0


def test_a_terminal_that_closes_twice_is_no_hurry():
    signals = StackSignals()
    signals._note(signal.SIGHUP)
    signals._note(signal.SIGHUP)
    assert signals.second is None
    unheard = StackSignals()
    unheard.end.wake()
    with pytest.raises(StopRequested):
        unheard.pause(60)
    unheard._note(signal.SIGINT)

    assert unheard.second is None


def test_an_api_that_prefect_would_find_is_said_not_to_be_used_and_our_own_is_no_news(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prefect_server, "start", _stop_here)
    said = []
    stack = _stack(folder, UpSettings(), said.append)
    theirs = {"PREFECT_API_URL": "http://:secret@box:4200/api", "HOME": str(tmp_path)}
    ours = {"PREFECT_API_URL": prefect_server.api_url(folder.port("server")), "HOME": str(tmp_path)}
    for stack.environ in (theirs, ours):
        with pytest.raises(StopRequested):
            stack._start_server(own=True)
    (news,) = [sentence for sentence in said if "starts" not in sentence]

    assert "box:4200/api" in news
    assert "PREFECT_API_URL" in news
    assert "is not used: flowfleet up --api" in news
    assert "secret" not in news
