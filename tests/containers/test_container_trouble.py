"""Containers amid trouble: engines that die, freeze and come back, memory that runs out, floods, and leftovers."""

import os
import signal
import subprocess
import threading

import pytest

from flowfleet.certificate import EndedBy
from flowfleet.errors import EngineAway, NotReady
from tests.containers.deploying import Deploying, sh
from tests.waiting import stays, until
from workers.containers.engine import Engine
from workers.exit import StopReason
from workers.state.run_folders import RunFolder, RunFolders
from workers.stop import Stop


@pytest.fixture
def healed(deploying):
    """The engine, which lives again when the test is over."""
    engine = deploying.engine
    yield engine
    engine.thaw_if_frozen()
    if engine.process.poll() is not None:
        engine.start()


# -- the engine


def test_an_engine_that_is_killed_ends_its_containers_and_that_is_what_is_said(deploying, deployer, healed):
    spec = deploying.spec("sleep", "600")
    run = deploying.start(deployer, spec)
    until(lambda: deploying.containers(spec)[0]["State"] == "running", 10, "it to run")
    healed.kill()
    until(lambda: deployer.shut, 10, "the worker to see it")
    stays(lambda: run.poll() is None, 2, "nothing is called dead while the engine is away")
    healed.start()
    until(lambda: not deployer.shut, 20, "the slots to open")
    if deploying.podman:  # no daemon is above its containers
        stays(lambda: run.poll() is None, 2, "it goes on without the service")
        run.kill()
        assert deploying.end(run, 60).signal == 9
        return
    end = deploying.end(run, 60)
    assert (end.code in (137, 143), end.ended_by) == (True, EndedBy.ENGINE_RESTART)
    assert "container engine was restarted" in str(end)
    until(lambda: deploying.containers() == [], 30, "no container to be left")


def test_an_engine_that_is_restarted_in_order_is_told_as_that(engine, tmp_path):
    deploying = Deploying(engine, tmp_path)
    deployer = deploying.deployer()
    run = deploying.start(deployer, deploying.spec("sleep", "600"))
    engine.stop()
    engine.start()
    end = deploying.end(run, 60)
    assert (end.code, end.ended_by) == (143, EndedBy.ENGINE_RESTART)
    until(lambda: not deployer.shut, 20, "the slots to open")
    deploying.close()


def test_an_engine_that_is_frozen_for_a_while_changes_nothing(deploying, deployer, healed):
    spec = deploying.spec(*sh("sleep 4; echo on; exit 2"))
    run = deploying.start(deployer, spec)
    healed.freeze()
    stays(lambda: run.poll() is None, 5, "nothing is called dead while the engine says nothing")
    healed.thaw()
    assert deploying.end(run, 60).code == 2
    assert deploying.log(spec) == "on\n"


def test_without_an_engine_nothing_is_started_and_a_start_is_not_ready(deploying, deployer, healed):
    healed.kill()
    until(lambda: deployer.shut, 10, "the worker to see it")
    with pytest.raises(NotReady, match="does not answer"):
        deployer.start(deploying.spec("true"))
    healed.start()
    until(lambda: not deployer.shut, 20, "the slots to open")
    end, _ = deploying.run(*sh("exit 1"))
    assert end.code == 1


def test_an_engine_that_is_away_has_one_sentence(tmp_path):
    with pytest.raises(EngineAway, match=r"^the container engine at unix://.*/none\.sock does not answer"):
        Engine(f"unix://{tmp_path}/none.sock", {}).ping()


def test_a_stop_that_finds_the_engine_away_is_carried_out_when_it_is_back(deploying, deployer, healed):
    spec = deploying.spec("sleep", "600")
    run = deploying.start(deployer, spec)
    healed.freeze()
    RunFolder(spec.folder).write_stop(Stop(reason=StopReason.CANCEL, kill=True), "worker@host")
    run.kill()
    stays(lambda: run.poll() is None, 2, "it is not over")
    healed.thaw()
    end = deploying.end(run, 60)
    assert (end.signal, end.ended_by) == (9, EndedBy.CANCEL)


# -- memory


@pytest.mark.parametrize("number", range(3))
def test_a_kill_for_memory_is_told_as_one(deploying, deployer, number):
    end, _ = deploying.run("tail", "/dev/zero", memory=32 << 20)
    if deploying.podman:  # it has no such event, and its mark is always false
        assert (end.oom, end.code, end.ended_by) == (False, 137, EndedBy.UNKNOWN)
        return
    assert (end.oom, end.signal, end.ended_by) == (True, 9, EndedBy.OOM)
    assert "ran out of memory" in str(end)


