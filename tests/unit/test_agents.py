"""Agents: the reference's classes with their documented arguments and methods, over a hand-written API."""

import configparser
import logging
import os
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flowfleet
from flowfleet import Agent, DockerAgent, LocalAgent
from flowfleet.agents import arguments, deploying, overrides
from flowfleet.agents.flow_run_records import FlowRunRecord, fetch
from flowfleet.agents.start import HeartbeatThread
from flowfleet.agents.starts import StartUnderWay
from flowfleet.api import traits
from flowfleet.api.backlog import DueRuns
from flowfleet.api.client import Answer, Job, LogLine, StateType, Verdict
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import AlreadyClaimed, ApiUnavailable, FleetError, SettingsError
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.layers import resolve
from tests.waiting import until
from workers.deployers.external import InDoubt, NotAsked
from workers.deployment import RunLimits, StartSpec
from workers.environment import EnvironmentLayers

TENANT = "11111111-1111-4111-8111-111111111111"
HOST = socket.gethostname()


def run_id(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def row(number: int, start: str = "2026-01-01T00:00:00+00:00", **given: Any) -> dict[str, Any]:
    return {
        "id": run_id(number),
        "version": 1,
        "state": "Scheduled",
        "serialized_state": {"type": "Scheduled", "start_time": start},
        "parameters": {"a": 1},
        "scheduled_start_time": start,
        "run_config": {"type": "LocalRun", "env": {"OF_THE_RUN": "r", "A": "run"}},
        "name": f"run-{number}",
        "flow": {"id": "f", "name": "flow", "environment": None, "storage": {"type": "Local"}, "core_version": "1.4.1"},
        "task_runs": [{"id": "t", "version": 1, "task_id": "x", "serialized_state": {"type": "Scheduled"}}],
        **given,
    }


class Api:
    """What an agent asks of its API, answered from rows; it keeps what was written."""

    backend = "prefect1"
    traits = traits.of(backend)
    address = "http://fake"

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)
        self.away = False
        self.verdict = Verdict.ACCEPTED
        self.asked: list[Offer] = []
        self.queries: list[str] = []
        self.claimed: list[tuple[str, str]] = []
        self.reported: list[tuple[str, StateType, str]] = []
        self.lines: list[LogLine] = []
        self.engine: dict[str, str | None] = {}
        self.graphql = self.claims = self.ends = self.backlog = self.presence = self.jobs = self

    def ask(self, document: str) -> Any:
        self.queries.append(document)
        return SimpleNamespace(data={"flow_run": [row for row in self.rows if row["id"] in document]})

    def probe(self) -> ServerInfo:
        if self.away:
            raise ApiUnavailable("nobody answers")
        return ServerInfo(backend="prefect1", version="1.x", skew_seconds=0.0)

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        assert not create
        return Offer(backend=offer.backend, labels=offer.labels, tenant=TENANT, deploy=offer.deploy)

    def due(self, offers: list[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        if self.away:
            raise ApiUnavailable("nobody answers")
        self.asked += offers
        route = Route.of_labels(TENANT, ["x"])
        runs = tuple(
            FlowRun(run_id=row["id"], name=row["name"], route=route, due=datetime.now(UTC)) for row in self.rows
        )
        return [DueRuns(route=route, runs=runs, due=len(runs))]

    def claim(self, runs: list[FlowRun], call: str, mark: Any) -> dict[str, Answer]:
        self.claimed += [(run.run_id, mark.fleet) for run in runs]
        return {run.run_id: Answer(verdict=self.verdict, reason="it is Submitted") for run in runs}

    def report(self, run_id: str, kind: StateType, message: str, mark: Any, **_: Any) -> Answer:
        if self.away:
            return Answer(verdict=Verdict.UNSURE, reason="nobody answers")
        self.reported.append((run_id, kind, message))
        return Answer(verdict=Verdict.ACCEPTED)

    def log(self, lines: list[LogLine]) -> None:
        self.lines += lines

    def equip(self, job: Job) -> Job:
        forced = {"PREFECT__CONTEXT__FLOW_RUN_ID": job.state.run_id, "PREFECT__CONTEXT__FLOW_ID": job.flow_id}
        forced |= self.engine
        defaults = {"PREFECT__LOGGING__LEVEL": "INFO", "A": "default"}
        return replace(job, engine_defaults=defaults, engine_env={**forced, "GONE": None})


class Mine(Agent):
    """An agent that deploys somewhere else."""

    error: Exception | None = None

    def deploy_flow(self, flow_run: Any) -> str:
        if self.error:
            raise self.error
        return f"somewhere, {flow_run.flow.name} as {flow_run['name']}"


def an_agent(api: Api, cls: type[Agent] = Mine, **given: Any) -> Any:
    agent = cls(labels=["x"], **given)
    agent._client = api  # type: ignore[assignment]
    return agent


# arguments


def test_the_arguments_of_2020_stand_in_their_order():
    agent = Agent("name", ["b", "a"], {"K": "v"}, 3, "http://127.0.0.1:8080", True)
    assert (agent.name, agent.labels, agent.env_vars) == ("name", ["b", "a"], {"K": "v"})
    assert (agent.max_polls, agent.agent_address, agent.log_to_cloud) == (3, "http://127.0.0.1:8080", False)
    local = LocalAgent("name", ["a"], {"K": "v"}, ["/p"], True, False, 3, "http://127.0.0.1:8080", True)
    assert (local.import_paths, local.show_flow_logs, local.labels) == (["/p"], True, ["a"])
    assert (local.max_polls, local.agent_address, local.log_to_cloud) == (3, "http://127.0.0.1:8080", False)
    docker = DockerAgent("name", ["a"], {}, 3, "http://h:1", False, "unix://s", True, ["/v"], True, "net", False)
    assert (docker.base_url, docker.no_pull, docker.volumes) == ("unix://s", True, ["/v"])
    assert (docker.show_flow_logs, docker.networks, docker.docker_interface) == (True, ["net"], False)


def test_the_arguments_of_2021_go_by_keyword():
    agent = LocalAgent(agent_config_id="c", name="n", labels=["a"], hostname_label=False, no_cloud_logs=None)
    assert (agent.agent_config_id, agent.log_to_cloud) == ("c", True)
    docker = DockerAgent(networks=["a", "b"], reg_allow_list=["r"], docker_client_timeout=5)
    assert (docker.networks, docker.reg_allow_list, docker.docker_client_timeout) == (["a", "b"], ["r"], 5)


def test_an_agent_is_called_agent_unless_something_names_it(monkeypatch):
    assert Agent().name == "agent"
    monkeypatch.setenv("PREFECT__CLOUD__AGENT__NAME", "of-prefect")
    monkeypatch.setenv("PREFECT__CLOUD__AGENT__LABELS", "['p', 'q']")
    assert (Agent().name, Agent().labels) == ("of-prefect", ["p", "q"])
    monkeypatch.setenv("FLOWFLEET_NAME", "ours")
    assert Agent().name == "ours"
    assert (Agent("given").name, Agent(labels=["a"]).labels) == ("given", ["a"])


def test_the_local_agent_has_its_host_s_name_as_a_label_unless_told_otherwise():
    assert LocalAgent(labels=["x"]).labels == ["x", HOST]
    assert LocalAgent(labels=[HOST]).labels == [HOST]
    assert LocalAgent(labels=["x"], hostname_label=False).labels == ["x"]


def test_a_host_that_is_named_like_all_others_is_labelled_by_its_ip_by_the_class_and_by_the_command(monkeypatch):
    known = {"docker-desktop": "192.168.65.3"}
    monkeypatch.setattr(socket, "gethostbyname", known.__getitem__)
    monkeypatch.setattr(socket, "gethostname", lambda: "docker-desktop")
    assert LocalAgent(labels=["x"]).labels == ["x", "192.168.65.3"]
    command = resolve(WorkerSettings, {"label": ("x",)}, {}, {}, {"host": "docker-desktop"})
    assert command.agent_labels == ("x", "192.168.65.3")

    def unknown(_: str) -> str:
        raise socket.gaierror

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert LocalAgent(labels=["x"]).labels == ["x", "docker-desktop"]


def test_what_an_agent_was_given_reaches_worker_and_poller():
    agent = LocalAgent(
        labels=["x", "a,b"], env_vars={"K": "v=1", "N": None}, import_paths=["/p"], max_polls=3, no_cloud_logs=True,
        agent_address="http://127.0.0.1:1", hostname_label=False, redis="redis://h:1/0", slots=4, run_timeout=5,
    )  # fmt: skip
    settings = agent.worker_settings()
    assert (settings.backend, settings.name, settings.deploy) == ("prefect1", "agent", "process")
    assert (settings.labels, settings.hostname_label, settings.slots) == (("a,b", "x"), False, 4)
    assert (settings.env, settings.import_paths) == (("K=v=1",), ("/p",))
    assert (settings.cloud_logs, settings.run_timeout, settings.agent_address) == (False, 5.0, None)
    env = arguments.poller_environment(agent.given(), settings, {"FLOWFLEET_LABELS": "others", "PATH": "/bin"})
    assert env["FLOWFLEET_BACKEND"] == "prefect1"
    assert (env["FLOWFLEET_MAX_POLLS"], env["FLOWFLEET_AGENT_ADDRESS"]) == ("3", "http://127.0.0.1:1")
    assert (env["FLOWFLEET_REDIS"], env["FLOWFLEET_CLOUD_LOGS"], env["PATH"]) == ("redis://h:1/0", "false", "/bin")
    assert "FLOWFLEET_LABELS" not in env  # the poller asks for what workers have


def test_what_cannot_be_an_argument_is_said_in_a_sentence(monkeypatch):
    with pytest.raises(TypeError, match=r"LocalAgent\(\) has no argument 'slotz'"):
        LocalAgent(slotz=4)
    with pytest.raises(SettingsError, match=r"--name cannot be 'two\\nlines'"):
        LocalAgent("two\nlines").worker_settings()
    with pytest.raises(SettingsError, match=r"--agent-address cannot be 'http://127\.0\.0\.1': .*with the port"):
        LocalAgent(agent_address="http://127.0.0.1").start()
    monkeypatch.setenv("PREFECT__CLOUD__AGENT__LABELS", "{'a': 1}")
    with pytest.raises(SettingsError, match="PREFECT__CLOUD__AGENT__LABELS"):
        Agent()


# classes


def test_the_methods_of_2019_do_what_they_did():
    class Of2019(Agent):
        deployed: Any = ()

        def deploy_flows(self, flow_runs: Any) -> None:
            self.deployed = [*self.deployed, *(run.id for run in flow_runs)]

    agent = an_agent(Api(row(1), row(2)), Of2019)
    assert agent.query_tenant_id() == TENANT
    assert len(agent.query_flow_runs(tenant_id=TENANT)) == 2
    assert agent.agent_process(TENANT) is True
    assert sorted(agent.deployed) == [run_id(1), run_id(2)]
    agent.update_states([row(1)])
    assert [run for run, _ in agent.client.claimed][2:] == [run_id(1)]
    agent = an_agent(Api(row(1)))
    agent.error = ValueError("asked")
    with pytest.raises(ValueError, match="asked"):
        agent.deploy_flows([row(1)])


def test_a_process_that_an_own_deploy_flow_has_added_is_taken_off_when_it_has_ended(caplog):
    agent = LocalAgent()
    with caplog.at_level(logging.INFO, logger="agent"):
        agent.processes |= {
            ended := subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]),
            alive := subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE),
        }
        ended.wait(20)
        agent.heartbeat()
    assert agent.processes == {alive}
    assert [(record.pid, record.code) for record in caplog.records] == [(ended.pid, 3)]
    alive.communicate(b"\n")


