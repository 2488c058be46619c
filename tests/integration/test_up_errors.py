"""Errors of `up`: each is one sentence with its documented exit code, and nothing is left running."""

import fcntl
import json
import os
import socket

from tests.scripted_graphql import Said, ScriptedGraphQL
from tests.valkey import Valkey, free_port


def _error(text):
    lines = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_a_port_in_use_is_said_before_anything_starts(up):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = up("--port", str(port)).run()

    assert code == 2
    assert f"Port {port} is in use" in _error(text)
    assert "--port" in _error(text)
    assert "Redis at" not in text


def test_a_folder_that_cannot_be_written(up):
    run = up()
    run.data.write_text("a file")
    code, text = run.run()

    assert code == 2
    assert "--data-dir" in _error(text)


def test_a_second_up_in_the_same_folder(up):
    first = up("--redis", f"redis://127.0.0.1:{free_port()}/0")
    first.data.mkdir()
    holder = os.open(first.data / "up.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    os.write(holder, b"4711")
    code, text = first.run()
    os.close(holder)

    assert code == 2
    assert "pid 4711" in _error(text)


def test_a_redis_that_is_not_there(up):
    port = free_port()
    code, text = up("--redis", f"redis://127.0.0.1:{port}/0", "--api", "http://127.0.0.1:1/api").run()

    assert code == 4
    assert str(port) in _error(text)
    assert _error(text).endswith(": start it, or correct --redis or FLOWFLEET_REDIS.")


def test_a_redis_that_refuses_our_password_shows_no_secret(up):
    with Valkey.private(tcp=True, password="the-right-one") as server:
        url = server.tcp_url.replace("the-right-one", "the-wrong-one")
        code, text = up("--api", "http://127.0.0.1:1/api", FLOWFLEET_REDIS=url).run()

    assert code == 4
    assert "FLOWFLEET_REDIS" in _error(text)
    assert "the-wrong-one" not in text


def test_a_redis_cluster(up):
    with Valkey.private(tcp=True, config=["--cluster-enabled", "yes"]) as server:
        code, text = up("--redis", server.tcp_url, "--api", "http://127.0.0.1:1/api").run()

    assert code == 4
    assert "cluster" in _error(text)


def test_an_address_that_is_no_prefect_api_ends_with_3_and_takes_the_embedded_redis_down_again(up):
    with ScriptedGraphQL(Said({"error": "no such page"}, 404)) as shop:
        run = up("--api", f"{shop.url}/api")
        code, text = run.run()

    assert code == 3
    assert "not a Prefect 3 API" in _error(text)
    assert "is ready" in text  # Redis was, and is gone now
    assert run.left() == {}


def test_an_api_that_is_not_there_ends_with_3(up):
    code, text = up("--api", f"http://127.0.0.1:{free_port()}/api").run()

    assert code == 3
    assert "cannot be reached" in _error(text)
    assert _error(text).endswith(": start it, or correct --api or FLOWFLEET_API.")


def test_the_redis_that_an_earlier_up_told_to_export_is_started_again(up):
    run = up("--api", f"http://127.0.0.1:{free_port()}/api")
    run.run()
    port = json.loads((run.data / "ports.json").read_text())["redis"]
    run.env["FLOWFLEET_REDIS"] = f"redis://127.0.0.1:{port}/0"
    code, text = run.run()

    assert code == 3  # there is still no API
    assert text.count(f"Redis at redis://127.0.0.1:{port}/0 is ready") == 2


def test_exit_without_demo_is_a_wrong_use(up):
    code, text = up("--exit").run()

    assert code == 2
    assert "--demo" in _error(text)
