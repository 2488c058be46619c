"""`worker start` as a process of its own: its exit codes, its sentences, its page."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, until


def start(fleet, *options, **env):
    """A worker, and nobody waits for it."""
    return fleet.start("worker", "worker", options, env, wait=False)


def ready(fleet, *options, **env):
    return start(fleet, *options, **env).wait_ready()


def test_its_page_and_its_orderly_stop(lawless):
    # a stop that leaves its runs ends without a word after five seconds
    worker = ready(lawless, "--slots", "3", "--on-stop", "wait")
    status, body = worker.ask("/api/health")
    assert (status, json.loads(body)["ok"], json.loads(body)["slots"]) == (200, True, 3)
    metrics = worker.ask("/metrics")[1]
    assert "flowfleet_worker_redis_up 1.0" in metrics
    assert 'flowfleet_build_info{version="' in metrics
    assert worker.ask("/api/runs/00000000-0000-4000-8000-000000000000/log")[0] == 404
    began = time.monotonic()
    assert worker.stop(10) == 0
    assert time.monotonic() - began < 5 * SCALE
    assert "worker stopped, no run is left" in worker.text()


def test_a_worker_whose_sigint_a_shell_has_ignored_still_ends_at_sigterm(lawless):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = ready(lawless)
    finally:
        signal.signal(signal.SIGINT, before)
    worker.signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)
    assert worker.stop(10) == 0


def test_a_second_worker_of_the_name_is_refused_and_named(lawless):
    ready(lawless)
    second = start(lawless)
    assert second.wait(30) == 2
    assert "--name" in second.text()


def test_a_clone_of_a_machine_whose_worker_lives_is_refused_and_its_folder_named(lawless, tmp_path):
    ids = {"FLOWFLEET_MACHINE_ID": "m" * 32, "FLOWFLEET_BOOT_ID": "boot-1", "FLOWFLEET_HOST": "original"}
    ready(lawless, **ids)
    copy = tmp_path / "copied"
    shutil.copytree(lawless.folder / "state", copy)
    clone = start(
        lawless, **ids | {"FLOWFLEET_BOOT_ID": "boot-2", "FLOWFLEET_HOST": "clone", "XDG_STATE_HOME": str(copy)}
    )
    assert clone.wait(40) == 2
    text = clone.text()
    assert f"The state folder {copy}" in text
    assert all(word in text for word in ("worker@original", "--name", "--state-dir"))


def test_two_machines_of_one_host_name_are_told_apart_before_the_second_takes_the_name(lawless, tmp_path):
    worker = ready(lawless, FLOWFLEET_HOST="twin", FLOWFLEET_MACHINE_ID="a" * 32)
    ids = {"FLOWFLEET_HOST": "twin", "FLOWFLEET_MACHINE_ID": "b" * 32, "FLOWFLEET_BOOT_ID": "b"}
    second = start(lawless, XDG_STATE_HOME=str(tmp_path / "b"), **ids)
    assert second.wait(40) == 2
    assert "nother worker named worker@twin is alive" in second.text()
    assert worker.process.poll() is None
    assert worker.ask("/api/ready")[0] == 200


def limited(descriptors):
    """What runs a command under this hard limit of open files."""
    return ("sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "-")


def test_slots_that_the_limit_of_open_files_does_not_allow_are_cut_in_the_roster_too(lawless):
    poller = lawless.start_poller()
    worker = lawless.start_worker("worker", "--show-flow-logs", slots=24, before=limited(64))
    (said,) = [line for line in worker.text().splitlines() if "open files are limited here" in line]
    assert all(words in said for words in ("WARNING", "limit=64", "needed=280", "wanted=24", "slots=2"))
    assert [row["slots"] for row in lawless.status()["workers"]] == [2]
    deployment = lawless.deploy_tiny(0.2)
    lawless.all_once([lawless.create_run(deployment) for _ in range(12)])
    for part in (poller, worker):
        assert "Traceback" not in part.text()
        assert "Too many open files" not in part.text()
    assert worker.stop(10) == 0


def test_a_limit_of_open_files_for_not_even_one_slot_is_one_sentence_and_2(lawless):
    worker = lawless.start("worker", "worker", before=limited(45), wait=False)
    assert worker.wait(30) == 2
    (line,) = worker.text().splitlines()
    assert "Open files are limited to 45 here, and a worker with one slot needs 50" in line


def test_variables_of_celery_change_nothing_and_flows_keep_them(lawless, tmp_path):
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    # stands for the interpreter of the flows: it is asked for its prefect in the environment that they get
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$CELERY_BROKER_URL" > {tmp_path}/seen\necho 3.0.0\n')
    python.chmod(0o755)
    worker = ready(lawless, "--python", str(python), CELERY_BROKER_URL=nowhere, CELERY_BROKER_READ_URL=nowhere)
    assert "variables of Celery are ignored" in worker.text()
    assert (tmp_path / "seen").read_text().strip() == nowhere


def test_a_refused_password_ends_with_4_and_never_shows_it(lawless):
    with Valkey.private(tcp=True, password="right-password") as server:
        worker = start(lawless, FLOWFLEET_REDIS=f"redis://:wrong-password@127.0.0.1:{server.port}/0")
        assert worker.wait(30) == 4
    text = worker.all_text()
    assert "refuses our password" in text
    assert "wrong-password" not in text


def drained(fleet, *options, **env):
    """A worker that was drained before its start, by a name that the roster has."""
    assert ready(fleet).stop(10) == 0
    assert fleet.command("worker", "drain", "worker", "--note", "new disk").returncode == 0
    return start(fleet, *options, **env)


def test_a_drained_worker_that_is_started_again_ends_with_7_and_says_how_to_resume(lawless):
    worker = drained(lawless)
    assert worker.wait(30) == 7
    (row,) = lawless.status()["workers"]
    (said,) = [line for line in worker.text().splitlines() if "drained before" in line]
    assert f'resume="worker resume {row["name"]}@{row["host"]}"' in said
    assert 'note="new disk"' in said


def test_a_drained_worker_that_is_to_wait_signs_off_and_takes_runs_again_when_it_is_resumed(lawless):
    lawless.start_poller()
    worker = drained(lawless, "--on-drained", "wait", "--pool", lawless.pool, CELERY_SEEN_BY_FLOWS="1")
    until(lambda: "waits until it is resumed" in worker.text(), 30, "the worker to wait")
    assert [row["state"] for row in lawless.status()["workers"]] == ["stopped"]
    until(lambda: worker.ask("/api/health")[0] == 200, 5, "it is no reason to be started anew")
    status, body = worker.ask("/api/ready")
    assert (status, "worker resume worker@" in json.loads(body)["waits_for"]) == (503, True)

    assert lawless.command("worker", "resume", "worker").returncode == 0
    worker.wait_ready()
    assert Path(f"/proc/{worker.process.pid}/environ").read_bytes().count(b"CELERY_SEEN_BY_FLOWS=1") == 1
    assert [row["state"] for row in lawless.status()["workers"]] == ["active"]
    lawless.all_once([lawless.create_run(lawless.deploy_tiny(0.2))])
    assert worker.stop(10) == 0


def test_a_drained_worker_that_waits_ends_at_a_signal(lawless):
    worker = drained(lawless, "--on-drained", "wait")
    until(lambda: "waits until it is resumed" in worker.text(), 30, "the worker to wait")
    assert worker.stop(10) == 0


def test_a_pool_of_no_such_name_is_made_with_a_line_or_refused(lawless):
    refused = start(lawless, "--pool", "nosuchpool", "--no-create-pool")
    assert refused.wait(30) == 2
    assert "no work pool 'nosuchpool', and --no-create-pool keeps this worker from making it" in refused.text()
    assert lawless.api.pool("nosuchpool") is None
    made = ready(lawless, "--pool", "nosuchpool")
    assert "there was no such work pool, so it is made" in made.text()
    assert lawless.api.pool("nosuchpool") is not None


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--python", "/bin/true"), 2, "has no prefect"),
        (("--api", "http://127.0.0.1:1/api", "--deploy", "zeppelin"), 2, "--deploy zeppelin is unknown"),
        (("--redis", "http://x"), 4, "--redis"),
    ],
)
def test_what_waiting_cannot_cure_is_one_sentence_and_its_code(lawless, args, code, words):
    worker = start(lawless, *args)
    assert worker.wait(30) == code
    assert words in worker.text()
