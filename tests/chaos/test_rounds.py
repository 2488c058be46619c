"""Rounds: a worker stopped or killed around the arrival of a message, over and over; nothing lost, nothing doubled."""

import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any, Self

import pytest
import redis

from flowfleet.broker import queue_key
from flowfleet.flow_run import Route
from tests import folders, processes
from tests.waiting import SCALE, until
from tests.world import World


class Arrivals:
    """Reads MONITOR in a thread; `wait_claim` and `wait_message` return as soon as the server has executed it."""

    def __init__(self, socket: str) -> None:
        # while parts are started on a busy machine, a server may be silent for longer than the client's own time-out
        self._client = redis.Redis(unix_socket_path=socket, decode_responses=True, socket_timeout=None)
        self._lines: list[tuple[str, str]] = []
        self._news = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._monitor: Any = self._client.monitor()
        self._monitor.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        # the blocked read ends with its connection
        self._monitor.connection.disconnect()
        self._thread.join(5)
        self._client.close()

    def _read(self) -> None:
        while not self._over:
            try:
                text = self._monitor.next_command()["command"]
            except (OSError, ValueError, redis.RedisError, AttributeError):
                return
            with self._news:
                self._lines.append((text.partition(" ")[0].upper(), text))
                self._news.notify_all()

    def wait_claim(self, run_id: str, seconds: float) -> None:
        """The first script about this run: the claim, before the API is asked."""
        self._wait(lambda verb, text: verb in ("EVALSHA", "EVAL") and run_id in text, seconds, f"the claim of {run_id}")

    def wait_message(self, run_id: str, key: str, seconds: float) -> None:
        """The message of the run is in its queue."""
        self._wait(lambda verb, text: verb == "LPUSH" and key in text, seconds, f"the message of {run_id}")

    def messages(self, fleet: str) -> Counter[str]:
        """How often each message of the fleet was put into a queue, by its id."""
        with self._news:
            sent = [text for verb, text in self._lines if verb == "LPUSH" and fleet in text]
        return Counter(found for text in sent for found in re.findall(r'"id": "(.+?)"', text))

    def forget(self) -> None:
        """Start the next round with an empty memory."""
        with self._news:
            self._lines.clear()

    def _wait(self, matches: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for verb, text in self._lines[seen:]:
                    if matches(verb, text):
                        return
                seen = len(self._lines)
                left = deadline - time.monotonic()
                assert self._thread.is_alive(), f"the server's command stream ended before {what}"
                assert left > 0, f"waited {seconds:.0f} s for {what}"
                self._news.wait(left)


#: signals come between 20 ms before the message and 12 ms after it
EARLIEST, LATEST = -0.020, 0.012


class Rounds:
    """One long run in flight over all rounds, and one new run around each signal."""

    def __init__(self, world: World, valkey, arrivals: Arrivals) -> None:
        self.world = world
        self.arrivals = arrivals
        self.random = random.Random(4711)
        self.poller = world.start_poller()
        # a claim whose message was lost holds its slot until it is handed back, and rounds must not wait for that
        self.worker = self.start()
        # it says nothing of its end to the API: its code can only come from the worker that is there at the end
        self.long, pid = world.held(7)
        self.pid = str(pid)
        self.deployment = world.deploy_tiny()
        (queue,) = world.status()["queues"]
        self.key = queue_key(world.fleet, Route.parse(queue["route"]))
        self.runs: list[str] = []
        self.exits: list[float] = []
        self.codes: set[int] = set()

    def start(self):
        return self.world.start_worker(slots=110)

    def round(self, number: signal.Signals) -> None:
        """A run is created, the worker gets the signal around its message, ends, and the next one is started."""
        self.arrivals.forget()
        offset = self.random.uniform(EARLIEST, LATEST)
        run = self.world.create_run(self.deployment)
        self.runs.append(run)
        poke = threading.Thread(target=self.poller.ask, args=("/api/poke",))
        poke.start()
        if offset < 0:
            self.arrivals.wait_claim(run, 30 * SCALE)
            pause(-EARLIEST + offset)
        else:
            self.arrivals.wait_message(run, self.key, 30 * SCALE)
            pause(offset)
        begun = time.monotonic()
        self.worker.signal(number)
        self.codes.add(self.worker.wait(60))
        self.exits.append(time.monotonic() - begun)
        poke.join()
        assert processes.alive(int(self.pid)), "the long run has ended with its worker"
        self.worker = self.start()

    def settle(self) -> None:
        """All that was created comes to its end, having begun once."""
        self.world.all_once(self.runs, 180)
        self.world.release()
        assert "code 7" in self.world.wait_state(self.long, "Crashed")["message"]
        assert [(note[0], note[1]) for note in self.world.notes(self.long)] == [("ran", self.pid), ("done", self.pid)]
        self.world.wait_empty()


def pause(seconds: float) -> None:
    """A part of the stimulus, not a wait for anything: the moment of the signal inside the round."""
    time.sleep(max(0.0, seconds))


@pytest.fixture
def arrivals(valkey):
    with Arrivals(str(valkey.socket)) as seen:
        yield seen


@pytest.fixture
def rounds(lawless, valkey, arrivals):
    return Rounds(lawless, valkey, arrivals)


def numbers(ci: int, full: int):
    return [
        pytest.param(ci, id=str(ci), marks=pytest.mark.slow),
        pytest.param(full, id=str(full), marks=pytest.mark.stress),
    ]


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", numbers(50, 100))
def test_sigterm_at_message_arrival(rounds, number):
    for _ in range(number):
        rounds.round(signal.SIGTERM)
    rounds.settle()

    assert rounds.codes == {0}
    # a machine that stalls for seconds meets one or two of them; one that hangs has a minute, and fails there
    median, longest = statistics.median(rounds.exits), sorted(rounds.exits)[-3]
    print(f"exit after SIGTERM: median {median:.2f} s, longest {longest:.2f} s")
    if median > 0.5 or longest > 5 * SCALE:
        # the machine may be slow: then a bare worker of Celery's is the measure, in the same run
        bare = statistics.median(bare_celery(rounds.world.redis_url) for _ in range(5))
        print(f"exit of a bare Celery worker: median {bare:.2f} s")
        assert median <= max(0.5, 1.5 * bare)
        assert longest <= max(5.0 * SCALE, 1.5 * bare)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", numbers(20, 100))
def test_sigkill_at_message_arrival(rounds, number):
    for _ in range(number):
        rounds.round(signal.SIGKILL)
    rounds.settle()
    assert rounds.codes == {-9}


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", numbers(10, 100))
def test_the_last_poller_stopped_around_a_claim_leaves_no_run_behind(lawless, arrivals, number):
    chance = random.Random(4711)
    lawless.start_worker(slots=4)
    poller, deployment, ends = lawless.start_poller(), lawless.deploy_tiny(), Counter[str]()
    exits: list[float] = []
    for _ in range(number):
        arrivals.forget()
        runs = [lawless.create_run(deployment) for _ in range(2)]
        poke = threading.Thread(target=poller.ask, args=("/api/poke",))
        poke.start()
        arrivals.wait_claim(runs[0], 30 * SCALE)
        pause(chance.uniform(0.0, 0.015))
        begun = time.monotonic()
        assert poller.stop() == 0
        exits.append(time.monotonic() - begun)
        poke.join()
        # nobody is left but the worker: what it has not taken by now is back at the API, whatever moment it was
        until(lambda: lawless.seen()["runs"] == [], 30, "the worker to be done with what it has", pause=0.1)
        kinds = [lawless.api.state(run)["type"] for run in runs]
        assert set(kinds) <= {"SCHEDULED", "COMPLETED"}, kinds
        ends.update(kinds)
        for run in runs:
            if lawless.api.state(run)["type"] == "SCHEDULED":
                assert lawless.words(run) == []
        poller = lawless.start_poller()
        lawless.all_once(runs)
    print(f"runs at the end of their poller: {dict(ends)}")
    # a machine that stalls for seconds meets one of them; one that hangs has half a minute, and fails there
    assert sorted(exits)[-2] < 5 * SCALE


def bare_celery(redis_url: str) -> float:
    """How long an idle worker of Celery's own takes to end here and now."""
    code = (
        "import celery,sys; app=celery.Celery('bare',broker=sys.argv[1]);"
        "app.conf.update(broker_connection_retry_on_startup=True, task_default_queue='bare');"
        "app.worker_main(['worker','--pool','threads','-c','1','-l','INFO'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, redis_url], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "ready" in line:
            break
    begun = time.monotonic()
    process.terminate()
    process.communicate(timeout=60 * SCALE)
    return time.monotonic() - begun


CLAIM_STEPS = ("claim.after_ledger", "claim.after_api", "claim.after_accept", "claim.after_publish")


@pytest.mark.slow
def test_a_poller_killed_at_any_step_of_a_claim_loses_and_doubles_nothing(make_lawless, arrivals):
    worlds = {step: make_lawless() for step in CLAIM_STEPS}
    runs: dict[str, list[str]] = {}
    for step, world in worlds.items():
        poller = world.start_poller("agent-a", env={"FLOWFLEET_FAILPOINT": f"{step}:kill"})
        world.start_worker(slots=4)
        deployment = world.deploy_tiny()
        runs[step] = [world.create_run(deployment) for _ in range(3)]
        poller.ask("/api/poke")
        assert poller.wait(60) == -9, step
        world.start_poller("agent-b", wait=False)
    for step, world in worlds.items():
        world.all_once(runs[step], 180)
        world.wait_empty()
        assert set(arrivals.messages(world.fleet).values()) == {1}, step


WORKER_STEPS = (
    "take.on_arrival",
    "take.after_folder",
    "take.after_move",
    "start.after_move",
    "start.before_fork",
    "start.after_fork",
    "start.after_running",
    "end.before_record",
    "end.after_record",
    "end.before_report",
    "end.after_report",
)


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("kill", marks=pytest.mark.slow),
        # a frozen worker that is killed later differs by its open connections only
        pytest.param("freeze", marks=pytest.mark.stress),
    ],
)
def test_a_worker_that_dies_at_any_step_of_a_run_loses_and_doubles_nothing(make_lawless, action):
    world = make_lawless()
    world.start_poller()
    runs: dict[str, str] = {}
    deployment = None
    for step in WORKER_STEPS:
        # it may reach the step already when it adopts what the one before has left
        worker = world.start_worker(env={"FLOWFLEET_FAILPOINT": f"{step}:{action}"}, wait=False)
        deployment = deployment or world.deploy_tiny(0, 3)
        runs[step] = world.create_run(deployment)
        if action == "freeze":
            until(lambda worker=worker: processes.stopped(worker.pid), 90, f"the worker to freeze at {step}")
            worker.kill()
        else:
            assert worker.wait(90) == -9, step
    world.start_worker()
    for step, run in runs.items():
        assert "code 3" in world.wait_state(run, "Crashed", seconds=200)["message"], step
        assert world.words(run) == ["ran", "done"], step
    world.wait_empty()
    world.wait_told()


def test_a_report_is_on_disk_before_it_is_sent(make_lawless):
    world = make_lawless()
    world.start_poller()
    # no run was here before, whose report an earlier worker might have sent and not taken off the disk
    worker = world.start_worker(env={"FLOWFLEET_FAILPOINT": "end.before_report:kill"}, wait=False)
    run = world.create_run(world.deploy_tiny(0, 3))
    assert worker.wait(90) == -9
    (report,) = folders.found(world.folder, "state/**/outbox/*.json")
    assert run in report.name
    assert world.api.state(run)["type"] == "RUNNING"


def test_a_worker_that_thaws_after_its_successor_has_started_starts_nothing(make_lawless):
    world = make_lawless()
    world.start_poller()
    first = world.start_worker(env={"FLOWFLEET_FAILPOINT": "start.after_move:freeze"})
    run = world.create_run(world.deploy_tiny())
    until(lambda: processes.stopped(first.pid), 60, "the worker to freeze")
    # the same host and name, so the folder is still locked: it must wait or refuse, and never run it twice
    second = world.start_worker(wait=False)
    until(lambda: second.process.poll() is not None or "lock" in second.text().lower(), 60, "the second to say so")
    first.signal(signal.SIGCONT)
    world.all_once([run], 200)
