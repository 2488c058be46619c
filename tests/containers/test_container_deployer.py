"""Containers on a real Docker engine: started once, watched to their true end, stopped, adopted, and removed."""

import threading

import pytest

from flowfleet.errors import StartFailed
from tests.containers.deploying import sh
from tests.waiting import until
from workers.exit import StopReason
from workers.shim.syscalls import boot_clock
from workers.state.run_folders import RunFolder
from workers.stop import Stop


@pytest.mark.parametrize("code", [0, 3, 125])
def test_a_run_ends_with_its_exit_code_and_its_output_and_leaves_no_container(deploying, deployer, code):
    end, log = deploying.run(*sh(f"echo out; echo err >&2; exit {code}"))
    assert (end.code, end.signal, end.unknown) == (code, None, False)
    assert sorted(log.split()) == ["err", "out"]
    assert end.wall_seconds is not None
    assert deploying.containers() == []


def test_it_has_its_variables_and_labels_and_the_name_of_its_run(deploying, deployer):
    spec = deploying.spec(*sh("echo $A; sleep 60"), env={"A": "b"}, name="angry bird/1", labels={"mine": "1"})
    run = deploying.start(deployer, spec)
    (row,) = until(lambda: deploying.containers(spec), 10, "the container")
    assert row["Names"] == ["/angry-bird-1"]
    assert row["Labels"]["mine"] == "1"
    assert row["Labels"]["io.flowfleet.run"] == spec.run_id
    assert run.handle["kind"] == "docker"
    assert run.handle["id"] == row["Id"]
    run.kill()
    assert deploying.end(run).signal == 9


def test_a_name_that_is_taken_gets_a_number(deploying, deployer):
    specs = [deploying.spec("sleep", "60", name="same") for _ in range(3)]
    runs = [deploying.start(deployer, spec) for spec in specs]
    assert [run.handle["name"] for run in runs] == ["same", "same-1", "same-2"]
    for run in runs:
        run.kill()
        deploying.end(run)


def test_a_stop_sends_term_and_kills_what_ignores_it_after_the_grace(deploying, deployer):
    polite = deploying.spec(*sh("trap 'echo bye; exit 4' TERM; echo ready; while true; do sleep 0.1; done"))
    deaf = deploying.spec(*sh("trap '' TERM; echo ready; while true; do sleep 0.1; done"), grace=1.0)
    for spec, expected in ((polite, (4, None, "term")), (deaf, (None, 9, "kill"))):
        run = deploying.start_ready(deployer, spec)
        RunFolder(spec.folder).write_stop(Stop(reason=StopReason.WORKER), "worker@host")
        run.stop()
        end = deploying.end(run)
        assert (end.code, end.signal, end.stopped_by) == expected
        assert end.stop_reason == StopReason.WORKER
    assert deploying.log(polite) == "ready\nbye\n"


def test_a_container_that_somebody_has_paused_is_stopped(deploying, deployer):
    spec = deploying.spec(*sh("sleep 600"))
    run = deploying.start(deployer, spec)
    client = deploying.engine.client()
    client.api.pause(run.handle["id"])
    run.stop()
    # Podman has no process 1 of its own there, and one without a handler ignores TERM
    assert deploying.end(run).signal == (9 if deploying.podman else 15)
    client.close()


def test_a_start_that_comes_too_late_begins_nothing_and_leaves_nothing(deploying, deployer):
    spec = deploying.spec("true", not_after=boot_clock() - 1)
    with pytest.raises(StartFailed, match="too late"):
        deployer.start(spec)
    folder = RunFolder(spec.folder)
    assert folder.exit_record()["late"] is True
    assert deployer.adopt(spec.folder) is None
    assert deploying.containers() == []


@pytest.mark.parametrize(
    ("command", "words"), [(("/etc/passwd",), "permission denied"), (("/nosuch",), "no such file or directory")]
)
def test_a_command_that_cannot_be_started_is_told_and_leaves_nothing(deploying, deployer, command, words):
    spec = deploying.spec(*command, options={"init": False})
    with pytest.raises(StartFailed, match=words):
        deployer.start(spec)
    assert RunFolder(spec.folder).exit_record()["begun"] is False
    assert deploying.containers() == []


def test_a_run_outlives_its_worker_and_the_next_one_has_its_end_and_all_its_output(deploying, deployer):
    spec = deploying.spec(*sh("for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.3; done; exit 7"))
    first = deploying.start(deployer, spec)
    until(lambda: "3\n" in deploying.log(spec), 20, "some output")
    first.close()
    deployer.close()

    second = deploying.deployer()
    run = second.adopt(spec.folder)
    assert run.handle == first.handle
    assert deploying.end(run).code == 7
    assert deploying.log(spec).split() == [str(number) for number in range(1, 11)]
    assert deploying.containers() == []


