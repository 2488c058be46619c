"""The commands at a Prefect 1 API: found as its own command finds it, waited for, and refused in one sentence."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.prefect1_api import Prefect1Api
from tests.valkey import free_port
from tests.waiting import SCALE, until

BIN = Path(sys.executable).parent
KEY = "the-right-key"
NO_TENANT = "99999999-2222-3333-4444-555555555555"


class Commands:
    """Starts our commands with an environment of their own, as a user of Prefect 1 would have it."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def environment(self, **env: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "FLOWFLEET_"))}
        ours = {"HOME": str(self.folder), "FLOWFLEET_REDIS": self.redis_url, "FLOWFLEET_FLEET": self.folder.name[-40:]}
        return {**clean, "XDG_STATE_HOME": str(self.folder / "state"), **ours, **env}

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / argv[0]), *argv[1:]],
            env=self.environment(**env),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60 * SCALE,
            check=False,
        )

    def start(self, *argv: str, **env: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{len(self._running)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(BIN / argv[0]), *argv[1:]],
                env=self.environment(**env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._running.append((process, log))
        return process, log

    def python_of(self, version: str) -> str:
        """An interpreter that says no more than which Prefect it has."""
        python = self.folder / "python"
        python.write_text(f"#!/bin/sh\necho {version}\n")
        python.chmod(0o755)
        return str(python)

    def close(self) -> None:
        for process, _ in self._running:
            process.kill()
            process.wait(10)


@pytest.fixture
def commands(valkey, tmp_path) -> Iterator[Commands]:
    (tmp_path / ".prefect").mkdir()
    made = Commands(tmp_path, valkey.tcp_url)
    yield made
    made.close()


@pytest.fixture
def api() -> Iterator[Prefect1Api]:
    with Prefect1Api() as served:
        yield served


@pytest.fixture
def keyed() -> Iterator[Prefect1Api]:
    with Prefect1Api(key=KEY) as served:
        yield served


def says(log: Path, words: str) -> None:
    until(lambda: words in log.read_text(), 30, f"{words!r} in:\n{log.read_text()}")


def test_a_poller_starts_with_prefect_1s_own_settings_alone(commands, api):
    done = commands.run("poller", "start", "--max-polls", "1", PREFECT__SERVER__ENDPOINT=api.url)
    assert done.returncode == 0, done.stderr
    assert "backend=prefect1" in done.stderr


def test_a_poller_and_a_worker_ask_an_address_which_api_it_is(commands, api):
    address = f"http://127.0.0.1:{free_port()}"
    worker, log = commands.start(
        "worker",
        "start",
        "--api",
        api.url,
        "--python",
        commands.python_of("1.4.1"),
        "--agent-address",
        address,
        "-l",
        "a",
    )
    done = commands.run("poller", "start", "--max-polls", "1", "--api", f"{api.url}/graphql")
    assert done.returncode == 0, done.stderr
    says(log, "the API was asked which it is")
    says(log, "worker joins the fleet")
    assert "a" in log.read_text().partition("worker joins the fleet")[2].partition("labels=")[2].splitlines()[0]
    assert worker.poll() is None, log.read_text()


@pytest.mark.parametrize("part", ["poller", "worker"])
@pytest.mark.parametrize("known", [False, True])
def test_an_api_that_is_down_is_waited_for_and_a_stop_ends_the_waiting(commands, part, known):
    url = f"http://127.0.0.1:{free_port()}"
    env = {"PREFECT__CLOUD__API": url} if known else {"FLOWFLEET_API": url}
    address = f"http://127.0.0.1:{free_port()}"
    if known and part == "poller":
        of_address, env["PREFECT__CLOUD__AGENT__AGENT_ADDRESS"] = [], address
    else:
        of_address = ["--agent-address", address]
    process, log = commands.start(part, "start", *of_address, **env)
    says(log, "does not answer, waiting")
    assert "Connection refused" in log.read_text()
    health, ready = (requests.get(address + path, timeout=10) for path in ("/api/health", "/api/ready"))
    assert (health.status_code, ready.status_code) == (200, 503)  # a probe must not end it for waiting
    assert health.json()["waits_for"] == ready.json()["waits_for"] == "the Prefect API"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10 * SCALE) == 0


def test_an_api_that_comes_up_later_is_found(commands):
    port = free_port()
    process, log = commands.start("poller", "start", "--max-polls", "1", FLOWFLEET_API=f"http://127.0.0.1:{port}")
    says(log, "does not answer, waiting")
    with Prefect1Api(port=port):
        assert process.wait(40 * SCALE) == 0
    assert "answers again" in log.read_text()


@pytest.mark.parametrize("part", ["poller", "worker"])
def test_the_page_of_who_waits_becomes_that_of_who_works(commands, part):
    port, address = free_port(), f"http://127.0.0.1:{free_port()}"
    api = f"http://127.0.0.1:{port}"
    python = commands.python_of("1.4.1")
    of_worker = ("--python", python) if part == "worker" else ()
    process, log = commands.start(part, "start", "--api", api, "--agent-address", address, *of_worker)
    says(log, "does not answer, waiting")
    with Prefect1Api(port=port):
        until(lambda: requests.get(f"{address}/api/ready", timeout=10).ok, 40, f"it to be ready:\n{log.read_text()}")
        assert "flowfleet_" in requests.get(f"{address}/metrics", timeout=10).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20 * SCALE) == 0


