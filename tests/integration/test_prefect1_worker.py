"""A worker in this process on a real Valkey and a local Prefect 1 API: its starts, and what it tells of the ends."""

import os
import signal
import socket
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from tests import processes
from tests.prefect1_api import Faults
from tests.waiting import SCALE, until
from tests.worker_world import WorkerWorld1
from workers.interpreter import Interpreter
from workers.reporting import endings

HELD = "state('Running'); print('held', flush=True); time.sleep(300)"


@pytest.fixture(params=[Faults.like_server, Faults], ids=["server", "strict"])
def world(request, valkey, tmp_path):
    with closing(WorkerWorld1(valkey.tcp_url, tmp_path, faults=request.param())) as made:
        yield made


@pytest.fixture
def one(valkey, tmp_path):
    with closing(WorkerWorld1(valkey.tcp_url, tmp_path)) as made:
        yield made


def log(world, message):
    """What the run has printed."""
    return world.run_folder(message).log.read_text()


def ended_at(world, message):
    """When its process did."""
    return world.run_folder(message).exit_record()["ended_at"]


def failed(world, message):
    """When the run was, and what its state says."""
    stands = world.api.run(message.run_id)
    assert stands["state"] == "Failed"
    return datetime.fromisoformat(stands["state_timestamp"]).timestamp(), stands["state_message"]


def started(world, message):
    """The pid of the engine, once it says that it runs."""
    claim = world.wait_state(message, "running")
    until(lambda: world.api.state(message.run_id) == "Running", 15, "the engine to say that it runs")
    return int(claim.handle["command_pid"])


# -- starts


def test_a_run_goes_from_its_message_to_its_release_with_the_words_of_the_reference(world, service):
    message = world.submit("state('Running'); state('Success'); print(' '.join(sys.argv))")

    assert world.wait_gone(message)["reason"] == "completed"
    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Running", "Success"]
    assert log(world, message).split()[-4:] == ["-m", "prefect", "execute", "flow-run"]
    pid = world.run_folder(message).started()["command_pid"]
    until(lambda: world.lines(message.run_id), 5, "the line on its log page")
    assert world.lines(message.run_id) == [("INFO", f"Submitted for execution: PID: {pid}")]


@pytest.mark.parametrize(
    ("prefect", "word"), [("0.12.6", "cloud-flow"), ("0.13.19", "flow-run"), ("1.4.1", "flow-run")]
)
def test_the_interpreters_own_prefect_says_how_the_engine_is_called(one, prefect, word):
    """1.4.1 has no `cloud-flow` any more, also for flows that were registered long ago."""
    one.interpreter = Interpreter(path=one.interpreter.path, prefect=prefect)
    one.flow = one.api.add_flow("old", core_version="0.12.6")
    message = one.run("state('Running'); state('Success'); print(' '.join(sys.argv))")

    assert log(one, message).split()[-4:] == ["-m", "prefect", "execute", word]


def test_a_run_starts_in_the_folder_of_the_worker_with_the_table_of_the_reference(one, tmp_path):
    code = "print(os.getcwd(), os.environ['PYTHONPATH'].split(os.pathsep)[0], os.environ['MINE']); state('Success')"
    runs = [one.run(code, env={"MINE": "1"}), one.run(code, env={"MINE": "2"}, working_dir=str(tmp_path))]

    assert [log(one, each).split() for each in runs] == [
        [str(Path.cwd()), str(Path.cwd()), "1"],
        [str(tmp_path), str(tmp_path), "2"],
    ]


@pytest.mark.parametrize("faults", [Faults, Faults.like_server])
def test_without_cloud_logs_not_a_line_of_ours_is_written_and_the_run_gets_the_switch(valkey, tmp_path, faults):
    with closing(WorkerWorld1(valkey.tcp_url, tmp_path, faults=faults(), cloud_logs=False)) as world:
        name = "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS"
        good = world.run(f"state('Success'); print(os.environ['{name}'])", env={name: "true"})
        bad = world.run("sys.exit(3)")
        world.stop()

        assert world.api.state(bad.run_id) == "Failed"
        assert log(world, good) == "false\n"
        assert world.api.counted("write_run_logs") == 0


