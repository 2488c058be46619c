"""Containers among those who wish them ill: runs that reach for others; engines, images and disks that misbehave."""

import errno
import time

import pytest

from flowfleet.errors import EngineRefused, StartFailed
from tests.containers.deploying import Deploying, sh
from workers.containers.container import Container
from workers.exit import StopReason
from workers.shim import atomic_files
from workers.state.run_folders import RunFolder
from workers.stop import Stop

# -- what belongs to others


def test_a_volume_that_somebody_else_has_made_is_not_given_to_a_run(deploying, client):
    deployer = deploying.deployer()
    name, own = f"db-{deploying.fleet}", f"own-{deploying.fleet}"
    client.volumes.create(name)
    try:
        with pytest.raises(StartFailed, match=f"was made by somebody else.*--allow-mount {name}"):
            deployer.start(deploying.spec("true", volumes=(f"{name}:/v",)))
        deploying.deployer(mounts=(name,))
        end, _ = deploying.run(*sh("echo x > /v/y"), volumes=(f"{name}:/v",))
        assert end.code == 0
        # one that was made for a run is there for the next one
        deploying.run(*sh("echo kept > /v/y"), deployer=deployer, volumes=(f"{own}:/v",))
        assert deploying.run("cat", "/v/y", deployer=deployer, volumes=(f"{own}:/v",))[1] == "kept\n"
    finally:
        for each in (name, own):
            client.api.remove_volume(each, force=True)


def test_what_a_worker_of_another_name_has_started_is_not_taken_up(deploying, deployer):
    spec = deploying.spec("sleep", "600")
    run = deploying.start(deployer, spec)
    other = deploying.deployer()
    other.worker = "another@host"
    deploying.runs.get(spec.run_id, spec.claim).remove()
    assert other.leftovers.recover(deploying.runs, other.worker) == 0
    run.kill()


# -- settings that the engine or its SDK refuses


@pytest.mark.parametrize(
    "options",
    [
        {"port_bindings": {"80/tcp": 8080}},
        {"ulimits": [{"Name": 5}]},
        {"healthcheck": {"test": 5}},
        {"device_read_bps": [{"Path": 5}]},
        {"mac_address": "x"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_setting_that_is_refused_fails_its_run_and_no_engine_is_called_away(deploying, deployer, options):
    spec = deploying.spec("true", options=options)
    if deploying.podman and set(options) & {"mac_address"}:
        deploying.end(deploying.start(deployer, spec))  # Podman takes it
    else:
        with pytest.raises(StartFailed):
            deployer.start(spec)
    assert deployer.shut == ""
    assert deploying.containers() == []


# -- engines that answer with an error


def test_a_start_that_is_answered_with_an_error_and_has_begun_is_watched(deploying, deployer, monkeypatch):
    really = Container.start

    def start(container):
        really(container)
        raise EngineRefused("server error", status=500)

    monkeypatch.setattr(Container, "start", start)
    spec = deploying.spec(*sh("sleep 1; exit 5"))
    assert deploying.end(deploying.start(deployer, spec)).code == 5
    assert deploying.containers() == []


def test_an_engine_that_answers_with_an_error_is_asked_again(deploying, deployer, monkeypatch):
    really, errors = Container.state, [1, 2]

    def state(container):
        if errors:
            errors.pop()
            raise EngineRefused("server error", status=500)
        return really(container)

    def start(container):
        raise EngineRefused("no such thing", status=400)

    with monkeypatch.context() as patched:
        patched.setattr(Container, "state", state)
        patched.setattr(Container, "start", start)
        spec = deploying.spec("true")
        with pytest.raises(StartFailed, match="refuses to start its container: no such thing"):
            deployer.start(spec)
    assert not errors
    assert RunFolder(spec.folder).exit_record()["begun"] is False
    assert deploying.containers() == []


# -- images and programs


def test_an_image_whose_stop_signal_there_is_not_is_stopped(engine, tmp_path):
    deploying = Deploying(engine, tmp_path)
    client = engine.client()
    container = client.api.create_container(deploying.busybox, "true")["Id"]
    client.api.commit(container, "badsignal", "1", conf={"StopSignal": "SIGFOO"})
    client.api.remove_container(container)
    try:
        deployer = deploying.deployer()
        script = "trap '' TERM; echo ready; while true; do sleep 0.1; done"
        spec = deploying.spec(*sh(script), image="badsignal:1", grace=1.0)
        run = deploying.start_ready(deployer, spec)
        RunFolder(spec.folder).write_stop(Stop(reason=StopReason.WORKER), "worker@host")
        run.stop()
        assert deploying.end(run, 30).signal == 9
    finally:
        deploying.close()
        client.api.remove_image("badsignal:1", force=True)
        client.close()


def test_a_terminal_without_a_line_costs_its_worker_no_more_than_one_with_many(deploying, deployer):
    script = "head -c 24000000 /dev/zero | tr '\\0' x"
    began = time.process_time()
    end, log = deploying.run(*sh(script), options={"tty": True}, deployer=deployer)
    assert end.code == 0
    assert log == "x" * 24_000_000
    assert time.process_time() - began < 5


# -- disks


def test_a_log_that_cannot_be_written_keeps_no_end_back(deploying, deployer):
    spec = deploying.spec(*sh("echo lost; exit 3"))
    (spec.folder / "log").mkdir()
    assert deploying.end(deploying.start(deployer, spec)).code == 3
    assert deployer.shut == ""


def test_a_start_that_cannot_be_noted_is_watched_and_noted_with_its_end(deploying, deployer, monkeypatch):
    really, full = atomic_files.write_json, [True]

    def write(path, *args, **how):
        if path.name == "started.json" and full:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(path, *args, **how)

    monkeypatch.setattr(atomic_files, "write_json", write)
    spec = deploying.spec(*sh("sleep 1; exit 4"))
    run = deploying.start(deployer, spec)
    full.clear()
    assert deploying.end(run).code == 4
    assert RunFolder(spec.folder).started()["id"] == run.handle["id"]
