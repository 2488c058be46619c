"""`worker start` as a process of its own: its exit codes, its sentences, its page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.lawless_api import LawlessApi
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, until

WORKER = Path(sys.executable).parent / "worker"


class Hosts:
    """Starts workers in a folder of their own."""

    def __init__(self, folder, redis_url, api_url):
        self.folder = folder
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLOWFLEET_", "PREFECT_"))
        }
        self.env |= {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "FLOWFLEET_REDIS": redis_url,
            "FLOWFLEET_FLEET": f"p{os.getpid()}-{folder.name[-20:]}".replace("_", "-"),
            "PREFECT_API_URL": api_url,
        }
        self.started = []

    def start(self, *args, **env):
        log = (self.folder / f"log{len(self.started)}").open("w+")
        process = subprocess.Popen(
            [str(WORKER), "start", *args], env=self.env | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        self.started.append((process, log))
        return process

    def text(self, process):
        log = next(log for started, log in self.started if started is process)
        return Path(log.name).read_text()

    def close(self):
        for process, log in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
            log.close()


@pytest.fixture
def hosts(valkey, tmp_path):
    with LawlessApi() as api:
        made = Hosts(tmp_path, valkey.tcp_url, api.api_url)
        yield made
        made.close()


def ask(address, path):
    try:
        with urllib.request.urlopen(address + path, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def ready(hosts, *args, **env):
    address = f"http://127.0.0.1:{free_port()}"
    process = hosts.start("--agent-address", address, *args, **env)
    until(lambda: ask(address, "/api/ready")[0] == 200, 30, f"the worker to be ready:\n{hosts.text(process)}")
    return process, address


def test_its_page_and_its_orderly_stop(hosts):
    # a stop that leaves its runs ends without a word after five seconds
    process, address = ready(hosts, "--slots", "3", "--on-stop", "wait")
    status, body = ask(address, "/api/health")
    assert (status, json.loads(body)["ok"], json.loads(body)["slots"]) == (200, True, 3)
    metrics = ask(address, "/metrics")[1]
    assert "flowfleet_worker_redis_up 1.0" in metrics
    assert 'flowfleet_build_info{version="' in metrics
    assert ask(address, "/api/runs/00000000-0000-4000-8000-000000000000/log")[0] == 404
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10 * SCALE) == 0
    assert time.monotonic() - began < 5 * SCALE
    assert "worker stopped, no run is left" in hosts.text(process)


def test_a_worker_whose_sigint_a_shell_has_ignored_still_ends_at_sigterm(hosts):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process, _ = ready(hosts)
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10 * SCALE) == 0


def test_a_second_worker_of_the_name_is_refused_and_named(hosts):
    ready(hosts)
    second = hosts.start()
    assert second.wait(30 * SCALE) == 2
    assert "--name" in hosts.text(second)


def test_a_clone_of_a_machine_whose_worker_lives_is_refused_and_its_folder_named(hosts, tmp_path):
    ids = {"FLOWFLEET_MACHINE_ID": "m" * 32, "FLOWFLEET_BOOT_ID": "boot-1", "FLOWFLEET_HOST": "original"}
    ready(hosts, **ids)
    copy = tmp_path / "copied"
    shutil.copytree(tmp_path / "state", copy)
    clone = hosts.start(**ids | {"FLOWFLEET_BOOT_ID": "boot-2", "FLOWFLEET_HOST": "clone", "XDG_STATE_HOME": str(copy)})
    assert clone.wait(40 * SCALE) == 2
    text = hosts.text(clone)
    assert f"The state folder {copy}" in text
    assert all(word in text for word in ("worker@original", "--name", "--state-dir"))


def test_two_machines_of_one_host_name_are_told_apart_before_the_second_takes_the_name(hosts, tmp_path):
    process, address = ready(hosts, FLOWFLEET_HOST="twin", FLOWFLEET_MACHINE_ID="a" * 32)
    second = hosts.start(
        FLOWFLEET_HOST="twin", FLOWFLEET_MACHINE_ID="b" * 32, FLOWFLEET_BOOT_ID="b", XDG_STATE_HOME=str(tmp_path / "b")
    )
    assert second.wait(40 * SCALE) == 2
    assert "nother worker named worker@twin is alive" in hosts.text(second)
    assert process.poll() is None
    assert ask(address, "/api/ready")[0] == 200


def test_variables_of_celery_change_nothing_and_flows_keep_them(hosts, tmp_path):
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    # stands for the interpreter of the flows: it is asked for its prefect in the environment that they get
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$CELERY_BROKER_URL" > {tmp_path}/seen\necho 3.0.0\n')
    python.chmod(0o755)
    process, _ = ready(hosts, "--python", str(python), CELERY_BROKER_URL=nowhere, CELERY_BROKER_READ_URL=nowhere)
    assert "variables of Celery are ignored" in hosts.text(process)
    assert (tmp_path / "seen").read_text().strip() == nowhere


def test_a_redis_that_is_away_is_said_and_waited_for_and_a_stop_ends_the_waiting(hosts):
    address = f"http://127.0.0.1:{free_port()}"
    process = hosts.start("--agent-address", address, FLOWFLEET_REDIS=f"redis://127.0.0.1:{free_port()}/0")
    until(lambda: "does not answer, waiting" in hosts.text(process), 30, "the sentence")
    status, body = ask(address, "/api/health")
    assert (status, json.loads(body)["waits_for"]) == (200, "Redis")
    assert ask(address, "/api/ready")[0] == 503
    process.send_signal(signal.SIGTERM)
    assert process.wait(10 * SCALE) == 0


def test_a_refused_password_ends_with_4_and_never_shows_it(hosts):
    with Valkey.private(tcp=True, password="right-password") as server:
        process = hosts.start(FLOWFLEET_REDIS=f"redis://:wrong-password@127.0.0.1:{server.port}/0")
        assert process.wait(30 * SCALE) == 4
    text = hosts.text(process)
    assert "refuses our password" in text
    assert "wrong-password" not in text


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--python", "/bin/true"), 2, "has no prefect"),
        (("--api", "http://127.0.0.1:1/api", "--deploy", "zeppelin"), 2, "--deploy zeppelin is unknown"),
        (("--redis", "http://x"), 4, "--redis"),
    ],
)
def test_what_waiting_cannot_cure_is_one_sentence_and_its_code(hosts, args, code, words):
    process = hosts.start(*args)
    assert process.wait(30 * SCALE) == code
    assert words in hosts.text(process)
