"""The commands at a Prefect 1 API: found as its own command finds it, waited for, and refused in one sentence."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.integration.test_prefect1_worker_process import python
from tests.prefect1_api import Prefect1Api
from tests.valkey import free_port
from tests.waiting import until
from tests.world import BIN, Part, World

KEY = "the-right-key"
NO_TENANT = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def world(valkey, tmp_path) -> Iterator[World]:
    """Commands with an environment as a user of Prefect 1 would have it: nothing says where the API is."""
    (tmp_path / ".prefect").mkdir()
    made = World(tmp_path, "", valkey.tcp_url)
    made.env |= {"PREFECT_API_URL": None, "PREFECT_HOME": None, "PREFECT_LOGGING_LEVEL": None}
    yield made
    made.close()


@pytest.fixture
def keyed() -> Iterator[Prefect1Api]:
    with Prefect1Api(key=KEY) as served:
        yield served


def start(world: World, part: str, *options: str, **env: str) -> Part:
    return world.start(part, part, options, env, wait=False)


def says(part: Part, words: str) -> None:
    until(lambda: words in part.text(), 30, f"{words!r} in:\n{part.text()}")


def test_a_poller_starts_with_prefect_1s_own_settings_alone(world, api):
    done = world.command("poller", "start", "--max-polls", "1", PREFECT__SERVER__ENDPOINT=api.url)
    assert done.returncode == 0, done.stderr
    assert "backend=prefect1" in done.stderr


def test_a_poller_and_a_worker_ask_an_address_which_api_it_is(world, api, tmp_path):
    worker = start(world, "worker", "--api", api.url, "--python", str(python(tmp_path, "1.4.1")), "-l", "a")
    done = world.command("poller", "start", "--max-polls", "1", "--api", f"{api.url}/graphql")
    assert done.returncode == 0, done.stderr
    says(worker, "the API was asked which it is")
    says(worker, "worker joins the fleet")
    assert "a" in worker.text().partition("worker joins the fleet")[2].partition("labels=")[2].splitlines()[0]
    assert worker.process.poll() is None, worker.text()


@pytest.mark.parametrize("kind", ["poller", "worker"])
@pytest.mark.parametrize("known", [False, True])
def test_an_api_that_is_down_is_waited_for_and_a_stop_ends_the_waiting(world, kind, known):
    url = f"http://127.0.0.1:{free_port()}"
    env = {"PREFECT__CLOUD__API": url} if known else {"FLOWFLEET_API": url}
    if known and kind == "poller":
        address = f"http://127.0.0.1:{free_port()}"
        argv = [str(BIN / kind), "start"]
        part = world.part(kind, argv, {**env, "PREFECT__CLOUD__AGENT__AGENT_ADDRESS": address}, address)
    else:
        part = start(world, kind, **env)
    says(part, "does not answer, waiting")
    assert "Connection refused" in part.text()
    (health, alive), (ready, waits) = part.ask("/api/health"), part.ask("/api/ready")
    assert (health, ready) == (200, 503)  # a probe must not end it for waiting
    assert json.loads(alive)["waits_for"] == json.loads(waits)["waits_for"] == "the Prefect API"
    assert part.stop(10) == 0


def test_an_api_that_comes_up_later_is_found(world):
    port = free_port()
    poller = start(world, "poller", "--max-polls", "1", FLOWFLEET_API=f"http://127.0.0.1:{port}")
    says(poller, "does not answer, waiting")
    with Prefect1Api(port=port):
        assert poller.wait(40) == 0
    assert "answers again" in poller.text()


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_the_page_of_who_waits_becomes_that_of_who_works(world, tmp_path, kind):
    port = free_port()
    of_worker = ("--python", str(python(tmp_path, "1.4.1"))) if kind == "worker" else ()
    part = start(world, kind, "--api", f"http://127.0.0.1:{port}", *of_worker)
    says(part, "does not answer, waiting")
    with Prefect1Api(port=port):
        part.wait_ready()
        assert "flowfleet_" in part.ask("/metrics")[1]
        assert part.stop(20) == 0


def test_require_api_and_questions_end_with_three_and_five(world):
    url = f"http://127.0.0.1:{free_port()}"
    done = world.command("poller", "start", "--require-api", "--api", url)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"Error: The Prefect API at {url} cannot be reached")
    done = world.command("flowfleet", "doctor", "--api", url)
    assert done.returncode == 5
    assert "cannot be reached" in done.stdout


@pytest.mark.parametrize("flag", ["-k", "--key", "-t", "--token"])
def test_with_a_key_or_its_older_name_the_cloud_tells_the_tenant(world, keyed, flag):
    env = {"PREFECT__BACKEND": "cloud", "PREFECT__CLOUD__API": keyed.url}
    done = world.command("poller", "start", "--max-polls", "1", "--log-level", "debug", flag, KEY, **env)
    assert done.returncode == 0, done.stderr
    assert keyed.counted("auth_info") > 0
    assert KEY not in done.stderr


@pytest.mark.parametrize("env", [{}, {"PREFECT__BACKEND": "cloud"}])
def test_a_replaced_key_is_taken_at_sighup_without_a_restart(world, keyed, tmp_path, env):
    key = tmp_path / "key"
    key.write_text("the-wrong-key")
    env = {"FLOWFLEET_API": keyed.url, "FLOWFLEET_KEY_FILE": str(key), **env}
    poller = start(world, "poller", "--max-polls", "1", **env)
    says(poller, "refuses our credentials")
    assert "set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE" in poller.text()
    key.write_text(KEY)
    poller.signal(signal.SIGHUP)
    assert poller.wait(30) == 0, poller.text()
    assert "the-wrong-key" not in poller.all_text()
    assert KEY not in poller.all_text()


WRONG = [
    ({"PREFECT__BACKEND": "cloud"}, (), 2, "You have not set an API key for authentication"),
    ({}, ("--tenant-id", "mine"), 2, "--tenant-id cannot be 'mine': it must be a tenant's id"),
    ({}, ("--tenant-id", NO_TENANT), 3, f"has no tenant {NO_TENANT}: correct --tenant-id"),
    ({}, ("--agent-address", "http://h"), 2, "--agent-address cannot be 'http://h': it must be http://HOST:PORT with"),
    ({}, ("--agent-config-id", NO_TENANT), 3, NO_TENANT),
    ({}, ("--agent-config-id", "mine"), 2, "--agent-config-id cannot be 'mine': it must be an id such as"),
    ({}, ("--backend", "prefect1", "--api", "API/api"), 3, "the address of a Prefect 1 API has no /api at its end"),
    ({"PREFECT__CLOUD__API": "localhost:4200"}, (), 2, "PREFECT__CLOUD__API in the environment is not the address"),
]


@pytest.mark.parametrize("part", ["poller", "worker"])
@pytest.mark.parametrize(("env", "options", "code", "words"), WRONG)
def test_what_is_wrong_is_one_sentence(world, api, part, env, options, code, words):
    told = [option.replace("API/", f"{api.url}/") for option in options]
    done = world.command(part, "start", *told, **{"PREFECT__CLOUD__API": api.url, **env})
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("name", ["config.toml", "auth.toml", "backend.toml"])
def test_a_broken_file_of_prefects_is_one_sentence(world, api, tmp_path, name):
    path = tmp_path / ".prefect" / name
    path.write_text('key = "hunter2')
    done = world.command("worker", "start", PREFECT__CLOUD__API=api.url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"Error: {path} is not valid TOML: correct it or move it away."
    assert "hunter2" not in done.stderr


def test_labels_that_are_no_list_are_one_sentence(world, api):
    done = world.command("worker", "start", PREFECT__CLOUD__API=api.url, PREFECT__CLOUD__AGENT__LABELS="['a'")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "PREFECT__CLOUD__AGENT__LABELS in the environment is not a list" in done.stderr.splitlines()[-1]


def test_config_shows_what_prefect_1s_own_settings_add(world):
    env = {
        "PREFECT__SERVER__HOST": "http://mine",
        "PREFECT__BACKEND": "server",
        "PREFECT__CLOUD__AGENT__LABELS": "['a', 'b']",
        "PREFECT__CLOUD__AGENT__LEVEL": "DEBUG",
        "PREFECT__CLOUD__AGENT__AUTH_TOKEN": "top-secret",
    }
    done = world.command("flowfleet", "config", **env)
    assert done.returncode == 0, done.stderr
    for line in (
        "api = http://mine:4200  (PREFECT__SERVER__HOST in the environment)",
        "backend = auto  (default; here prefect1)",
        "log-level = DEBUG  (PREFECT__CLOUD__AGENT__LEVEL in the environment)",
        "label = a, b  (PREFECT__CLOUD__AGENT__LABELS in the environment)",
    ):
        assert line in done.stdout.splitlines()
    assert "top-secret" not in done.stdout
