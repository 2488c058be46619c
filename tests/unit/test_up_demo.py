"""Demo of `up`: what is registered, how runs are read, and how they are shown, on a loopback API of our own."""

import ast
import io
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from flowfleet.api.client import StateType
from flowfleet.api.transport.session import Address, Session
from flowfleet.errors import LedgerUnavailable
from flowfleet.local.child import Part
from flowfleet.local.data_folder import DataFolder
from flowfleet.settings.classes import UpSettings
from flowfleet.settings.layers import resolve
from flowfleet.up import poller_and_workers
from flowfleet.up.command import too_long
from flowfleet.up.demo import EXAMPLES, Demo, DemoRun, flows_folder, session_of
from flowfleet.up.live_table import LiveTable, demo_table
from flowfleet.up.stack import StackSignals, StopRequested

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Api(BaseHTTPRequestHandler):
    """As much of Prefect's API as the demo needs; the pool is there at the second question."""

    def _answer(self, body, code=200):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.server.asked += 1
        self._answer({"id": "p"}, 200 if self.server.asked > 1 else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append((self.path, body))
        if self.path.endswith("/filter"):
            self._answer(self.server.answers[self.path])
        elif self.path.endswith("/create_flow_run"):
            number = sum(path.endswith("/create_flow_run") for path, _ in self.server.posted)
            self._answer({"id": f"run-{number}", "name": f"name-{number}"}, 201)
        else:
            self._answer({"id": f"{self.path.strip('/')}-{body['name']}"}, 201)

    def log_message(self, *args):
        pass


@pytest.fixture
def api():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.asked, server.posted, server.answers = 0, [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Claims:
    """A ledger with one live claim and one that is gone."""

    def __init__(self, away=False):
        self.away = away

    def live(self):
        if self.away:
            raise LedgerUnavailable("gone")
        return [SimpleNamespace(run_id="run-1", worker="worker@a"), SimpleNamespace(run_id="run-3", worker=None)]

    def records(self, limit):
        return [{"run_id": "run-2", "worker": "worker@b"}, {"run_id": "other", "worker": "worker@c"}]


def _demo(api, claims=None):
    session = Session(Address(url=f"http://127.0.0.1:{api.server_port}"), pause=lambda seconds: None)
    demo = Demo(session, "pool x", SimpleNamespace(claims=claims or Claims()))
    demo.begin(pause=lambda seconds: None)
    return demo


def _state(number, kind, **facts):
    return {"id": f"run-{number}", "state_type": kind, "state_name": kind.capitalize(), **facts}


def test_every_example_is_a_flow_file_of_the_wheel_that_needs_only_prefect():
    allowed = {"prefect", "time", "os", "signal"}
    for example in EXAMPLES:
        tree = ast.parse((flows_folder() / f"{example.flow}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        imports = {
            name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
        }
        imports |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

        assert example.flow in functions
        assert imports <= allowed
    assert {example.meant for example in EXAMPLES} == {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED}


def test_each_flow_is_registered_once_and_each_example_gets_a_run(api):
    demo = _demo(api)
    deployments = [body for path, body in api.posted if path == "/deployments/"]
    runs = [(path, body) for path, body in api.posted if path.endswith("/create_flow_run")]

    assert api.asked == 2
    assert len(deployments) == len({example.flow for example in EXAMPLES}) == 5
    assert deployments[0]["entrypoint"] == "longer.py:longer"
    assert deployments[0]["work_pool_name"] == "pool x"
    step = deployments[0]["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
    assert step == {"directory": str(flows_folder())}
    assert [body["parameters"] for _, body in runs] == [dict(example.parameters) for example in EXAMPLES]
    assert [run.run_id for run in demo.runs] == [f"run-{number}" for number in range(1, 8)]


def test_a_look_reads_states_tasks_times_and_workers(api):
    demo = _demo(api)
    start, end = "2026-01-02T03:04:05Z", "2026-01-02T03:04:07.500000+00:00"
    api.answers = {
        "/flow_runs/filter": [
            _state(1, "RUNNING", start_time=start),
            _state(2, "COMPLETED", start_time=start, end_time=end),
        ],
        "/task_runs/filter": [
            {"flow_run_id": "run-1", "state_type": "COMPLETED"},
            {"flow_run_id": "run-1", "state_type": "COMPLETED"},
            {"flow_run_id": "run-1", "state_type": "RUNNING"},
        ],
    }
    first, second, third, *_ = demo.look()

    assert (first.state, first.tasks_done, first.worker, first.over) == ("Running", 2, "worker@a", False)
    assert first.seconds(AT + timedelta(seconds=9)) == 9
    assert (second.over, second.as_meant, second.worker) == (True, True, "worker@b")
    assert second.seconds(AT + timedelta(seconds=99)) == 2.5
    assert (third.state, third.worker, third.seconds(AT)) == ("Scheduled", None, None)


def test_a_look_without_redis_or_api_keeps_what_was_known(api):
    demo = _demo(api)
    api.answers = {"/flow_runs/filter": [_state(1, "RUNNING")], "/task_runs/filter": []}
    demo.look()
    demo._ledger = SimpleNamespace(claims=Claims(away=True))
    assert demo.look()[0].worker == "worker@a"
    api.shutdown()
    api.server_close()

    assert demo.look()[0].state == "Running"


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_tells_state_progress_worker_and_time(api, width):
    demo = _demo(api)
    api.answers = {
        "/flow_runs/filter": [
            _state(1, "RUNNING", start_time="2026-01-02T03:04:05Z"),
            _state(4, "COMPLETED", start_time="2026-01-02T03:04:05Z", end_time="2026-01-02T03:04:06Z"),
            _state(5, "CRASHED"),
        ],
        "/task_runs/filter": [{"flow_run_id": "run-1", "state_type": "COMPLETED"}] * 4,
    }
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(demo_table(demo.look(), AT + timedelta(minutes=2), width))
    text = out.getvalue()

    assert max(map(len, text.splitlines())) <= width
    assert "####.... 4/8" in text
    assert "2m 0s" in text
    assert "Crashed ok" in text
    assert "Completed !" in text  # it was meant to fail
    assert "worker@a" in text


def test_without_a_terminal_each_change_is_one_line(api):
    demo = _demo(api)
    out = io.StringIO()
    with LiveTable(Console(file=out, width=80, no_color=True)) as show:
        show.update(demo.runs)
        show.update(demo.runs)
        api.answers = {"/flow_runs/filter": [_state(1, "RUNNING")], "/task_runs/filter": []}
        show.update(demo.look())
    lines = out.getvalue().splitlines()

    assert lines.count("longer name-1: Running on worker@a") == 1
    assert sum(line.startswith("longer name-1:") for line in lines) == 2


def test_the_parts_get_where_everything_is_by_variables_and_nothing_of_the_users_that_stands_in_the_way(tmp_path):
    folder = DataFolder.open(tmp_path / "data")
    user = {
        "PATH": "/bin",
        "PREFECT_API_KEY": "k",
        "FLOWFLEET_SLOTS": "9",
        "FLOWFLEET_NAME": "mine",
        "FLOWFLEET_REDIS_FILE": "/x",
        "FLOWFLEET_ENV": "A=1",
    }
    settings = resolve(UpSettings, {"api": "http://h/api", "key": "kk", "log-level": "debug"}, {}, {})
    try:
        ours = poller_and_workers.environment(folder, user, settings, own_server=True, own_redis=True)
        theirs = poller_and_workers.environment(folder, user, settings, own_server=False, own_redis=True)
    finally:
        folder.close()

    assert (ours["FLOWFLEET_API"], ours["FLOWFLEET_KEY"], ours["FLOWFLEET_LOG_LEVEL"]) == (
        "http://h/api",
        "kk",
        "DEBUG",
    )
    assert ours["FLOWFLEET_ENV"] == "A=1"
    assert not {"FLOWFLEET_SLOTS", "FLOWFLEET_NAME", "FLOWFLEET_REDIS_FILE", "PREFECT_API_KEY"} & set(ours)
    assert theirs["PREFECT_API_KEY"] == "k"
    assert "FLOWFLEET_PYTHON" not in theirs


def test_secrets_that_were_given_by_file_reach_the_parts_by_file(tmp_path, monkeypatch):
    """Else a replaced key would never be read again."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("key", "kkkk"), ("redis", "redis://:rrrr@box/0"), ("password", "pppp")):
        (tmp_path / name).write_text(text)
    folder = DataFolder.open(tmp_path / "data")

    def parts(environ, *, own_redis=False):
        settings = resolve(UpSettings, {"api": "http://h/api"}, environ, {})
        env = poller_and_workers.environment(folder, environ, settings, own_server=False, own_redis=own_redis)
        return {name[10:]: value for name, value in env.items() if name.startswith("FLOWFLEET_")}

    try:
        whole = parts({"FLOWFLEET_KEY_FILE": "key", "FLOWFLEET_REDIS_FILE": "redis"})
        apart = parts({"FLOWFLEET_REDIS": "redis://me@box/0", "FLOWFLEET_REDIS_PASSWORD_FILE": "password"})
        ours = parts({"FLOWFLEET_REDIS_PASSWORD_FILE": "password"}, own_redis=True)
    finally:
        folder.close()

    assert (whole["KEY_FILE"], whole["REDIS_FILE"]) == (str(tmp_path / "key"), str(tmp_path / "redis"))
    assert not {"KEY", "REDIS"} & set(whole)
    assert (apart["REDIS"], apart["REDIS_PASSWORD_FILE"]) == ("redis://me@box/0", str(tmp_path / "password"))
    assert "REDIS_PASSWORD_FILE" not in ours


def test_a_users_own_api_is_reached_with_the_users_key_and_ours_without(tmp_path):
    environ = {"HOME": str(tmp_path), "PREFECT_API_KEY": "users-key"}
    own = UpSettings(api="http://127.0.0.1:1/api")
    given = resolve(UpSettings, {"api": "http://127.0.0.1:1/api"}, {}, {})

    assert session_of(own, environ, tmp_path).address.authorization is None
    assert session_of(given, environ, tmp_path).address.authorization == "Bearer users-key"


def test_up_serves_each_pool_that_a_list_names_wherever_the_list_stands(tmp_path, monkeypatch):
    """One variable and one config file serve worker and `up` alike, and there pools are a list."""
    by_variable = resolve(UpSettings, {}, {"FLOWFLEET_POOLS": "cpu,gpu"}, {})
    by_file = resolve(UpSettings, {}, {}, {"pool": ["cpu"]})
    assert (by_variable.pools, by_variable.pool, by_file.pools) == (("cpu", "gpu"), "cpu", ("cpu",))
    folder = DataFolder.open(tmp_path / "data")
    monkeypatch.setattr(Part, "start", lambda name, folder, argv, **how: argv)
    try:
        argv = poller_and_workers.start_worker(
            folder, {}, "http://h:1", tmp_path, name="worker", slots=2, pools=by_variable.pools
        )
    finally:
        folder.close()

    assert " --pool cpu --pool gpu " in " ".join(argv)


def test_a_demo_that_does_not_end_names_its_late_runs_and_where_to_look():
    late = DemoRun(run_id="1", name="calm-otter", example=EXAMPLES[0], state="Running", kind=StateType.RUNNING)
    done = DemoRun(run_id="2", name="other", example=EXAMPLES[0], state="Completed", kind=StateType.COMPLETED)
    error = too_long((late, done), Path("/data/logs"))

    assert error.exit_code == 5
    assert "longer calm-otter (Running). The logs in /data/logs" in str(error)
    assert "other" not in str(error)


def test_workers_are_named_by_their_number():
    assert poller_and_workers.worker_names(1) == ["worker"]
    assert poller_and_workers.worker_names(3) == ["worker-1", "worker-2", "worker-3"]


def test_a_pause_ends_when_the_end_is_asked_for():
    signals = StackSignals()
    signals.pause(0.0)
    signals._note(15)
    with pytest.raises(StopRequested):
        signals.pause(60.0)
    signals._note(2)

    assert (signals.first, signals.second) == (15, 2)