def test_who_asks_for_no_agent_does_not_pay_for_them():
    code = "import flowfleet, sys; print('flowfleet.agents' in sys.modules, 'celery' in sys.modules)"
    code += "; from flowfleet import LocalAgent; LocalAgent(); print('celery' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        flowfleet.Nobody  # noqa: B018


def test_the_base_class_starts_nothing_by_itself():
    with pytest.raises(NotImplementedError, match="override deploy_flow, or use LocalAgent"):
        Agent().start()


def test_an_agent_of_containers_gives_its_arguments_to_its_worker():
    agent = DockerAgent(
        base_url="unix://s", no_pull=True, volumes=["/v:/v"], networks=["a"], reg_allow_list=["r.example"]
    )
    settings = agent.worker_settings()
    assert (settings.deploy, settings.require_engine, settings.base_url) == ("docker", True, "unix://s")
    assert (settings.no_pull, settings.volumes, settings.networks) == (True, ("/v:/v",), ("a",))
    assert (settings.allow_images, settings.docker_client_timeout) == (("r.example",), 60)


def test_a_start_outside_of_the_main_thread_is_refused_in_a_sentence():
    with ThreadPoolExecutor(1) as executor, pytest.raises(FleetError, match="call it in the main thread"):
        executor.submit(LocalAgent().start).result()


