"""A worker in this process, on a real Valkey and an API without any law: one claim from its message to its release."""

import io
import os
import time
import uuid

import pytest

from flowfleet import logs
from flowfleet.api.connect import connect
from tests.waiting import until
from tests.worker_world import command
from workers.runs.adoption import held_from_intent
from workers.state.state_folder import StateFolder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def counted(world, metric):
    """The worker's own number, from its page of metrics; 0 when it is not there yet."""
    lines = world.service.health.metrics_text().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"flowfleet_{metric} ")), 0.0)


def test_a_run_goes_from_its_message_to_its_release(world, service):
    message = world.submit(f"{world.marking()}\n{world.holding()}")
    claim = world.wait_state(message, "running")
    assert claim.worker == world.worker
    assert claim.handle["kind"] == "process"
    names = ("lawless", "lawless")
    assert (claim.flow, claim.deployment) == names, "told by the worker, which has asked for the job"
    assert abs(claim.began_at - time.time()) < 60
    held = held_from_intent(world.run_folder(message))
    assert (held.flow, held.deployment) == names, "as the next worker of the host finds it"
    world.finish(message.run_id)
    world.release()

    record = world.wait_gone(message)
    assert (record["reason"], record["flow"], record["deployment"]) == ("completed", *names)
    assert world.marks() == "ran;"
    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Launching", "Completed"]
    # what follows a start goes its own way, and may come after what follows the end
    mark = f"flowfleet:{world.ledger.fleet}:"
    until(lambda: str(world.api.runs[message.run_id]["infrastructure_pid"]).startswith(mark), 10, "the run's mark")
    said = "Submitted for execution by worker@here: PID"
    until(lambda: any(said in line["message"] for line in list(world.api.logs)), 10, "the line on its log page")
    world.wait_free()
    until(lambda: counted(world, 'runs_finished_total{outcome="completed"}') == 1, 5, "its outcome to be counted")
    until(lambda: counted(world, "run_duration_seconds_count") == 1, 5, "its duration to be counted")
    page = world.service.health.metrics_text().decode()
    for name in ("queue_wait", "start", "start_lateness", "run_duration"):
        assert f"flowfleet_{name}_seconds_count 1.0" in page
    assert message.run_id not in page


@pytest.mark.parametrize(
    ("started", "words"),
    [
        pytest.param(command("print('last words'); exit(3)"), ["exited with code 3", "last words"], id="a code"),
        pytest.param(command("pass"), ["exited 0 without reporting an end"], id="no end, looked at twice"),
        pytest.param("/no/such/program", ["/no/such/program"], id="no start"),
    ],
)
def test_what_ends_without_a_word_is_told_as_a_crash_with_its_sentence(world, service, started, words):
    message = world.submit_command(started)

    assert world.wait_gone(message)["reason"] == "crashed"
    assert world.api.state(message.run_id)["type"] == "CRASHED"
    assert [each for each in words if each not in world.told(message)] == []
    assert list(world.state.outbox) == []


def test_a_run_that_waits_for_its_retry_is_released_without_a_word(world, service):
    message = world.begin()
    world.api.write(message.run_id, "SCHEDULED", "AwaitingRetry")
    world.release()

    assert world.wait_gone(message)["reason"] == "awaitingretry"
    assert world.api.state(message.run_id)["name"] == "AwaitingRetry"


def test_the_pools_template_reads_the_environment_of_the_worker_but_nothing_of_ours_and_a_deployment_reads_none(world):
    environ = {"HOME": "/h", "SITE": "north", "FLOWFLEET_REDIS": "redis://:secret@there", "FLOWFLEET_PAGE_TOKEN": "t"}
    configuration = world.api.pools["flowfleet"]["base_job_template"]["job_configuration"]
    configuration["env"] = {"SITE": "{{ $SITE }}", "OURS": "-{{ $FLOWFLEET_REDIS }}-"}
    run = world.create("true", env={"MINE": "{{ $SITE }} {{ $FLOWFLEET_REDIS }}"})

    job = connect(world.settings, environ).jobs.job(run.run_id)
    assert job.env == {"SITE": "north", "OURS": "--", "MINE": "{{ $SITE }} {{ $FLOWFLEET_REDIS }}"}


def test_a_secret_that_stands_in_a_command_or_folder_is_told_to_nobody(world, service):
    """A block of the server may be where the name comes from, and the sentence goes to the API and to Redis."""
    logs.configure("INFO", stream=io.StringIO())
    logs.keep_secret("hush-4711")
    for message in (world.submit_command("hush-4711 run"), world.submit(working_dir="/no/hush-4711")):
        record = world.wait_gone(message)
        assert "could not be started" in world.told(message)
        assert "hush-4711" not in f"{world.told(message)} {record}"


def test_a_run_that_names_a_variable_that_is_not_there_begins_and_its_log_page_says_so(world, service):
    message = world.submit(world.marking(), env={"PLACE": "{{ prefect.variables.no_such }}"})
    world.wait_gone(message)
    assert world.marks() == "ran;"
    said = "There is no Prefect variable 'no_such'; job variable env, PLACE has an empty text instead."
    until(lambda: any(said == line["message"] for line in list(world.api.logs)), 10, "the line on its log page")


def test_no_more_messages_are_fetched_than_there_are_slots(world, service):
    first = [world.begin() for _ in range(2)]
    late = world.create(command(world.marking()))
    (outcome,) = world.ledger.claim(late)
    assert not outcome.moved, "the ledger counts the slots"
    until(lambda: world.service.slots.in_use() == 2, 5, "two slots in use")
    assert not world.service.slots.has_room()
    world.release()
    for message in first:
        world.finish(message.run_id)
        world.wait_gone(message)
    until(world.service.slots.has_room, 5, "room again")
    message = world.claim(late)
    world.publisher.publish(message)
    world.wait_gone(message)

    assert world.marks() == "ran;"


def test_a_run_that_was_cancelled_before_its_start_is_never_started(world, service):
    message = world.claim(world.create(command(world.marking())))
    world.api.write(message.run_id, "CANCELLING")
    world.publisher.publish(message)
    world.wait_gone(message)

    assert world.marks() == ""
    assert world.api.state(message.run_id)["type"] == "CANCELLED"
    assert counted(world, 'runs_handed_back_total{reason="not started"}') == 1


def test_a_run_that_somebody_else_has_claimed_is_dropped_and_not_started(world, service):
    message = world.claim(world.create(command(world.marking())))
    world.api.write(message.run_id, "PENDING", "Submitted", transition_id="00000000-0000-4000-8000-00000000ffff")
    world.publisher.publish(message)
    world.wait_gone(message)

    assert world.marks() == ""


def test_a_worker_prunes_old_outputs_as_it_starts_its_own_and_those_of_a_name_that_is_gone(world):
    root, machine = world.settings.state_dir, "m" * 32
    then = time.time() - 8 * 86400
    folders = []
    for name in (world.settings.name, "gone"):
        state = StateFolder.open(root, machine, name)
        folders += [state.runs.create(str(uuid.uuid4()), str(uuid.uuid4()), {}) for _ in range(2)]
        folders[-1].settle()
        os.utime(folders[-1].path / "settled", (then, then))
        folders[-2].settle()
        state.close()
    world.start()

    until(lambda: [folder.path.exists() for folder in folders] == [True, False] * 2, 5, "the old ones to be removed")