@pytest.mark.parametrize("kind", ["Cancelled", "Failed", "Success", "Submitted"])
def test_a_run_that_ended_or_went_to_somebody_else_while_it_waited_is_never_started(world, service, kind):
    message = world.claim(world.create(world.marking()))
    if kind == "Cancelled":
        assert world.api.cancel(message.run_id) == "Cancelled"
    else:
        world.api.write(message.run_id, kind, "Submitted for execution")
    world.publisher.publish(message)
    until(lambda: world.ledger.claims.get(message.run_id) is None, 15, "the claim to be dropped")

    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", kind]
    assert world.marks() == ""


def test_a_working_dir_that_this_host_does_not_have_is_a_failed_run_that_names_both(world):
    message = world.run("state('Success')", working_dir="/no/such/folder")

    _, says = failed(world, message)
    assert f"its working folder /no/such/folder does not exist on {socket.gethostname()}" in says
    until(lambda: world.lines(message.run_id), 5, "the line on its log page")
    ((level, text),) = world.lines(message.run_id)
    assert level == "ERROR"
    assert "/no/such/folder" in text


@pytest.mark.parametrize(
    ("config", "storage", "says"),
    [
        ({"type": "KubernetesRun"}, None, "run_config of type KubernetesRun"),
        ({"type": "DockerRun"}, None, "run_config of type DockerRun"),
        ({}, {"type": "Docker", "image_name": "i"}, "in Docker storage"),
    ],
)
def test_what_a_worker_cannot_start_is_failed_by_its_name(one, config, storage, says):
    if storage:
        one.flow = one.api.add_flow("other", storage=storage)

    assert says in failed(one, one.run("state('Success')", **config))[1]


# -- ends


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("state('Running'); print('last words', flush=True); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("state('Running'); print('last words', flush=True); sys.exit(3)", "exited with code 3"),
        ("print('last words', flush=True); sys.exit(1)", "exited with code 1"),
    ],
)
def test_an_engine_that_ends_badly_is_failed_within_5_seconds_with_its_sentence(world, monkeypatch, code, says):
    monkeypatch.setattr(endings, "SECOND_LOOK_SECONDS", 600.0)
    message = world.run(code)

    at, text = failed(world, message)
    assert says in text
    assert "last words" in text
    assert at - ended_at(world, message) < 5 * SCALE


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)"])
@pytest.mark.parametrize("kind", ["Success", "Failed", "Cancelled"])
def test_an_engine_that_is_over_after_its_last_state_leaves_that_as_it_is(world, kind, end):
    message = world.run(f"state('Running'); state({kind!r}, message='by itself'); {end}")

    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Running", kind]
    assert world.api.run(message.run_id)["state_message"] == "by itself"


def test_an_engine_that_says_why_it_failed_and_exits_1_is_not_spoken_over(world, service):
    message = world.submit("state('Failed', message='Failed to load and execute flow run: x'); sys.exit(1)")

    assert world.wait_gone(message)["reason"] == "failed"
    assert world.api.run(message.run_id)["state_message"].startswith("Failed to load")


def with_task(world, code):
    """A run whose engine executes this code, in which TASK is the id of its task."""
    run = world.create("")
    (task,) = world.api.task_runs(run.run_id)
    config = world.api.run(run.run_id)["run_config"]
    config["env"]["CODE"] = f"TASK = {task['id']!r}; {code}"
    with world.api.lock:
        world.api.store.update("flow_run", run.run_id, run_config=config)
    return run


def test_a_run_with_a_task_to_retry_later_is_released_and_stays_running(world, service):
    run = with_task(world, "state('Running'); task(TASK, 'Retrying', start_time='2100-01-01T00:00:00+00:00')")
    message = world.claim(run)
    world.publisher.publish(message)
    world.wait_gone(message)

    assert world.api.history(run.run_id) == ["Scheduled", "Submitted", "Running"]


def test_an_exit_0_that_leaves_the_run_running_is_looked_at_again_and_failed(world):
    message = world.run("state('Running')")

    at, text = failed(world, message)
    assert "exited 0 without reporting an end" in text
    assert at - ended_at(world, message) > 4.5


PAST = "2020-01-01T00:00:00+00:00"


def late_retry(world, code):
    """A run that was left Running with a task to retry, claimed again now that its time has come."""
    run = with_task(world, code)
    world.api.write(run.run_id, "Running")
    world.api.write_task(run.run_id, "Retrying", start_time=PAST)
    message = world.claim(world.listed(run.run_id))
    assert [each["state"] for each in world.api.task_runs(run.run_id)] == ["Submitted"]
    world.publisher.publish(message)
    return message


