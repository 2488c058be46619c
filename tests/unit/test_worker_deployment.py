"""The plug-in edge: what limits a run has, and how a deployer of another package is made."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import Job, RunState, StateType
from flowfleet.errors import StartFailed
from flowfleet.ledger.claims import State
from flowfleet.settings.classes import WorkerSettings
from tests.unit.memory_ledger import a_claim
from workers.deployers import registry
from workers.deployment import Deployer, DeployerContext, RunLimits
from workers.environment import EnvironmentLayers
from workers.interpreter import Interpreter
from workers.runs.start_spec import StartSpecBuilder
from workers.state.run_folders import RunFolder

CONTEXT = DeployerContext(
    host="here", environment={"K": "hunter2"}, limits=RunLimits(stop_grace=1.0, log_limit=1), state_folder=Path("/s")
)


def test_a_run_that_asks_for_nothing_has_the_limits_of_its_worker():
    limits = RunLimits.of(WorkerSettings(stop_grace=7.0, log_limit=5), {"log_limit": 1}, {"FLOWFLEET_LOG_LIMIT": "1"})
    assert (limits.stop_grace, limits.log_limit) == (7.0, 5)


@pytest.mark.parametrize(
    ("variables", "env", "grace"),
    [
        ({"stop_grace": None}, {"FLOWFLEET_STOP_GRACE": ""}, 7.0),
        ({"stop_grace": 90}, {}, 90.0),
        ({"stop_grace": 0}, {}, 0.0),
        ({}, {"FLOWFLEET_STOP_GRACE": "2.5"}, 2.5),
    ],
)
def test_a_run_may_have_a_shorter_or_a_longer_time_at_a_stop(variables, env, grace):
    assert RunLimits.of(WorkerSettings(stop_grace=7.0), variables, env).stop_grace == grace


@pytest.mark.parametrize("value", [-1, 86401, "nan", "inf", "long", True, ["x"], "x" * 5000])
def test_a_time_at_a_stop_that_cannot_be_is_one_sentence(value):
    with pytest.raises(
        StartFailed, match=r"^the job variable stop_grace is .*: give a number of seconds from 0 to 86400$"
    ):
        RunLimits.of(WorkerSettings(), {"stop_grace": value}, {})


@pytest.mark.parametrize(
    ("variables", "env", "nice"),
    [
        ({}, {}, 4),
        ({"nice": None}, {"FLOWFLEET_NICE": ""}, 4),
        ({"nice": 9}, {}, 9),
        ({"nice": "9"}, {}, 9),
        ({}, {"FLOWFLEET_NICE": "9"}, 9),
        ({"nice": 6}, {"FLOWFLEET_NICE": "9"}, 6),
        ({"nice": 1}, {}, 4),
    ],
)
def test_a_run_may_only_raise_the_niceness(variables, env, nice):
    assert RunLimits.of(WorkerSettings(nice=4), variables, env).nice == nice


@pytest.mark.parametrize("value", [20, -1, "much", 1.5, True, ["x"], "x" * 5000])
@pytest.mark.parametrize("where", ["the job variable nice", "the run's variable FLOWFLEET_NICE"])
def test_a_niceness_that_cannot_be_is_one_sentence(value, where):
    given = ({"nice": value}, {}) if "job" in where else ({}, {"FLOWFLEET_NICE": str(value)})
    with pytest.raises(StartFailed, match=f"^{where} is .*: give a whole number from 0 to 19$") as caught:
        RunLimits.of(WorkerSettings(), *given)
    assert len(str(caught.value)) < 250


@dataclass
class WithContext:
    context: DeployerContext


def register(monkeypatch, make) -> None:
    entry = SimpleNamespace(name="mine", load=lambda: make)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda **_: [entry])


def test_a_plugged_in_deployer_gets_the_context(monkeypatch):
    register(monkeypatch, WithContext)
    assert registry.plugged_in_deployer("mine")(CONTEXT).context is CONTEXT


def test_process_is_our_own():
    assert registry.plugged_in_deployer("process") is None


class OfOurProtocol(Deployer):
    pass


@pytest.mark.parametrize(
    "make", [OfOurProtocol, lambda client=None: WithContext(client), lambda *, client=None: WithContext(client)]
)
def test_one_that_takes_no_argument_is_called_without(monkeypatch, make):
    register(monkeypatch, make)
    made = registry.plugged_in_deployer("mine")(CONTEXT)
    assert isinstance(made, OfOurProtocol) or made == WithContext(None)


def test_secrets_show_in_no_record():
    state = RunState(run_id="r", run_name="n", kind=StateType.PENDING, name="Submitted")
    secret = {"K": "hunter2"}
    job = Job(state=state, env=secret, engine_defaults=secret, engine_env=secret, variables=secret)
    assert "hunter2" not in repr(job) + repr(CONTEXT)


@pytest.mark.parametrize(
    ("backend", "command", "control"),
    [("prefect3", None, True), ("prefect3", ("sh", "-c", "true"), False), ("prefect1", None, False)],
)
def test_only_an_engine_of_prefect_3_that_we_start_ourselves_gets_a_control_session(
    tmp_path, backend, command, control
):
    builder = StartSpecBuilder(
        WorkerSettings(),
        traits.of(backend),
        api=SimpleNamespace(engine_command=lambda *_: ("engine",)),
        layers=EnvironmentLayers(base={"PATH": "/bin"}),
        interpreter=Interpreter(path="/x/python", prefect="3.9.1"),
    )
    job = Job(state=RunState(run_id="r", run_name="n", kind=StateType.PENDING, name="Submitted"), command=command)
    spec = builder.make(a_claim("r", State.TAKEN), job, RunFolder(tmp_path), not_after=None)
    assert spec.control is control