def test_an_agent_of_a_flow_has_the_flow_s_labels_or_its_slug():
    config, storage = SimpleNamespace(labels={"a"}), SimpleNamespace(labels=[HOST])
    assert LocalAgent.from_flow(SimpleNamespace(name="F", run_config=config, storage=storage)).labels == sorted(
        ["a", HOST]
    )
    old = SimpleNamespace(name="Welcome Flow!", environment=SimpleNamespace(labels=set()))
    agent = LocalAgent.from_flow(old, max_polls=1)
    assert (agent.labels, agent.max_polls) == (["welcome-flow"], 1)


def test_an_overridden_deploy_flow_makes_external_deployments():
    class Own(LocalAgent):
        def deploy_flow(self, flow_run: Any) -> str:
            return super().deploy_flow(flow_run)

    class Variables(LocalAgent):
        def populate_env_vars(self, flow_run: Any) -> dict[str, str]:  # type: ignore[override]
            return {**super().populate_env_vars(flow_run), "MORE": "1"}

    class Of2019(LocalAgent):
        def deploy_flows(self, flow_runs: Any) -> None:
            raise NotImplementedError

    class Docker(DockerAgent):
        deploy_flow = Own.deploy_flow

    assert [cls().deploy_kind for cls in (Own, Of2019, Docker)] == ["external"] * 3
    assert [overrides.asked(cls()) for cls in (LocalAgent, Own, Variables)] == [False, True, True]
    handed = LocalAgent()
    handed.deploy_flow = str  # type: ignore[method-assign, assignment]
    assert handed.deploy_kind == "external"
    # in a container, too: what runs elsewhere does not end with it
    assert (Own().worker_settings().on_stop, Own(on_stop="wait").worker_settings().on_stop) == ("detach", "wait")
    assert Variables().deploy_kind == "process"