def test_a_run_that_has_ended_while_no_worker_was_there_is_found_with_its_end(deploying, deployer, client):
    spec = deploying.spec(*sh("trap 'echo late; exit 5' USR1; echo ready; while true; do sleep 0.1; done"))
    run = deploying.start_ready(deployer, spec)
    run.close()
    deployer.close()
    client.api.kill(run.handle["id"], "SIGUSR1")
    until(lambda: deploying.containers(spec)[0]["State"] == "exited", 20, "its end")
    assert RunFolder(spec.folder).exit() is None

    adopted = deploying.deployer().adopt(spec.folder)
    assert deploying.end(adopted).code == 5
    assert deploying.log(spec) == "ready\nlate\n"
    assert deploying.containers() == []


class Raised(Exception):
    """A fault that nobody has thought of."""


class FaultAt:
    """Failpoints of which one raises; what a worker that is killed there would not do any more, it does not do."""

    def __init__(self, name):
        self.name = name

    def hit(self, name):
        if name == self.name:
            raise Raised


@pytest.mark.parametrize("step", ["container.after_create", "container.after_start_file"])
def test_what_was_created_and_not_started_is_never_started_by_the_next_worker(deploying, step, monkeypatch):
    spec = deploying.spec(*sh("echo began"))
    killed = deploying.deployer(failpoints=FaultAt(step))
    monkeypatch.setattr(killed, "_discard", lambda *_: None)
    with pytest.raises(Raised):
        killed.start(spec)
    assert [row["State"] for row in deploying.containers(spec)] == ["created"]

    assert deploying.deployer().adopt(spec.folder) is None
    assert deploying.containers(spec) == []
    assert deploying.log(spec) == ""


def test_a_fault_between_create_and_start_leaves_no_container(deploying):
    spec = deploying.spec(*sh("echo began"))
    with pytest.raises(Raised):
        deploying.deployer(failpoints=FaultAt("container.after_create")).start(spec)
    assert deploying.containers(spec) == []
    assert RunFolder(spec.folder).start() is None


def test_a_run_that_a_deployer_has_started_and_adopts_is_watched_once(deploying, deployer):
    spec = deploying.spec(*sh("sleep 1; exit 7"))
    started = deploying.start(deployer, spec)
    assert deployer.adopt(spec.folder) is started
    assert deploying.end(started).code == 7


def test_what_was_started_and_not_noted_is_adopted(deploying):
    spec = deploying.spec(*sh("sleep 1; exit 6"))
    with pytest.raises(Raised):
        deploying.deployer(failpoints=FaultAt("container.after_start")).start(spec)
    assert RunFolder(spec.folder).started() is None

    assert deploying.end(deploying.deployer().adopt(spec.folder)).code == 6
    assert deploying.containers() == []


def test_a_container_that_somebody_removes_has_an_unknown_end(deploying, deployer):
    spec = deploying.spec("sleep", "600")
    run = deploying.start(deployer, spec)
    client = deploying.engine.client()
    client.api.remove_container(run.handle["id"], force=True)
    end = deploying.end(run)
    client.close()
    # the engine tells of its death before it is gone, or only of that
    assert end.unknown or end.code == 137
    assert deploying.containers() == []


def test_output_is_whole_in_each_of_its_two_streams(deploying, deployer):
    # what Podman lets follow had 60% to 85% of so many lines missing, in each of 15 runs
    end, log = deploying.run(*sh("i=0; while [ $i -lt 20000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"))
    assert end.code == 0
    for stream in "oe":
        lines = [line for line in log.split() if line[0] == stream]
        assert len(lines) == 20000
        assert [line for number, line in enumerate(lines) if line != f"{stream}{number}"][:3] == []


def test_an_image_that_is_not_here_and_in_no_registry_fails_the_run_with_the_engines_words(deploying, deployer):
    spec = deploying.spec("true", image="127.0.0.1:9/nosuch:1")
    with pytest.raises(StartFailed, match="connection refused"):
        deployer.prepare(spec, lambda: True)


def test_many_runs_at_once(deploying, deployer):
    specs = [deploying.spec(*sh(f"exit {number}")) for number in range(20)]
    ends = {}

    def one(number):
        ends[number] = deploying.end(deploying.start(deployer, specs[number]), 120).code

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == {number: number for number in range(20)}
    assert deploying.containers() == []