def test_a_childs_kill_for_memory_and_a_later_end_is_none(deploying, deployer):
    end, _ = deploying.run(*sh("sh -c 'tail /dev/zero; true'; sleep 2; exit 137"), memory=32 << 20)
    assert (end.oom, end.code) == (False, 137)
    assert ("the kernel had killed a process of it for memory" in str(end)) is not deploying.podman


def test_a_kill_by_somebody_is_none(deploying, deployer):
    spec = deploying.spec("sleep", "600", memory=32 << 20)
    run = deploying.start(deployer, spec)
    client = deploying.engine.client()
    pid = client.api.inspect_container(run.handle["id"])["State"]["Pid"]
    client.close()
    os.kill(pid, signal.SIGKILL)
    end = deploying.end(run)
    assert (end.oom, end.code, end.ended_by) == (False, 137, EndedBy.UNKNOWN)
    assert "killed, or its command has exited so" in str(end)


def test_a_limit_of_memory_holds_without_swap(deploying, deployer):
    spec = deploying.spec("sleep", "600", memory=64 << 20, cpus=0.5)
    run = deploying.start(deployer, spec)
    client = deploying.engine.client()
    host = client.api.inspect_container(run.handle["id"])["HostConfig"]
    client.close()
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, 64 << 20, 500_000_000)
    assert (host["AutoRemove"], host["RestartPolicy"]["Name"]) == (False, "no")
    run.kill()
    deploying.end(run)


# -- output


@pytest.mark.slow
def test_a_flood_is_cut_to_its_newest_part(deploying, deployer):
    limit = 4 << 20
    spec = deploying.spec(
        *sh("yes 0123456789012345678901234567890123456789 | head -n 1000000; echo last"), log_limit=limit
    )
    run = deploying.start(deployer, spec)
    assert deploying.end(run, 120).code == 0
    log = spec.folder / "log"
    assert log.stat().st_blocks * 512 <= limit + (2 << 20)
    assert log.read_bytes().endswith(b"last\n")


def test_a_full_disk_keeps_no_end_back_once_there_is_room_again(deploying, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        deploying.state = small
        (small / "runs").mkdir()
        deploying.runs = RunFolders(small / "runs")
        deployer = deploying.deployer()
        spec = deploying.spec(*sh("yes 0123456789 | head -n 100000; echo last; exit 9"))
        run = deploying.start(deployer, spec)
        until(lambda: deploying.containers(spec)[0]["State"] == "exited", 30, "its end at the engine")
        stays(lambda: run.poll() is None, 3, "its end cannot be kept, so that it is not told")
        # other runs go on meanwhile as far as they need no disk
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert deploying.end(run, 60).code == 9
        assert deploying.log(spec).splitlines()[-1] == "last"
        until(lambda: deploying.containers() == [], 30, "no container to be left")
    finally:
        deploying.close()
        subprocess.run(["umount", "-l", str(small)], check=False)


# -- leftovers


def test_the_reaper_removes_what_was_created_and_cannot_begin(deploying, deployer, monkeypatch):
    class Killed(BaseException):
        pass

    spec = deploying.spec("true")

    class Points:
        def hit(self, name):
            if name == "container.after_create":
                raise Killed

    deployer.failpoints = Points()
    monkeypatch.setattr(deployer, "_discard", lambda *_: None)  # nobody is left to do so
    with pytest.raises(Killed):
        deployer.start(spec)
    assert RunFolder(spec.folder).abandon("its worker is gone")
    other = deploying.deployer(host_key="another host")
    assert other.leftovers.sweep(deploying.runs) == 0
    assert deployer.leftovers.sweep(deploying.runs) == 1
    assert deploying.containers() == []


def test_a_run_folder_that_the_disk_has_lost_is_made_again_from_the_container(deploying, deployer):
    spec = deploying.spec(*sh("echo begun; sleep 3; exit 8"))
    run = deploying.start(deployer, spec)
    until(lambda: "begun" in deploying.log(spec), 20, "its output")
    run.close()
    deployer.close()
    until(lambda: not any(run.handle["id"][:12] in thread.name for thread in threading.enumerate()), 10, "its threads")
    RunFolder(spec.folder).remove()

    again = deploying.deployer()
    assert again.recover(deploying.runs) == 1
    assert RunFolder(spec.folder).intent()["call"] == "c"
    assert deploying.end(again.adopt(spec.folder), 30).code == 8