def test_attributes_that_a_program_gives_its_agent_are_its_own():
    class Own(Mine):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.settings = self.config = self.options = self.runs = self.starts = self.api = {"k": "v"}

    agent = Own(labels=["x"])
    assert (agent.worker_settings().labels, agent.settings) == (("x",), {"k": "v"})


def test_overrides_that_are_never_called_are_named():
    class Picky(LocalAgent):
        def query_flow_runs(self, tenant_id: str | None = None) -> Any:
            return super().query_flow_runs(tenant_id)[:1]

        def _mark_flow_as_submitted(self, flow_run: Any) -> None:
            raise NotImplementedError

    assert overrides.never_called(Picky()) == ["query_flow_runs", "_mark_flow_as_submitted"]
    assert overrides.never_called(LocalAgent()) == []


# flow runs


def test_flow_runs_are_read_by_dot_and_by_item():
    run = FlowRunRecord.of(row(1))
    assert (run.id, run["id"], run.get("nothing")) == (run_id(1), run_id(1), None)
    assert run.flow.name == run["flow"]["name"] == run.flow["name"]
    assert run.task_runs[0].serialized_state.type == "Scheduled"
    run.more = 1
    assert run["more"] == 1
    with pytest.raises(AttributeError, match="no 'color'"):
        run.color  # noqa: B018
    assert getattr(run, "color", None) is None