@pytest.mark.parametrize(
    ("code", "end"),
    [
        pytest.param("task(TASK, 'Running'); task(TASK, 'Success'); state('Success')", "Success", id="it succeeds"),
        pytest.param("os.kill(os.getpid(), 9)", "Failed", id="its engine dies at once"),
    ],
)
def test_a_late_retry_is_started_though_its_run_is_running_and_comes_to_its_end(world, service, code, end):
    message = late_retry(world, code)
    world.wait_gone(message)

    assert world.api.history(message.run_id) == ["Scheduled", "Running", end]


def test_a_worker_adopts_a_run_of_the_one_before_and_tells_its_true_end(world, service):
    message = world.submit(HELD)
    pid = started(world, message)
    world.stop()
    os.kill(pid, signal.SIGKILL)
    world.start()
    world.wait_gone(message)

    assert "killed by SIGKILL" in failed(world, message)[1]


def test_a_process_that_outlives_the_end_of_its_run_is_killed_by_linger_while_that_end_stands(valkey, tmp_path):
    with closing(WorkerWorld1(valkey.tcp_url, tmp_path, linger=1.0)) as world:
        world.start()
        over = world.submit(f"state('Running'); state('Success'); {HELD.partition(';')[2]}")
        restarted = world.submit(HELD)
        started(world, restarted)
        with world.api.lock:  # the end that the worker would kill it for stands for a moment only
            world.api.write(restarted.run_id, "Failed")
            world.api.write(restarted.run_id, "Running")
        world.wait_gone(over)
        assert (world.api.state(over.run_id), world.api.state(restarted.run_id)) == ("Success", "Running")
        assert world.run_folder(over).exit_record()["stop_reason"] == "linger"
        assert world.ledger.claims.get(restarted.run_id).state == "running"


def test_a_stop_gives_a_run_the_time_that_its_own_variable_says_and_its_state_tells_of_the_stop(one):
    one.run_grace = 600.0
    one.start(mode="cancel")
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {HELD}"
    message = one.submit(deaf, env={"FLOWFLEET_STOP_GRACE": "0.3"})
    started(one, message)
    until(lambda: log(one, message) == "held\n", 10, "the engine to take no TERM")
    assert one.stop() == 0
    assert f"was stopped with its worker {one.worker} (SIGKILL)" in failed(one, message)[1]


def test_a_last_state_that_comes_late_is_waited_for(world, monkeypatch):
    monkeypatch.setattr(endings, "SECOND_LOOK_SECONDS", 600.0)
    service = world.start()
    message = world.submit("state('Running')")
    until(lambda: any(before for _, before in list(service.endings._looks.values())), 30, "its first look")
    assert world.api.state(message.run_id) == "Running"
    world.api.write(message.run_id, "Success")
    # the time of the second
    looks = service.endings._looks
    looks.update({key: (0.0, before) for key, (_, before) in looks.items()})
    service.to_api.post(service.endings._look_at_all)
    world.wait_gone(message)

    assert world.api.state(message.run_id) == "Success"


def test_an_engine_that_dies_while_its_run_is_cancelled_has_it_cancelled(world, service):
    message = world.submit(HELD)
    pid = started(world, message)
    assert world.api.cancel(message.run_id) == "Cancelling"
    os.kill(pid, signal.SIGTERM)
    world.wait_gone(message)

    assert world.api.history(message.run_id)[-2:] == ["Cancelling", "Cancelled"]
    assert not processes.alive(pid)


HELPER = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import signal, time\\nsignal.signal(15, signal.SIG_IGN)\\n"
    "print('beats', flush=True)\\ntime.sleep(300)"], stdout=subprocess.PIPE, start_new_session={session})
child.stdout.readline()
open({path!r}, "w").write(str(child.pid))
state("Running")
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("session", [False, True])
def test_a_heartbeat_helper_that_outlives_its_engine_is_gone_before_the_end_is_told(one, tmp_path, session):
    """`prefect heartbeat flow-run` kept a killed run alive for the server for as long as one watched."""
    one.start()
    report, alive_then = one.client.ends.report, []

    def watched(*given, **named):
        alive_then.append(processes.alive(int((tmp_path / "pid").read_text())))
        return report(*given, **named)

    one.client.ends.report = watched
    message = one.run(HELPER.format(path=str(tmp_path / "pid"), session=session))

    failed(one, message)
    assert alive_then == [False]
    assert one.run_folder(message).exit_record()["leftovers"] >= 1
