"""Parts of `up`: children apart, their logs and ends, the data folder, and the embedded Redis."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from flowfleet.errors import SettingsError
from flowfleet.flow_run import Offer
from flowfleet.ledger import connect
from flowfleet.ledger.roster import Row
from flowfleet.settings import UpSettings
from flowfleet.up import embedded, server
from flowfleet.up.folder import DataFolder, default_path, is_free
from flowfleet.up.parts import Adopted, Child, Command, PartDied, death, remembered, wait_ready
from flowfleet.up.together import Together
from tests import processes
from tests.waiting import until


@pytest.fixture
def folder(tmp_path):
    opened = DataFolder.open(tmp_path / "data")
    yield opened
    opened.close()


def _child(folder, code, name="part", **facts):
    command = Command(
        name=name,
        argv=[sys.executable, "-c", code],
        env=dict(os.environ),
        cwd=folder.path,
        log=folder.log(name),
        **facts,
    )
    return Child(command, folder.note(name))


def test_a_part_is_apart_logs_to_its_file_and_ends_in_order(folder):
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(60)"
    )
    part = _child(folder, code)
    wait_ready(part, lambda: "up" in part.log.read_text(), 20)

    assert os.getsid(part.pid) == part.pid != os.getsid(0)
    assert part.ended() is None
    part.stop()
    assert part.ended() == "ended with code 0"
    assert not folder.note("part").exists()


def test_a_part_that_ignores_term_is_killed_with_its_group(folder):
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(15, signal.SIG_IGN)\n"
        "code = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    part = _child(folder, code, grace=0.3)
    wait_ready(part, lambda: part.log.read_text().strip(), 20)
    grandchild = int(part.log.read_text())
    part.stop()

    assert part.ended() == "was killed by signal 9"
    until(lambda: not processes.alive(grandchild), 5, "the grandchild to go")


def test_a_second_signal_cuts_the_grace_short(folder):
    part = _child(
        folder,
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('x', flush=True)\ntime.sleep(60)",
        grace=60,
    )
    wait_ready(part, part.log.read_text, 20)
    part.stop(lambda: True)

    assert part.ended() == "was killed by signal 9"


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
    part = _child(folder, "import time; time.sleep(60)", grace=0.2)
    with pytest.raises(PartDied, match="was not ready after 0 s"):
        wait_ready(part, lambda: False, 0.2)
    assert "(it wrote nothing)" in str(death(part, "ended"))
    part.stop()


def test_a_note_finds_its_process_and_no_other_with_the_same_pid(folder):
    part = _child(folder, "import time; time.sleep(60)")
    note = folder.note("part")
    assert remembered(note).pid == part.pid
    facts = json.loads(note.read_text())
    other = folder.note("other")
    other.write_text(json.dumps({**facts, "created": facts["created"] - 100}))
    assert remembered(other) is None
    adopted = Adopted("part", remembered(note), part.log, note)
    assert adopted.ended() is None
    part.stop()

    assert adopted.ended() == "has ended"
    assert remembered(folder.note("nothing")) is None


def test_the_data_folder_is_for_one_up_at_a_time(tmp_path, folder):
    with pytest.raises(SettingsError, match=f"pid {os.getpid()}") as caught:
        DataFolder.open(folder.path)

    assert "--data-dir" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--data-dir"):
        DataFolder.open(tmp_path / "file" / "data")


def test_the_data_folder_follows_xdg():
    assert default_path({"XDG_DATA_HOME": "/data", "HOME": "/home/a"}) == Path("/data/flowfleet")
    assert default_path({"HOME": "/home/a"}) == Path("/home/a/.local/share/flowfleet")


def test_up_json_is_whole_or_absent_and_goes_with_up(tmp_path):
    opened = DataFolder.open(tmp_path / "data")
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


def test_the_embedded_redis_keeps_what_it_is_given_and_throws_nothing_away(folder):
    part, url = embedded.start(folder, os.environ)
    try:
        wait_ready(part, lambda: embedded.answers(url), 30)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
            client.set("kept", "1")
    finally:
        part.stop()
    assert remembered(folder.note("redis")) is None
    again, url = embedded.start(folder, os.environ)
    try:
        wait_ready(again, lambda: embedded.answers(url), 30)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.get("kept") == "1"
    finally:
        again.stop()


def test_an_embedded_redis_that_still_runs_is_adopted_not_doubled(folder):
    first, url = embedded.start(folder, os.environ)
    wait_ready(first, lambda: embedded.answers(url), 30)
    second, same = embedded.start(folder, os.environ)
    try:
        assert isinstance(second, Adopted)
        assert (second.pid, same) == (first.pid, url)
    finally:
        second.stop()

    assert first.ended() == "ended with code 0"
    assert not folder.note("redis").exists()


def test_no_redis_to_start_is_one_sentence_with_three_remedies(monkeypatch):
    def nothing(name):
        raise ImportError(name)

    monkeypatch.setattr(embedded.importlib, "import_module", nothing)
    assert embedded.binary(lambda name: f"/usr/bin/{name}") == "/usr/bin/valkey-server"
    with pytest.raises(SettingsError) as caught:
        embedded.binary(lambda name: None)

    for remedy in ("flowfleet[embedded]", "redis-server", "--redis"):
        assert remedy in str(caught.value)


def test_no_prefect_or_an_old_one_is_one_sentence(monkeypatch):
    monkeypatch.setattr(server.metadata, "version", lambda name: "2.20.1")
    monkeypatch.setattr(server, "script", lambda name: "/x/prefect")
    with pytest.raises(SettingsError, match=r"prefect is version 2\.20\.1"):
        server.prefect_command()
    monkeypatch.setattr(server, "script", lambda name: None)
    with pytest.raises(SettingsError, match="not installed") as caught:
        server.prefect_command()

    assert "flowfleet[demo]" in str(caught.value)
    assert "--api" in str(caught.value)


def test_our_server_gets_nothing_of_the_users_prefect(folder):
    env = server.environment(folder, {"PREFECT_API_KEY": "k", "PREFECT_PROFILE": "cloud", "PATH": "/bin"})

    assert env["PREFECT_HOME"] == str(folder.path / "prefect")
    assert "PREFECT_API_KEY" not in env
    assert "PREFECT_PROFILE" not in env


def test_signals_are_taken_even_where_they_were_ignored():
    code = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from flowfleet.up.together import Signals, Stopped\n"
        "signals = Signals(); signals.install(); os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n    signals.pause(5)\nexcept Stopped:\n    print('stopped', signals.first)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout.split() == ["stopped", str(int(signal.SIGINT))]


def test_the_ui_of_our_server_is_told_where_its_api_is(folder, monkeypatch):
    """Prefect's UI would look at port 4200, whatever port the server has."""
    monkeypatch.setattr(server, "Child", lambda command, note: command)
    monkeypatch.setattr(server, "prefect_command", lambda: "/x/prefect")
    command = server.start(folder, {"PREFECT_UI_API_URL": "http://elsewhere/api"}, 4711)

    assert command.env["PREFECT_UI_API_URL"] == "http://127.0.0.1:4711/api"


@pytest.mark.parametrize(("wanted", "word"), [("draining", "drained"), ("paused", "paused")])
def test_up_resumes_its_own_workers_and_no_others(folder, valkey, wanted, word):
    """A drained worker would end at its start, and `up` with it, with no Redis left to resume it in."""
    settings = UpSettings(redis=valkey.tcp_url, fleet=f"up-{wanted}", host="h")
    ledger = connect(settings.redis, settings.fleet)
    said = []
    try:
        for worker in ("worker@h", "worker@other", "mine@h"):
            offer = Offer(backend="prefect3", pools=("p",))
            ledger.roster.sign_on(Row(worker=worker, nonce="n", offer=offer, routes=(), slots=1, version="1"))
            ledger.roster.want(worker, wanted)
        together = Together(settings=settings, folder=folder, environ={}, say=said.append, pause=lambda seconds: None)
        together.resume(["worker"])
        now = {row.worker: row.wanted for row in ledger.roster.rows()}
    finally:
        ledger.close()

    assert now == {"mine@h": wanted, "worker@h": "active", "worker@other": wanted}
    assert said == [f"worker@h was {word}, and is resumed"]
