"""Errors of `up`: each is one sentence with its documented exit code, and nothing is left running."""

import json
import os
import socket
from contextlib import closing

from flowfleet.local.data_folder import DataFolder
from tests.scripted_graphql import Said, ScriptedGraphQL
from tests.valkey import Valkey, free_port

#: an API that nobody asks, since `up` ends before
NO_API = ("--api", "http://127.0.0.1:1/api")


def refused(run, code):
    """It ends with this code: its one sentence, and all that it has said."""
    ended, text = run.run()
    assert ended == code
    assert "Traceback" not in text
    (error,) = (line for line in text.splitlines() if line.startswith("Error: "))
    return error, text


def test_a_port_in_use_is_said_before_anything_starts(up):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error, text = refused(up("--port", str(port)), 2)

    assert f"Port {port} is in use" in error
    assert "--port" in error
    assert "Redis at" not in text


def test_a_folder_that_cannot_be_written(up):
    run = up()
    run.data.write_text("a file")

    assert "--data-dir" in refused(run, 2)[0]


def test_a_second_up_in_the_same_folder(up):
    run = up("--redis", f"redis://127.0.0.1:{free_port()}/0")
    with closing(DataFolder.open(run.data)):
        error, _ = refused(run, 2)

    assert f"pid {os.getpid()}" in error
    assert "--data-dir" in error


def test_a_redis_that_is_not_there(up):
    port = free_port()
    error, _ = refused(up("--redis", f"redis://127.0.0.1:{port}/0", *NO_API), 4)

    assert str(port) in error
    assert error.endswith(": start it, or correct --redis or FLOWFLEET_REDIS.")


def test_a_redis_that_refuses_our_password_shows_no_secret(up):
    with Valkey.private(tcp=True, password="the-right-one") as server:
        url = server.tcp_url.replace("the-right-one", "the-wrong-one")
        error, text = refused(up(*NO_API, FLOWFLEET_REDIS=url), 4)

    assert "FLOWFLEET_REDIS" in error
    assert "the-wrong-one" not in text


def test_a_redis_cluster(up):
    with Valkey.private(tcp=True, config=["--cluster-enabled", "yes"]) as server:
        assert "cluster" in refused(up("--redis", server.tcp_url, *NO_API), 4)[0]


def test_an_address_that_is_no_prefect_api_ends_with_3_and_takes_the_embedded_redis_down_again(up):
    with ScriptedGraphQL(Said({"error": "no such page"}, 404)) as shop:
        run = up("--api", f"{shop.url}/api")
        error, text = refused(run, 3)

    assert "not a Prefect 3 API" in error
    assert "is ready" in text  # Redis was, and is gone now
    assert run.left() == {}


def test_an_api_that_is_not_there_ends_with_3_and_the_redis_that_it_told_to_export_is_started_again(up):
    run = up("--api", f"http://127.0.0.1:{free_port()}/api")
    error, _ = refused(run, 3)
    assert "cannot be reached" in error
    assert error.endswith(": start it, or correct --api or FLOWFLEET_API.")

    port = json.loads((run.data / "ports.json").read_text())["redis"]
    run.env["FLOWFLEET_REDIS"] = f"redis://127.0.0.1:{port}/0"
    code, text = run.run()
    assert code == 3  # there is still no API
    assert text.count(f"Redis at redis://127.0.0.1:{port}/0 is ready") == 2


def test_exit_without_demo_is_a_wrong_use(up):
    assert "--demo" in refused(up("--exit"), 2)[0]
