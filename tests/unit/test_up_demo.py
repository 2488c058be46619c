"""Demo of `up`: what is registered, how runs are read, and how they are shown, on a loopback API of our own."""

import ast
import io
from datetime import UTC, datetime, timedelta
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
from tests.loopback import HttpError, Loopback

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Api:
    """As much of Prefect's API as the demo needs; the pool is there at the second question."""

    def __init__(self):
        self.asked, self.posted, self.answers = 0, [], {}
        self.server = Loopback(self.answer)
        self.server.start()

    def answer(self, method, path, body, headers):
        if method == "GET":
            self.asked += 1
            if self.asked > 1:
                return {"id": "p"}
            raise HttpError(404, "no such pool")
        self.posted.append((path, body))
        if path.endswith("/filter"):
            return self.answers[path]
        if path.endswith("/create_flow_run"):
            number = sum(path.endswith("/create_flow_run") for path, _ in self.posted)
            raise HttpError(201, "", body={"id": f"run-{number}", "name": f"name-{number}"})
        raise HttpError(201, "", body={"id": f"{path.strip('/')}-{body['name']}"})

    def stop(self):
        self.server.stop()


@pytest.fixture
def api():
    api = Api()
    yield api
    api.stop()


def _claims(away=False):
    """A ledger with one live claim and one that is gone."""
    live = [SimpleNamespace(run_id="run-1", worker="worker@a"), SimpleNamespace(run_id="run-3", worker=None)]
    gone = [{"run_id": "run-2", "worker": "worker@b"}, {"run_id": "other", "worker": "worker@c"}]

    def ask():
        if away:
            raise LedgerUnavailable("gone")
        return live

    return SimpleNamespace(claims=SimpleNamespace(live=ask, records=lambda limit: gone))


def _demo(api):
    address = Address(url=api.server.url)
    demo = Demo(Session(address, pause=lambda seconds: None), "pool x", _claims())
    demo.begin(pause=lambda seconds: None)
    return demo


def _shown(width, show):
    out = io.StringIO()
    show(Console(file=out, width=width, no_color=True))
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = DataFolder.open(tmp_path / "data")
    yield folder
    folder.close()


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
    demo._ledger = _claims(away=True)
    assert demo.look()[0].worker == "worker@a"
    api.stop()
    assert demo.look()[0].state == "Running"


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_tells_state_progress_worker_and_time(api, width):
    demo = _demo(api)
    start, end = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
    ended = _state(4, "COMPLETED", start_time=start, end_time=end)
    api.answers = {
        "/flow_runs/filter": [_state(1, "RUNNING", start_time=start), ended, _state(5, "CRASHED")],
        "/task_runs/filter": [{"flow_run_id": "run-1", "state_type": "COMPLETED"}] * 4,
    }
    table = demo_table(demo.look(), AT + timedelta(minutes=2), width)
    text = _shown(width, lambda console: console.print(table))
    assert max(map(len, text.splitlines())) <= width
    for word in ("####.... 4/8", "2m 0s", "Crashed ok", "Completed !", "worker@a"):  # ! was meant to fail
        assert word in text


def test_without_a_terminal_each_change_is_one_line(api):
    demo = _demo(api)

    def show(console):
        with LiveTable(console) as table:
            table.update(demo.runs)
            table.update(demo.runs)
            api.answers = {"/flow_runs/filter": [_state(1, "RUNNING")], "/task_runs/filter": []}
            table.update(demo.look())

    lines = _shown(80, show).splitlines()
    assert lines.count("longer name-1: Running on worker@a") == 1
    assert sum(line.startswith("longer name-1:") for line in lines) == 2


def test_the_parts_get_where_everything_is_by_variables_and_nothing_of_the_users_that_stands_in_the_way(folder):
    user = {
        "PATH": "/bin", "PREFECT_API_KEY": "k", "FLOWFLEET_SLOTS": "9", "FLOWFLEET_NAME": "mine",
        "FLOWFLEET_REDIS_FILE": "/x", "FLOWFLEET_ENV": "A=1",
    }  # fmt: skip
    settings = resolve(UpSettings, {"api": "http://h/api", "key": "kk", "log-level": "debug"}, {}, {})
    ours, theirs = (
        poller_and_workers.environment(folder, user, settings, own_server=own, own_redis=True) for own in (True, False)
    )
    given = (ours["FLOWFLEET_API"], ours["FLOWFLEET_KEY"], ours["FLOWFLEET_LOG_LEVEL"])
    assert given == ("http://h/api", "kk", "DEBUG")
    assert ours["FLOWFLEET_ENV"] == "A=1"
    assert not {"FLOWFLEET_SLOTS", "FLOWFLEET_NAME", "FLOWFLEET_REDIS_FILE", "PREFECT_API_KEY"} & set(ours)
    assert theirs["PREFECT_API_KEY"] == "k"
    assert "FLOWFLEET_PYTHON" not in theirs


def test_secrets_that_were_given_by_file_reach_the_parts_by_file(folder, tmp_path, monkeypatch):
    """Else a replaced key would never be read again."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("key", "kkkk"), ("redis", "redis://:rrrr@box/0"), ("password", "pppp")):
        (tmp_path / name).write_text(text)

    def parts(environ, *, own_redis=False):
        settings = resolve(UpSettings, {"api": "http://h/api"}, environ, {})
        env = poller_and_workers.environment(folder, environ, settings, own_server=False, own_redis=own_redis)
        return {name[10:]: value for name, value in env.items() if name.startswith("FLOWFLEET_")}

    whole = parts({"FLOWFLEET_KEY_FILE": "key", "FLOWFLEET_REDIS_FILE": "redis"})
    apart = parts({"FLOWFLEET_REDIS": "redis://me@box/0", "FLOWFLEET_REDIS_PASSWORD_FILE": "password"})
    ours = parts({"FLOWFLEET_REDIS_PASSWORD_FILE": "password"}, own_redis=True)
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


def test_up_serves_each_pool_that_a_list_names_wherever_the_list_stands(folder, tmp_path, monkeypatch):
    """One variable and one config file serve worker and `up` alike, and there pools are a list."""
    by_variable = resolve(UpSettings, {}, {"FLOWFLEET_POOLS": "cpu,gpu"}, {})
    by_file = resolve(UpSettings, {}, {}, {"pool": ["cpu"]})
    assert (by_variable.pools, by_variable.pool, by_file.pools) == (("cpu", "gpu"), "cpu", ("cpu",))
    monkeypatch.setattr(Part, "start", lambda name, folder, argv, **how: argv)
    argv = poller_and_workers.start_worker(
        folder, {}, "http://h:1", tmp_path, name="worker", slots=2, pools=by_variable.pools
    )
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
