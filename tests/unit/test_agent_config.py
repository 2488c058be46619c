"""Agent config: settings kept at a Prefect 1 API win over those given to poller and worker."""

import logging

import pytest

from flowfleet.api.prefect1.agent_config import lay_over
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.layers import resolve

CONFIG = {
    "name": "of-the-api",
    "labels": ["b", "a", "with space, and comma"],
    "env_vars": {"A": "1", "B": "x=y"},
    "max_polls": 3,
    "agent_address": "http://127.0.0.1:8080",
    "no_cloud_logs": True,
    "import_paths": ["/one", "~/two"],
    "show_flow_logs": True,
    "hostname_label": False,
}


def warnings(caplog):
    return [record for record in caplog.records if record.levelno == logging.WARNING]


def test_worker_and_poller_take_what_is_theirs():
    worker = lay_over(WorkerSettings(host="h", name="mine"), CONFIG, "c1")
    assert (worker.name, worker.agent_address) == ("mine", None)
    assert worker.agent_labels == ("a", "b", "with space, and comma")
    assert worker.env == ("A=1", "B=x=y")
    assert worker.import_paths == ("/one", "~/two")
    assert (worker.cloud_logs, worker.show_flow_logs) == (False, True)
    assert str(worker.origins["env"]) == "agent config c1"
    poller = lay_over(PollerSettings(), CONFIG, "c1")
    assert (poller.name, poller.agent_address, poller.max_polls) == ("of-the-api", "http://127.0.0.1:8080", 3)
    assert set(poller.labels) == {"a", "b", "with space, and comma"}
    assert not poller.cloud_logs
    named = lay_over(PollerSettings(host="h"), {"name": "My agent!"}, "c1")
    assert (named.name, named.identity) == ("My agent!", "My-agent-@h")


def test_each_flag_that_loses_gets_one_line_without_its_value_and_one_that_says_the_same_none(caplog):
    lay_over(resolve(WorkerSettings, {"label": ("b", "a")}, {}, {}), {"labels": ["a", "b"]}, "c1")
    assert warnings(caplog) == []
    flags = {"env": ("A=secret",), "label": ("mine",), "show-flow-logs": False}
    given = resolve(WorkerSettings, flags, {"FLOWFLEET_IMPORT_PATHS": "/mine"}, {})
    settings = lay_over(given, {**CONFIG, "hostname_label": True}, "c1")
    assert settings.env == ("A=1", "B=x=y")
    assert {(record.setting, record.given_by) for record in warnings(caplog)} == {
        ("--env", "flag --env"),
        ("--label", "flag --label"),
        ("--show-flow-logs", "flag --show-flow-logs/--hide-flow-logs"),
        ("--import-path", "variable FLOWFLEET_IMPORT_PATHS"),
    }
    assert "secret" not in caplog.text


def test_unknown_settings_are_named_in_one_line_and_null_is_none(caplog):
    settings = lay_over(WorkerSettings(), {"volumes": ["/x"], "colour": "red", "labels": None}, "c1")
    (record,) = warnings(caplog)
    assert record.settings == "colour, volumes"
    assert settings.labels == ()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("labels", "a"),
        ("labels", ["a", 1]),
        ("labels", [""]),
        ("labels", ["x" * 256]),
        ("env_vars", ["A=secret"]),
        ("env_vars", {"A": ["secret"]}),
        ("env_vars", {"A=B": "secret"}),
        ("no_cloud_logs", "yes"),
        ("import_paths", "/one"),
        ("hostname_label", 1),
    ],
)
def test_a_wrong_type_is_one_sentence_that_names_it(entry, value):
    with pytest.raises(SettingsError) as failure:
        lay_over(WorkerSettings(), {entry: value}, "c1")
    assert f"agent config c1 has {entry}" in str(failure.value)
    assert "secret" not in str(failure.value)
    assert failure.value.exit_code == 2


@pytest.mark.parametrize(("entry", "value"), [("max_polls", -1), ("max_polls", True), ("name", ""), ("name", 3)])
def test_a_wrong_value_of_a_poller_is_one_sentence(entry, value):
    with pytest.raises(SettingsError, match=f"has {entry} {value!r}, which must be"):
        lay_over(PollerSettings(), {entry: value}, "c1")
    lay_over(WorkerSettings(), {entry: value}, "c1")