def test_flow_runs_come_in_the_order_of_their_states_start_times():
    api = Api(row(1, "2026-01-02T00:00:00+00:00"), row(2, "2026-01-01T00:00:00+00:00"), row(3, ""))
    found = fetch(api, [run_id(1), run_id(2), run_id(3)])
    assert [run.id for run in found] == [run_id(2), run_id(1), run_id(3)]
    assert fetch(api, []) == []


def test_query_flow_runs_gives_what_is_due_but_for_what_is_being_submitted_until_its_attempt_has_ended():
    agent = an_agent(Api(row(1), row(2)))
    agent.submitting_flow_runs.add(run_id(1))
    assert [run.id for run in agent.query_flow_runs()] == [run_id(2)]
    (offer,) = agent.client.asked
    assert (offer.labels, offer.tenant, offer.deploy) == (("x",), TENANT, "external")
    agent.on_flow_run_deploy_attempt(Future(), run_id(1))
    agent.on_flow_run_deploy_attempt(fut=Future(), flow_run_id=run_id(1))
    assert agent.submitting_flow_runs == set()


def test_update_state_claims_a_run_outside_of_the_fleet_s_ledger_and_mark_failed_writes_the_exception_s_text():
    agent = an_agent(Api(row(1)))
    assert agent.update_state(FlowRunRecord.of(row(1))) is None
    assert agent.client.claimed == [(run_id(1), "default.by-hand")]
    agent.client.verdict = Verdict.REFUSED
    with pytest.raises(AlreadyClaimed, match="State update failed"):
        agent.update_state(row(1))
    assert agent.mark_failed(flow_run=FlowRunRecord.of(row(1)), exc=OSError("lost")) is None
    assert agent.client.reported == [(run_id(1), StateType.FAILED, "lost")]
    agent.client.away = True
    with pytest.raises(ApiUnavailable, match=f"not known whether flow run {run_id(1)} is Failed: nobody answers"):
        agent.mark_failed(row(1), OSError("lost"))


@pytest.mark.parametrize(
    ("given", "error", "verdict", "lines", "reported"),
    [
        ({}, None, Verdict.ACCEPTED, [("Submitted for execution: somewhere, flow as run-1", logging.INFO)], []),
        ({}, ValueError("no room"), Verdict.ACCEPTED, [("no room", logging.ERROR)], [(StateType.FAILED, "no room")]),
        ({}, None, Verdict.REFUSED, [], []),
        ({"no_cloud_logs": True}, None, Verdict.ACCEPTED, [], []),
    ],
    ids=["it is told in its log", "it fails and is told", "another agent has it", "its agent is silenced"],
)
def test_a_run_is_deployed_and(given, error, verdict, lines, reported):
    agent = an_agent(Api(row(1)), **given)
    agent.error, agent.client.verdict = error, verdict
    assert agent.deploy_and_update_flow_run(FlowRunRecord.of(row(1))) is None
    assert [(line.message, line.level) for line in agent.client.lines] == lines
    assert agent.client.reported == [(run_id(1), *told) for told in reported]


