"""The environment of a local run at Prefect 1: each row of the reference's table, and which layer wins."""

import base64
from pathlib import Path

import pytest

from flowfleet.api import traits
from flowfleet.api.client import Job, RunState, StateType
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.ledger.claims import State
from flowfleet.settings.classes import WorkerSettings
from tests.unit.memory_ledger import a_claim
from workers.environment import layers_of, worker_layer
from workers.interpreter import Interpreter
from workers.runs.start_spec import StartSpecBuilder
from workers.state.run_folders import RunFolder

RUN, FLOW, TENANT = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "tenant-id"
#: what is given: to the worker's process, by --env, by the run; key, --no-cloud-logs
NOTHING = {"inherited": {}, "env": (), "run": {}, "key": None, "cloud_logs": True, "working_dir": None}


def environment(tmp_path, **given):
    """The order's environment and folder."""
    facts = {**NOTHING, **given}
    paths = facts.pop("import_paths", ())
    authorization = facts.pop("authorization", None) or (f"Bearer {facts['key']}" if facts["key"] else None)
    session = Session(Address(url="http://api.example:4200", authorization=authorization), flavour=PREFECT1)
    api = Prefect1(
        GraphQL(session, tenant=TENANT),
        server_backend="server",
        labels=("x", "y", "host"),
        log_level="INFO",
        cloud_logs=facts["cloud_logs"],
    )
    settings = WorkerSettings(env=facts["env"], import_paths=paths)
    base = worker_layer(facts["inherited"], python=None, own_prefix=None)
    start_specs = StartSpecBuilder(
        api=api.jobs,
        layers=layers_of(settings, base, traits.of("prefect1")),
        interpreter=Interpreter(path="/x/python", prefect="1.4.1"),
        settings=settings,
        traits=traits.of("prefect1"),
    )
    state = RunState(run_id=RUN, run_name="n", kind=StateType.PENDING, name="Submitted")
    job = Job(state=state, env=facts["run"], working_dir=facts["working_dir"], flow_id=FLOW)
    return start_specs.make(a_claim(RUN, State.TAKEN), api.jobs.equip(job), RunFolder(tmp_path), not_after=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT__LOGGING__LEVEL", "INFO"),
        ("PREFECT__CLOUD__SEND_FLOW_RUN_LOGS", "true"),
        ("PREFECT__CLOUD__HEARTBEAT_MODE", "thread"),
    ],
)
def test_a_default_holds_only_where_nobody_says_otherwise(tmp_path, name, value):
    assert environment(tmp_path).env[name] == value
    layers = {"inherited": {name: "of-worker"}, "env": (f"{name}=of-flag",), "run": {name: "of-run"}}
    for given in range(1, 4):
        said = dict(list(layers.items())[:given])
        assert environment(tmp_path, **said).env[name] == ("of-worker", "of-flag", "of-run")[given - 1]


@pytest.mark.parametrize(
    ("name", "value", "without_key"),
    [
        ("PREFECT__BACKEND", "server", "server"),
        ("PREFECT__CLOUD__API", "http://api.example:4200", "http://api.example:4200"),
        ("PREFECT__CLOUD__API_KEY", "the-key", None),
        ("PREFECT__CLOUD__TENANT_ID", TENANT, None),
        ("PREFECT__CLOUD__AGENT__LABELS", "['x', 'y', 'host']", "['x', 'y', 'host']"),
        ("PREFECT__CONTEXT__FLOW_RUN_ID", RUN, RUN),
        ("PREFECT__CONTEXT__FLOW_ID", FLOW, FLOW),
        ("PREFECT__CLOUD__USE_LOCAL_SECRETS", "false", "false"),
        (
            "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS",
            "prefect.engine.cloud.CloudFlowRunner",
            "prefect.engine.cloud.CloudFlowRunner",
        ),
    ],
)
def test_what_is_forced_wins_over_every_layer_and_is_taken_away_where_there_is_none(tmp_path, name, value, without_key):
    layers = {"inherited": {name: "of-worker"}, "env": (f"{name}=of-flag",), "run": {name: "of-run"}}
    for said in ({}, *({layer: given} for layer, given in layers.items()), layers):
        assert environment(tmp_path, key="the-key", **said).env.get(name) == value
        assert environment(tmp_path, **said).env.get(name) == without_key


def test_an_address_with_a_login_reaches_the_run_as_its_own_client_reads_it(tmp_path):
    basic = "Basic " + base64.b64encode("ann:p:/@ß".encode("latin-1")).decode()
    env = environment(tmp_path, authorization=basic).env
    assert env["PREFECT__CLOUD__API"] == "http://ann:p%3A%2F%40%C3%9F@api.example:4200"
    assert "PREFECT__CLOUD__API_KEY" not in env


@pytest.mark.parametrize("layer", ["inherited", "env", "run"])
def test_a_run_may_switch_its_logs_off_and_never_on(tmp_path, layer):
    name = "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS"
    for said, logs in (("false", True), ("true", False)):
        given = {layer: (f"{name}={said}",) if layer == "env" else {name: said}}
        assert environment(tmp_path, cloud_logs=logs, **given).env[name] == "false"


def test_other_variables_come_from_worker_then_flag_then_run_which_takes_one_away_by_null(tmp_path):
    inherited = dict.fromkeys("ABCDE", "worker") | {"FLOWFLEET_REDIS": "secret", "CELERY_X": "1"}
    run = {"C": "run", "D": None, "E": None}
    env = environment(tmp_path, inherited=inherited, env=("B=flag", "C=flag", "E=flag"), run=run).env
    assert {name: env.get(name) for name in "ABCDE"} == {"A": "worker", "B": "flag", "C": "run", "D": None, "E": None}
    assert not {"D", "E", "FLOWFLEET_REDIS"} & set(env)
    assert env["CELERY_X"] == "1"
    assert (env["FLOWFLEET_RUN_ID"], env["FLOWFLEET_CLAIM"]) == (RUN, "claim")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"inherited": {"PYTHONPATH": "/old:/older"}}, "{cwd}:/old:/older"),
        ({"inherited": {"PYTHONPATH": ""}}, "{cwd}"),
        ({"import_paths": ("/b", "/a")}, "{cwd}:/b:/a"),
        (
            {"working_dir": "/w", "inherited": {"PYTHONPATH": "/old"}, "import_paths": ("/b", "/a")},
            "/w:/old:/b:/a",
        ),
        ({"working_dir": "w"}, "{cwd}/w"),
        ({"import_paths": ("~/mine", "rel", "./dot")}, "{cwd}:{home}/mine:{cwd}/rel:{cwd}/dot"),
        ({"import_paths": ("/b",), "env": ("PYTHONPATH=/flag",)}, "/flag"),
        ({"import_paths": ("/b",), "env": ("PYTHONPATH=/flag",), "run": {"PYTHONPATH": "/run"}}, "/run"),
    ],
)
def test_pythonpath_is_folder_then_inherited_then_import_paths(tmp_path, given, path):
    wanted = path.format(cwd=Path.cwd(), home=Path.home())
    assert environment(tmp_path, **given).env["PYTHONPATH"] == wanted


def test_at_prefect_3_a_run_keeps_its_own_empty_folder_and_import_paths_come_first():
    settings = WorkerSettings(import_paths=("~/mine", "/b"))
    layers = layers_of(settings, {"PYTHONPATH": "/old"}, traits.of("prefect3"))
    assert layers.home is None
    env = layers.of_host()
    assert env["PYTHONPATH"] == f"{Path.home()}/mine:/b:/old"