def test_require_api_and_questions_end_with_three_and_five(commands):
    url = f"http://127.0.0.1:{free_port()}"
    done = commands.run("poller", "start", "--require-api", "--api", url)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"Error: The Prefect API at {url} cannot be reached")
    done = commands.run("flowfleet", "doctor", "--api", url)
    assert done.returncode == 5
    assert "cannot be reached" in done.stdout


@pytest.mark.parametrize("flag", ["-k", "--key", "-t", "--token"])
def test_with_a_key_or_its_older_name_the_cloud_tells_the_tenant(commands, keyed, flag):
    env = {"PREFECT__BACKEND": "cloud", "PREFECT__CLOUD__API": keyed.url}
    done = commands.run("poller", "start", "--max-polls", "1", "--log-level", "debug", flag, KEY, **env)
    assert done.returncode == 0, done.stderr
    assert keyed.counted("auth_info") > 0
    assert KEY not in done.stderr


@pytest.mark.parametrize("env", [{}, {"PREFECT__BACKEND": "cloud"}])
def test_a_replaced_key_is_taken_at_sighup_without_a_restart(commands, keyed, env):
    key = commands.folder / "key"
    key.write_text("the-wrong-key")
    process, log = commands.start(
        "poller", "start", "--max-polls", "1", FLOWFLEET_API=keyed.url, FLOWFLEET_KEY_FILE=str(key), **env
    )
    says(log, "refuses our credentials")
    assert "set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE" in log.read_text()
    key.write_text(KEY)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30 * SCALE) == 0, log.read_text()
    assert "the-wrong-key" not in log.read_text()
    assert KEY not in log.read_text()


WRONG = [
    ({"PREFECT__BACKEND": "cloud"}, (), 2, "You have not set an API key for authentication"),
    ({}, ("--tenant-id", "mine"), 2, "--tenant-id cannot be 'mine': it must be a tenant's id"),
    ({}, ("--tenant-id", NO_TENANT), 3, f"has no tenant {NO_TENANT}, correct --tenant-id"),
    ({}, ("--agent-address", "http://127.0.0.1"), 2, "it must be http://HOST:PORT with the port"),
    ({}, ("--agent-config-id", NO_TENANT), 3, NO_TENANT),
    ({}, ("--agent-config-id", "mine"), 2, "--agent-config-id cannot be 'mine': it must be an id such as"),
    ({}, ("--backend", "prefect1", "--api", "API/api"), 3, "the address of a Prefect 1 API has no /api at its end"),
    ({"PREFECT__CLOUD__API": "localhost:4200"}, (), 2, "PREFECT__CLOUD__API in the environment is not the address"),
]


@pytest.mark.parametrize("part", ["poller", "worker"])
@pytest.mark.parametrize(("env", "options", "code", "words"), WRONG)
def test_what_is_wrong_is_one_sentence(commands, api, part, env, options, code, words):
    told = [option.replace("API/", f"{api.url}/") for option in options]
    done = commands.run(part, "start", *told, **{"PREFECT__CLOUD__API": api.url, **env})
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("name", ["config.toml", "auth.toml", "backend.toml"])
def test_a_broken_file_of_prefects_is_one_sentence(commands, api, name):
    path = commands.folder / ".prefect" / name
    path.write_text("[cloud\n")
    done = commands.run("worker", "start", PREFECT__CLOUD__API=api.url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"Error: {path} is not valid TOML, correct it or move it away."


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (("--env", "NAME"), {}, "must be NAME=VALUE"),
        (
            (),
            {"PREFECT__CLOUD__AGENT__LABELS": "['a'"},
            "PREFECT__CLOUD__AGENT__LABELS in the environment is not a list",
        ),
    ],
)
def test_what_is_wrong_with_a_worker_is_one_sentence(commands, api, options, env, words):
    done = commands.run("worker", "start", *options, **{"PREFECT__CLOUD__API": api.url, **env})
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert words in done.stderr.splitlines()[-1]


def test_config_shows_what_prefect_1s_own_settings_add(commands):
    env = {
        "PREFECT__SERVER__HOST": "http://mine",
        "PREFECT__BACKEND": "server",
        "PREFECT__CLOUD__AGENT__LABELS": "['a', 'b']",
        "PREFECT__CLOUD__AGENT__LEVEL": "DEBUG",
        "PREFECT__CLOUD__AGENT__AUTH_TOKEN": "top-secret",
    }
    done = commands.run("flowfleet", "config", **env)
    assert done.returncode == 0, done.stderr
    for line in (
        "api = http://mine:4200  (PREFECT__SERVER__HOST in the environment)",
        "backend = auto  (default; here prefect1)",
        "log-level = DEBUG  (PREFECT__CLOUD__AGENT__LEVEL in the environment)",
        "label = a, b  (PREFECT__CLOUD__AGENT__LABELS in the environment)",
    ):
        assert line in done.stdout.splitlines()
    assert "top-secret" not in done.stdout