class Launched:
    """A run that a worker starts through the methods of an agent."""

    def __init__(self, agent: Any, folder: Path, *, env: dict[str, str] | None = None) -> None:
        self.agent = agent
        self.started: list[StartSpec] = []
        marks = {"FLOWFLEET_RUN_ID": run_id(1), "FLOWFLEET_CLAIM": "claim"}
        spec = StartSpec(
            run_id=run_id(1), claim="claim", argv=["x"], env=marks, cwd="/", folder=folder, not_after=1.0,
            limits=RunLimits(log_limit=1, stop_grace=1.0),
        )  # fmt: skip
        self.start = StartUnderWay(
            spec=spec, layers=EnvironmentLayers(base=env or {}, home="/home"), below=self.below, not_after=lambda: 2.0
        )

    def below(self, spec: StartSpec) -> Any:
        self.started.append(spec)
        return SimpleNamespace(handle={"pid": 7})

    def answer(self) -> Any:
        return deploying.by_method(self.agent, self.start)


def test_a_run_under_way_is_updated_without_a_write_and_its_failure_is_told_by_the_worker(tmp_path):
    class Own(Mine):
        failed: Any = None

        def deploy_flow(self, flow_run: Any) -> str:
            self.update_state(flow_run)
            with ThreadPoolExecutor(1) as executor:  # whatever thread asks
                executor.submit(self.update_state, flow_run).result()
            return super().deploy_flow(flow_run)

        def mark_failed(self, flow_run: Any, exc: Exception) -> None:
            self.failed = str(exc)
            super().mark_failed(flow_run, exc)

    agent = an_agent(Api(row(1)), Own)
    assert Launched(agent, tmp_path).answer() == "somewhere, flow as run-1"
    agent.error = ValueError("X happened")
    with pytest.raises(ValueError, match=r"^X happened$"):
        Launched(agent, tmp_path).answer()
    assert agent.failed == "X happened"
    assert (agent.client.claimed, agent.client.reported, agent.client.lines) == ([], [], [])
    agent.update_state(row(1))
    assert len(agent.client.claimed) == 1, "none is under way any more"


def test_a_run_that_is_another_agent_s_is_neither_failed_nor_deployed(tmp_path):
    class Own(Mine):
        def update_state(self, flow_run: Any, deployment_info: Any = None) -> None:
            raise RuntimeError("State update failed: somebody was here first")

    agent = an_agent(Api(row(1)), Own)
    answer = Launched(agent, tmp_path).answer()
    assert isinstance(answer, InDoubt)
    assert "could not be updated" in answer.why
    assert agent.client.reported == []

    class Skips(Mine):
        def deploy_and_update_flow_run(self, flow_run: Any) -> None: ...

    assert isinstance(Launched(an_agent(Api(row(1)), Skips), tmp_path).answer(), InDoubt)
    with pytest.raises(NotAsked):
        Launched(an_agent(Api()), tmp_path).answer()


@pytest.mark.parametrize("year", [2020, 2022])
def test_a_run_gets_what_an_override_of_its_variables_returns_and_its_marks(tmp_path, year):
    class Variables(LocalAgent):
        def deploy_flow(self, flow_run: Any) -> str:
            flow_run.run_config.env["CHANGED"] = "by deploy_flow"
            flow_run.run_config.working_dir = "/changed"
            return super().deploy_flow(flow_run)

        def taken(self, env: dict[str, str]) -> dict[str, Any]:
            del env["HOSTVAR"], env["FLOWFLEET_CLAIM"]
            return {**env, "NUMBER": 1, "NOTHING": None}

    class Of2020(Variables):
        def populate_env_vars(self, flow_run: Any) -> Any:  # type: ignore[override]
            return self.taken(super().populate_env_vars(flow_run))

    class Of2022(Variables):
        def populate_env_vars(self, flow_run: Any, run_config: Any) -> Any:  # type: ignore[override]
            assert (run_config.type, run_config.env["CHANGED"]) == ("LocalRun", "by deploy_flow")
            return self.taken(super().populate_env_vars(flow_run, run_config=run_config))

    launched = Launched(an_agent(Api(row(1)), {2020: Of2020, 2022: Of2022}[year]), tmp_path, env={"HOSTVAR": "h"})
    assert launched.answer().handle == {"pid": 7}
    (spec,) = launched.started
    assert dict(spec.env) == {
        "PREFECT__LOGGING__LEVEL": "INFO",
        "A": "run",
        "OF_THE_RUN": "r",
        **ENGINE,
        "PYTHONPATH": "/changed",
        "CHANGED": "by deploy_flow",
        "NUMBER": "1",
        "FLOWFLEET_RUN_ID": run_id(1),
        "FLOWFLEET_CLAIM": "claim",
    }
    assert (spec.cwd, spec.not_after) == ("/changed", 2.0)


def test_an_override_that_returns_no_variables_is_told_so(tmp_path):
    class Forgets(LocalAgent):
        def populate_env_vars(self, flow_run: Any, run_config: Any = None) -> Any: ...

    with pytest.raises(TypeError, match="populate_env_vars of Forgets returned a value of type NoneType; it must ret"):
        Launched(an_agent(Api(row(1)), Forgets), tmp_path).answer()


def test_one_poll_by_hand_deploys_what_it_finds_and_says_whether_it_found_any():
    agent = an_agent(Api(row(1), row(2)))
    with ThreadPoolExecutor(2) as executor:
        assert agent.agent_process(executor) is True
    assert sorted(run for run, _ in agent.client.claimed) == [run_id(1), run_id(2)]
    assert agent.submitting_flow_runs == set()
    agent.client.rows = []
    with ThreadPoolExecutor(1) as executor:
        assert agent.agent_process(executor) is False
        agent.client.away = True
        assert agent.agent_process(executor) is False


def test_an_attempt_by_hand_that_raises_is_logged_since_nobody_looks_at_its_future(caplog):
    agent = an_agent(Api(row(1)))
    agent.client.verdict = Verdict.UNSURE
    with ThreadPoolExecutor(1) as executor:
        assert agent.agent_process(executor) is True
    (said,) = [record for record in caplog.records if record.getMessage() == "deployment attempt failed"]
    assert said.run_id == run_id(1)
    assert "not known whether" in said.error


ENGINE = {"PREFECT__CONTEXT__FLOW_RUN_ID": run_id(1), "PREFECT__CONTEXT__FLOW_ID": "f"}


def test_the_variables_of_a_run_are_those_of_host_agent_run_and_engine_in_this_order(monkeypatch):
    host = {"PATH": "/bin", "HOSTVAR": "h", "A": "host", "FLOWFLEET_KEY": "secret-key"}
    monkeypatch.setattr(os, "environ", host)
    agent = an_agent(Api(), LocalAgent, env_vars={"A": "agent", "B": "agent", "HOSTVAR": None, "OF_THE_RUN": None})
    path = {"PATH": "/bin", "PYTHONPATH": str(Path.cwd())}
    expected = {**path, "PREFECT__LOGGING__LEVEL": "INFO", "A": "run", "B": "agent", "OF_THE_RUN": "r", **ENGINE}
    flow_run = FlowRunRecord.of(row(1))
    assert agent.populate_env_vars(flow_run) == expected
    # as 1.4.1 calls it: this run_config counts, a record or an object of prefect's own
    run_config = SimpleNamespace(env={"A": 1, "B": None}, working_dir="/w")
    del expected["B"], expected["OF_THE_RUN"]
    assert agent.populate_env_vars(flow_run, run_config=run_config) == {**expected, "A": "1", "PYTHONPATH": "/w"}
    agent.env_vars["LATER"] = 2
    flow_run.run_config.env = None
    assert agent.populate_env_vars(flow_run) == {**expected, "A": "agent", "B": "agent", "LATER": "2"}


def test_the_variables_of_a_container_have_nothing_of_this_host(monkeypatch):
    monkeypatch.setenv("HOSTVAR", "h")
    agent = an_agent(Api(), DockerAgent, env_vars={"A": "agent", "B": "agent"}, no_cloud_logs=True)
    agent.client.engine = {"PREFECT__CLOUD__API": "http://localhost:4200", "PREFECT__CLOUD__API_KEY": None}
    env = agent.populate_env_vars(FlowRunRecord.of(row(1)), "an-image", run_config=None)
    assert env == {
        "PREFECT__LOGGING__LEVEL": "INFO",
        "A": "run",
        "B": "agent",
        "OF_THE_RUN": "r",
        "GONE": "",
        **ENGINE,
        "PREFECT__CLOUD__API": "http://host.docker.internal:4200",
        "PREFECT__CONTEXT__IMAGE": "an-image",
        "PREFECT__CLOUD__API_KEY": "",
        "PREFECT__CLOUD__AUTH_TOKEN": "",
        "PREFECT__LOGGING__LOG_TO_CLOUD": "false",
    }
    agent.env_vars["PREFECT__CLOUD__API"] = "http://given"
    assert agent.populate_env_vars(FlowRunRecord.of(row(1)))["PREFECT__CLOUD__API"] == "http://given"


# hooks


def test_set_up_calls_the_hook_and_then_connects_and_clean_up_calls_the_other():
    called = []

    class Hooked(Mine):
        def on_startup(self) -> None:
            called.append("startup")

        def agent_connect(self) -> None:
            called.append("connect")

        def on_shutdown(self) -> None:
            called.append("shutdown")

    agent = Hooked()
    agent.setup()
    agent.cleanup()
    assert called == ["startup", "connect", "shutdown"]


def test_an_api_that_does_not_answer_yet_is_said_and_waited_for(caplog):
    agent = an_agent(Api())
    agent.client.away = True
    with caplog.at_level(logging.INFO, logger="agent"):
        assert agent.agent_connect() is None
    assert [record.getMessage() for record in caplog.records] == ["agent starts", "the API does not answer yet"]


def test_a_heart_beats_at_once_and_goes_on_whatever_a_beat_raises(monkeypatch):
    beats = []

    def beat() -> None:
        beats.append(1)
        raise ValueError("the user's")

    heartbeat = HeartbeatThread(beat, lambda: 0.01)
    heartbeat.start()
    until(lambda: len(beats) > 2, 20, "three beats")
    join, given = heartbeat._thread.join, []  # a second is not enough where the thread stalls
    monkeypatch.setattr(heartbeat._thread, "join", lambda seconds: (given.append(seconds), join(60.0)))
    heartbeat.close()
    assert given == [1.0]
    assert not heartbeat._thread.is_alive()


# a service


def test_the_supervisor_conf_has_a_program_for_the_worker_and_one_for_the_poller():
    conf = LocalAgent.generate_supervisor_conf("token-123", ["a", "b c"], {"K": "v-secret"}, ["/p 1"], True)
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(conf)
    worker, poller = (read[f"program:flowfleet-{part}"]["command"] for part in ("worker", "poller"))
    assert worker.split()[1:5] == ["start", "--show-flow-logs", "--label", "a"]
    assert poller.endswith("start --backend prefect1")
    assert "--backend prefect1" in worker
    assert not [secret for secret in ("token-123", "v-secret") if secret in conf]
    # in the order of 2020
    old = LocalAgent.generate_supervisor_conf("T", ["l"], ["/p"], True)
    assert old == LocalAgent.generate_supervisor_conf(token="T", labels=["l"], import_paths=["/p"], show_flow_logs=True)
    # the arguments of 2021
    conf = LocalAgent.generate_supervisor_conf(key="key-123", tenant_id="t", agent_config_id="c", labels=["x"])
    assert (conf.count("--tenant-id t"), conf.count("--agent-config-id c")) == (2, 2)
    assert "key-123" not in conf
